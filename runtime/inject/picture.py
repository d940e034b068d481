"""A picture as it comes from a loader, made ready for a model."""

from __future__ import annotations

import math
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

from ..profile.clusters import native_side
from ..profile.pictures import HeldPicture, held
from ..runs.loaded import cell_of, latent_format_of
from ..runs.probe import Conditioning

STEP = 8  # pixels: sides are multiples of it, and of the model's cells


def latent_of(vae: Any, image: torch.Tensor, model: ModelPatcher, what: str = "image") -> torch.Tensor:
    """The first picture of an IMAGE as a latent [1, C, (1,) h, w], scaled down to the area that the model paints.

    Raises ValueError that names the input, for what is no picture and for the VAE of another family.
    """
    if vae is None:
        raise ValueError("'vae' is empty, because the checkpoint holds none: load a VAE of the model's family.")
    picture = _held(image, what)
    rows, columns = picture.pixels.shape[:2]
    width, height = _within(columns, rows, native_side(model), math.lcm(STEP, cell_of(model)))
    latent = vae.encode(picture.fitted(width, height)[None])
    channels = latent_format_of(model).latent_channels
    if latent.shape[1] != channels:
        raise ValueError(
            f"'vae' makes latents of {latent.shape[1]} channels and 'model' wants {channels}: connect the VAE of this "
            "model's family."
        )
    return latent


def _held(image: torch.Tensor, what: str) -> HeldPicture:
    if not len(image):
        raise ValueError(f"'{what}' holds no picture: connect one.")
    try:
        return held(image[0])
    except ValueError as problem:
        raise ValueError(f"'{what}' {problem}: connect a picture.") from problem


def _within(width: int, height: int, side: int, step: int) -> tuple[int, int]:
    """Width and height in whole steps, with an area of about side * side at most."""
    scale = min(1.0, side / math.sqrt(width * height))
    width, height = (max(step, round(scale * length / step) * step) for length in (width, height))
    return width, height


def encoded(clip: Any, text: str, what: str = "prompt") -> Conditioning:
    """A text as CLIP Text Encode encodes it. Raises ValueError, naming the input, where there is no text encoder."""
    check_clip(clip, what)
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def check_clip(clip: Any, what: str) -> None:
    """Raises ValueError where there is no text encoder for the input `what`."""
    if clip is None:
        raise ValueError(f"'clip' is empty, and '{what}' needs it: load a text encoder of the model's family.")


def under_control(
    positive: Conditioning, control_net: Any, hint: torch.Tensor, strength: float, vae: Any, what: str
) -> Conditioning:
    """The prompt under a ControlNet that follows `hint` [B, H, W, 3], and that acts on the run's negative prompts too.

    ComfyUI's Apply ControlNet for two prompts sets it on both; one on the positive prompt alone is taken over by the
    negative ones of the same area, which leaves their node as it is.
    """
    pictures = torch.stack([_held(picture[None], what).pixels for picture in hint])
    if strength == 0:
        return positive
    control = control_net.copy().set_cond_hint(pictures.movedim(-1, 1), strength, (0.0, 1.0), vae=vae)
    return [[text, {**others, "control": control, "control_apply_to_uncond": True}] for text, others in positive]
