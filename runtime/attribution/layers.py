"""The layers of a model that take part when a subject is looked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher

from ...engine.grammar import parse
from ...engine.layers import LayerId
from ...engine.texts import bounded
from ..arch.base import Architecture
from ..arch.registry import architecture_of
from .settings import DEFAULT, AttributionSettings


@dataclass(frozen=True)
class Layers:
    """The target layers, whose attention to text is read, with their weights; and the layers that propagate maps."""

    architecture: Architecture
    targets: Mapping[LayerId, float]
    propagating: tuple[LayerId, ...]


def chosen_layers(model: ModelPatcher, settings: AttributionSettings) -> Layers:
    """The layers that a setting names. Raises GrammarError, or ValueError when it names none."""
    architecture = architecture_of(model)
    names = architecture.text_layers
    if settings.layers.strip() in ("", DEFAULT):
        targets = dict.fromkeys(architecture.subject_layers(settings.way.levels), 1.0)
    else:
        weights = parse(bounded(settings.layers, "layers")).weights(names).amax(0).tolist()
        targets = {layer: weight for layer, weight in zip(names, weights, strict=True) if weight > 0}
    if not targets:
        raise ValueError("'layers' chooses no layer: write some, such as o9-11, or auto.")
    return Layers(architecture, targets, architecture.subject_layers(1)[-1:] if settings.propagation else ())
