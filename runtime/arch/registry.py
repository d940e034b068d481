"""Finds the architecture of a loaded model. A new family is one file of this folder and one line here."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from torch import nn

from .base import Architecture, uncompiled
from .unet import UNet

FAMILIES: tuple[type[Architecture], ...] = (UNet,)


def architecture_of(model: ModelPatcher, what: str = "model") -> Architecture:
    """The architecture of a MODEL; `what` is the name of the node's input, for the error.

    Raises ValueError for a model of no known family, or without attention layers.
    """
    network = uncompiled(model.model.diffusion_model)
    found = next((family(network) for family in FAMILIES if family.matches(network)), None)
    if found is None:
        raise ValueError(_unknown(network, what))
    if not found.layers:
        raise ValueError(f"'{what}' has no attention layers: connect a UNet with attention, such as SD1.5 or SDXL.")
    return found


def _unknown(network: nn.Module, what: str) -> str:
    return (
        f"'{what}' is a {type(network).__name__}, not a UNet: "
        "connect a UNet model such as SD1.5, SDXL or a finetune of either."
    )
