"""Pictures in one row, for one look."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..engine.devices import able
from .overlay import in_rgb

GAP = 8
"""Pixels of white between two pictures."""


def side_by_side(batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Batches [B, h, w, C] as one [B, H, W, 3], scaled to the last one's height; a batch of one goes with every row."""
    height, rows = batches[-1].shape[1], max(len(batch) for batch in batches)
    shown = [_scaled(in_rgb(batch), height).expand(rows, -1, -1, -1) for batch in batches]
    gap = shown[0].new_ones(rows, height, GAP, 3)
    return torch.cat([part for batch in shown for part in (gap, batch)][1:], 2)


def _scaled(pictures: torch.Tensor, height: int) -> torch.Tensor:
    """[B, h, w, 3] to a height, with their own proportions."""
    if pictures.shape[1] == height:
        return pictures
    size = (height, max(round(pictures.shape[2] * height / pictures.shape[1]), 1))
    channels_first = able(pictures).movedim(-1, 1).float()  # CPUs do not scale fp16, in which ComfyUI may hand them on
    scaled = torch.nn.functional.interpolate(channels_first, size=size, mode="bicubic", antialias=True)
    return scaled.clamp(0, 1).movedim(1, -1).to(pictures)
