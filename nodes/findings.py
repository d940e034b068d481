"""How nodes show what was measured of a subject: maps, masks and their overlays at a picture's size."""

from __future__ import annotations

import torch
from comfy import utils

from ..engine.devices import able
from ..render.coverage import caveat, coverage
from ..render.overlay import heat, in_rgb, overlay

TILE = 512
"""The longer side of pictures on a node, in pixels at most: enough on a node, quickly saved and sent."""


def report(method: str, note: str, mask: torch.Tensor) -> str:
    """The method, how much of each picture the mask [B, h, w] covers, and any caveat, in a sentence or more."""
    caveats = [each for each in (caveat(mask), note) if each]
    return " ".join((f"{method}, {coverage(mask)} of the picture.", *caveats))


def enlarged(maps: torch.Tensor, image: torch.Tensor | None, cell: int) -> torch.Tensor:
    """Maps [S, B, h, w] at the picture's size; `cell` pixels of the side to a cell of the latent without one."""
    return _resized(maps, image, cell, "bicubic")


def enlarged_mask(mask: torch.Tensor, image: torch.Tensor | None, cell: int) -> torch.Tensor:
    """A mask [B, h, w] at the picture's size, no value of it changed."""
    return _resized(mask[None], image, cell, "nearest-exact")[0]


def with_mask(image: torch.Tensor | None, maps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mask [B, H, W] laid over the image, or over the strongest subject's map of [S, B, H, W]."""
    if image is None:
        return overlay(heat(maps.amax(0)), mask)
    return overlay(utils.repeat_to_batch_size(in_rgb(image).to(maps), maps.shape[1]), mask)


def _resized(maps: torch.Tensor, image: torch.Tensor | None, cell: int, how: str) -> torch.Tensor:
    """[N, B, h, w] at an image's size, or `cell` pixels to a cell."""
    size = [cell * side for side in maps.shape[-2:]] if image is None else list(image.shape[1:3])
    return torch.nn.functional.interpolate(maps.float(), size=size, mode=how)


def small(pictures: torch.Tensor) -> torch.Tensor:
    """[B, H, W, 3] within TILE pixels; smaller pictures stay as they are."""
    scale = TILE / max(pictures.shape[1:3])
    if scale >= 1:
        return pictures
    size = [max(round(scale * side), 1) for side in pictures.shape[1:3]]
    return torch.nn.functional.interpolate(able(pictures).movedim(-1, 1), size=size, mode="area").movedim(1, -1)
