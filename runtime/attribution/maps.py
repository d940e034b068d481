"""Maps of the subject's attention by layer, and their weighted mean over layers and heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ...engine.attribution import combined
from ...engine.layers import LayerId
from ...engine.subject import Phrase
from .layers import AttributionSettings, Layers
from .methods.jvp import head_sensitivity, layer_sensitivity
from .prediction import Prediction


@dataclass
class Columns:
    """Maps [subjects, B, heads, h, w] by layer, averaged over the calls in which they were seen."""

    found: dict[LayerId, list[torch.Tensor]] = field(default_factory=dict)

    def add(self, layer: LayerId, maps: torch.Tensor) -> None:
        self.found.setdefault(layer, []).append(maps)

    def combined(
        self, prediction: Prediction, phrases: Sequence[Phrase], layers: Layers, settings: AttributionSettings
    ) -> torch.Tensor:
        """One map [subjects, B, h, w] over all layers and heads."""
        if not self.found:
            return prediction.x.new_zeros(len(phrases), len(prediction.x), *prediction.x.shape[2:])
        maps = {layer: torch.stack(parts).mean(0) for layer, parts in self.found.items()}
        heads = {layer: part.shape[2] for layer, part in maps.items()}
        weights = _weights(prediction, phrases, layers, settings, heads)
        size = tuple(prediction.x.shape[2:])
        return torch.stack(
            [
                combined([maps[layer][number] for layer in maps], [weights[layer] for layer in maps], size)
                for number in range(len(phrases))
            ]
        )


def _weights(
    prediction: Prediction,
    phrases: Sequence[Phrase],
    layers: Layers,
    settings: AttributionSettings,
    heads: Mapping[LayerId, int],
) -> dict[LayerId, torch.Tensor]:
    """Weights [heads] of each layer: those written by hand, times what scaling the layer or the head moves."""
    weights = {layer: torch.full((count,), layers.asked[layer]) for layer, count in heads.items()}
    if settings.weighting == "uniform":
        return weights
    measure = layer_sensitivity if settings.weighting == "by layer" else head_sensitivity
    return {layer: weight * measure(prediction, phrases, layer, len(weight)).cpu() for layer, weight in weights.items()}
