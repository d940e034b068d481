"""Finds the architecture of a loaded model. A new family is one file of this folder and one line here."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from torch import nn

from ..runs.loaded import own_classes
from .aura import AuraFlow
from .base import Architecture, uncompiled
from .cosmos import CosmosPredict2
from .flux import Flux
from .hunyuan_video import HunyuanVideo
from .krea import Krea2
from .lumina import NextDiT
from .qwen import QwenImage
from .qwen21 import QwenImage21
from .sd3 import SD3
from .unet import UNet
from .wan import Wan

FAMILIES: tuple[type[Architecture], ...] = (
    UNet,
    SD3,
    Flux,
    QwenImage,
    QwenImage21,
    NextDiT,
    AuraFlow,
    HunyuanVideo,
    Wan,
    CosmosPredict2,
    Krea2,
)

KNOWN = (
    "SD1.5, SDXL, SD3 and SD3.5, Flux.1 and Flux.2, Chroma, Qwen-Image and Qwen-Image 2.1, Lumina2, Z-Image, AuraFlow, "
    "Wan, HunyuanVideo, Cosmos-Predict2, Anima or Krea 2"
)

REFUSED = {
    "PixArtMS": "PixArt calls attention in a way that no other code can join",
    "HunYuanDiT": "HunyuanDiT calls attention in a way that no other code can join",
}
"""Networks that ComfyUI runs and whose attention cannot be reached, with the reason."""


def family_of(network: nn.Module) -> Architecture | None:
    """The architecture of a bare network; None of no known family."""
    return next((family(network) for family in FAMILIES if family.matches(network)), None)


def architecture_of(model: ModelPatcher, what: str = "model") -> Architecture:
    """The architecture of a MODEL; `what` is the name of the node's input, for the error.

    Raises ValueError for a model of no known family, or without the attention layers of its family.
    """
    with own_classes(model):
        network = uncompiled(model.model.diffusion_model)
        found = family_of(network)
        if found is None:
            raise ValueError(_unknown(network, what))
        layers = found.layers
    if not layers:
        raise ValueError(
            f"'{what}' has no attention layers of {found.name}: another pack has replaced its blocks, or it has none. "
            f"Load it with a core loader node; {KNOWN} are supported."
        )
    return found


def _unknown(network: nn.Module, what: str) -> str:
    kind = type(network).__name__
    reason = REFUSED.get(kind, f"its network {kind} is none whose layers are known")
    return f"'{what}' cannot be used here: {reason}. Connect {KNOWN}, or a finetune of one."
