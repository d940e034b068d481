"""Maps of attention to phrases by layer, and their weighted mean over layers and heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ...engine.attribution import combined
from ...engine.layers import LayerId
from .question import Question
from .rounding import exact
from .scaling import head_sensitivity, layer_sensitivity


@dataclass
class Columns:
    """Maps [phrases, B, heads, h, w] by layer, averaged over the calls in which they were seen."""

    found: dict[LayerId, list[torch.Tensor]] = field(default_factory=dict)

    def add(self, layer: LayerId, maps: torch.Tensor) -> None:
        self.found.setdefault(layer, []).append(maps)

    def combined(self, question: Question) -> torch.Tensor:
        """One map [phrases, B, h, w] over all layers and heads."""
        x = question.prediction.x
        if not self.found:
            return x.new_zeros(len(question.phrases), len(x), *x.shape[-2:])
        maps = {layer: torch.stack(parts).mean(0) for layer, parts in self.found.items()}
        weights = _weights(question, {layer: part.shape[2] for layer, part in maps.items()})
        size = x.shape[-2], x.shape[-1]
        return torch.stack(
            [
                combined([maps[layer][number] for layer in maps], [weights[layer] for layer in maps], size)
                for number in range(len(question.phrases))
            ]
        )


def _weights(question: Question, heads: Mapping[LayerId, int]) -> dict[LayerId, torch.Tensor]:
    """Weights [heads] of each layer: those written by hand, times what scaling the layer or the head moves."""
    weights = {layer: torch.full((count,), question.layers.targets[layer]) for layer, count in heads.items()}
    if question.settings.weighting == "uniform":
        return weights
    measure = layer_sensitivity if question.settings.weighting == "by layer" else head_sensitivity
    prediction = exact(question.prediction)
    return {
        layer: weight * measure(prediction, question.phrases, layer, len(weight)).cpu()
        for layer, weight in weights.items()
    }
