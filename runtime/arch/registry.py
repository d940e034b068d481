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

NO_PAINTERS = {
    "SVD_img2vid": "it paints the frames of a video, which attend to each other as to one picture",
    "SD_X4Upscaler": "it enlarges a picture, and attends to text where others attend to the picture",
    "Lotus": "it estimates depth or normals and paints no picture of a prompt",
}
"""Models of ComfyUI's, their kin included, whose UNet has the layers of others and another task, with the reason."""


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
        if found is None or _task_of(model) is not None:
            raise ValueError(_unknown(network, what, _task_of(model)))
        layers = found.layers
    if not layers:
        raise ValueError(
            f"'{what}' has no attention layers of {found.name}: another pack has replaced its blocks, or it has none. "
            f"Load it with a core loader node; {KNOWN} are supported."
        )
    return found


def _task_of(model: ModelPatcher) -> str | None:
    """Why a model's layers do not serve although they are known, if they do not."""
    names = (each.__name__ for each in type(model.model).__mro__)
    return next((NO_PAINTERS[name] for name in names if name in NO_PAINTERS), None)


def _unknown(network: nn.Module, what: str, task: str | None) -> str:
    kind = type(network).__name__
    reason = task or REFUSED.get(kind, f"its network {kind} is none whose layers are known")
    return f"'{what}' cannot be used here: {reason}. Connect {KNOWN}, or a finetune of one."
