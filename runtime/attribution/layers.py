"""The layers of a model that take part when a subject is looked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import Upsample
from comfy.model_patcher import ModelPatcher

from ...engine.grammar import parse
from ...engine.layers import LayerId
from ...engine.texts import bounded
from ..arch.unet import attention_layers, unet_of
from .settings import DEFAULT, AttributionSettings


@dataclass(frozen=True)
class Layers:
    """The target layers, whose cross-attention is read, with their weights; and the layers that propagate maps."""

    blocks: Mapping[LayerId, BasicTransformerBlock]
    targets: Mapping[LayerId, float]
    propagating: tuple[LayerId, ...]


def chosen_layers(model: ModelPatcher, settings: AttributionSettings) -> Layers:
    """The layers that a setting names. Raises GrammarError, or ValueError when it names none."""
    blocks = attention_layers(model)
    names = tuple(blocks)
    if settings.layers.strip() in ("", DEFAULT):
        targets = dict.fromkeys(_finest(model, names, settings.way.levels), 1.0)
    else:
        weights = parse(bounded(settings.layers, "layers")).weights(names).amax(0).tolist()
        targets = {layer: weight for layer, weight in zip(names, weights, strict=True) if weight > 0}
    if not targets:
        raise ValueError("'layers' chooses no layer: write some, such as o9-11, or auto.")
    return Layers(blocks, targets, _finest(model, names, 1)[-1:] if settings.propagation else ())


def _finest(model: ModelPatcher, layers: Sequence[LayerId], levels: int) -> tuple[LayerId, ...]:
    """Layers of the UNet's way up at its `levels` finest resolutions that have attention: where subjects are drawn.

    One level is SD1.5's o9-11 and SDXL's o3-5, as the paper takes the last layers only.
    """
    doublings, level = {}, 0
    for number, modules in enumerate(unet_of(model).output_blocks):
        doublings[number] = level
        level += any(isinstance(module, Upsample) for module in modules)
    outputs = [layer for layer in layers if layer.block == "output"] or list(layers)
    found = sorted({doublings.get(layer.number, 0) for layer in outputs})[-levels:]
    return tuple(layer for layer in outputs if doublings.get(layer.number, 0) in found)
