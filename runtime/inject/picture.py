"""A picture as it comes from a loader, made ready for a model."""

from __future__ import annotations

import math
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

from ..profile.clusters import native_side
from ..profile.pictures import held
from .reference import Conditioning

CELL = 8  # pixels: sides are multiples of it


def latent_of(vae: Any, image: torch.Tensor, model: ModelPatcher, what: str = "image") -> torch.Tensor:
    """The first picture of an IMAGE as a latent [1, C, (1,) h, w], scaled down to the area that the model paints.

    Raises ValueError that names the input, for what is no picture and for the VAE of another family.
    """
    if vae is None:
        raise ValueError("'vae' is empty, because the checkpoint holds none: load a VAE of the model's family.")
    try:
        picture = held(image[0])
    except ValueError as problem:
        raise ValueError(f"'{what}' {problem}: connect a picture.") from problem
    width, height = _within(*picture.pixels.shape[1::-1], native_side(model))
    latent = vae.encode(picture.fitted(width, height)[None])
    channels = model.get_model_object("latent_format").latent_channels
    if latent.shape[1] != channels:
        raise ValueError(
            f"'vae' makes latents of {latent.shape[1]} channels and 'model' wants {channels}: connect the VAE of this "
            "model's family."
        )
    return latent


def _within(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height with an area of side * side at most, in whole cells."""
    scale = min(1.0, side / math.sqrt(width * height))
    return tuple(max(CELL, round(scale * length / CELL) * CELL) for length in (width, height))


def encoded(clip: Any, text: str, what: str = "prompt") -> Conditioning:
    """A text as CLIP Text Encode encodes it. Raises ValueError, naming the input, where there is no text encoder."""
    if clip is None:
        raise ValueError(f"'clip' is empty, and '{what}' needs it: load a text encoder of the model's family.")
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))
