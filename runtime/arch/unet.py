"""Finds the attention layers of a loaded model and names them as ComfyUI's patch keys do."""

from __future__ import annotations

from collections.abc import Iterator

from comfy.ldm.modules.attention import BasicTransformerBlock, SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch import nn

from ...engine.layers import LayerId


def unet_of(model: ModelPatcher, what: str = "model") -> UNetModel:
    """The UNet inside a MODEL; `what` is the name of the node's input, for the error.

    Raises ValueError for models of another architecture (DiT), whose layers have other names.
    """
    unet = model.model.diffusion_model
    if not isinstance(unet, UNetModel):
        raise ValueError(
            f"'{what}' is a {type(unet).__name__}, not a UNet: "
            "connect a UNet model such as SD1.5, SDXL or a finetune of either."
        )
    return unet


def attention_layers(model: ModelPatcher, what: str = "model") -> dict[LayerId, BasicTransformerBlock]:
    """Every transformer block of the UNet by its layer, in forward order (SD1.5 has 16, SDXL 70).

    Raises ValueError when the model is no UNet or has no attention.
    """
    layers = dict(transformer_blocks(unet_of(model, what)))
    if not layers:
        raise ValueError(f"'{what}' has no attention layers: connect a UNet with attention, such as SD1.5 or SDXL.")
    return layers


def transformer_blocks(unet: UNetModel) -> Iterator[tuple[LayerId, BasicTransformerBlock]]:
    """Layers and transformer blocks of a bare UNet, in forward order."""
    for block, number, modules in _parts(unet):
        for module in modules:
            if isinstance(module, SpatialTransformer):
                for index, transformer in enumerate(module.transformer_blocks):
                    yield LayerId(block, number, index), transformer


def _parts(unet: UNetModel) -> Iterator[tuple[str, int, nn.Module]]:
    yield from (("input", number, modules) for number, modules in enumerate(unet.input_blocks))
    if unet.middle_block is not None:
        yield "middle", 0, unet.middle_block
    yield from (("output", number, modules) for number, modules in enumerate(unet.output_blocks))
