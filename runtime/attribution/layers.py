"""What is asked of a model to find a subject: the method, and the layers that take part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import Upsample
from comfy.model_patcher import ModelPatcher

from ...engine.attribution import METHODS
from ...engine.grammar import parse
from ...engine.layers import LayerId
from ..arch.unet import attention_layers, unet_of

DEFAULT = "auto"
WEIGHTINGS = ("uniform", "by layer", "by head")


@dataclass(frozen=True)
class AttributionSettings:
    """How a subject is found. `layers` is the gate grammar or "auto"; `probes` are backward passes of `grad_sam`.

    `weighting` of layers and heads in the other maps' mean: all alike, or by how far scaling them moves the prediction.
    `propagation` is how many times the map spreads along fine self-attention.
    """

    method: str = "jvp"
    layers: str = DEFAULT
    weighting: str = "uniform"
    propagation: int = 0
    probes: int = 2

    def __post_init__(self) -> None:
        for name, value, known in (("method", self.method, METHODS), ("weighting", self.weighting, WEIGHTINGS)):
            if value not in known:
                raise ValueError(f"'{name}' is '{value}'; choose one of {', '.join(known)}.")


@dataclass(frozen=True)
class Layers:
    """The cross-attention layers that are asked, with their weights, and the self-attention layers that spread."""

    blocks: Mapping[LayerId, BasicTransformerBlock]
    asked: Mapping[LayerId, float]
    spreading: tuple[LayerId, ...]


def chosen_layers(model: ModelPatcher, settings: AttributionSettings) -> Layers:
    """The layers that a setting names. Raises GrammarError, or ValueError when it names none."""
    blocks = attention_layers(model)
    names = tuple(blocks)
    if settings.layers.strip() in ("", DEFAULT):
        asked = dict.fromkeys(_finest(model, names, 1 if settings.method == "grad_sam" else 2), 1.0)
    else:
        weights = parse(settings.layers).weights(names).amax(0).tolist()
        asked = {layer: weight for layer, weight in zip(names, weights, strict=True) if weight > 0}
    if not asked:
        raise ValueError("'layers' chooses no layer: write some, such as o9-11, or auto.")
    return Layers(blocks, asked, _finest(model, names, 1)[-1:] if settings.propagation else ())


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
