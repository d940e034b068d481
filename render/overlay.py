"""Maps and masks as pictures: a heat map in colour, and a mask over a picture."""

from __future__ import annotations

import torch


def in_rgb(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures [B, H, W, C] of one to four channels as [B, H, W, 3]: grey is repeated, alpha is left out."""
    return pictures[..., :3] if pictures.shape[-1] > 2 else pictures[..., :1].expand(-1, -1, -1, 3)


def overlay(pictures: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Pictures [B, H, W, 3] with the masked part in colour and the rest dark and grey; mask [B, H, W]."""
    grey = pictures.mean(-1, keepdim=True).expand_as(pictures)
    return torch.lerp(0.35 * grey, pictures, mask[..., None])


def heat(maps: torch.Tensor) -> torch.Tensor:
    """Maps [..., h, w] as pictures [..., h, w, 3]: black through red and yellow to white, each map over its range."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    level = 3 * (maps - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.stack([(level - channel).clamp(0, 1) for channel in range(3)], -1)
