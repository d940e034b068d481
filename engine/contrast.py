"""Guidance along the difference of two predictions, as classifier-free guidance goes along prompt minus no prompt."""

from __future__ import annotations

import torch


def guided(
    denoised: torch.Tensor, gated: torch.Tensor, plain: torch.Tensor, strength: float, rescale: float
) -> torch.Tensor:
    """`denoised` [B, C, ..., H, W] moved by strength * (gated - plain).

    `rescale` (0 to 1) brings the deviation of each picture back toward the one that it had before (arXiv 2305.08891,
    eq. 15 and 16), so that strong guidance does not burn colours. Strength 0 returns `denoised` itself.
    """
    if strength == 0:
        return denoised
    moved = denoised + strength * (gated - plain)
    if rescale == 0:
        return moved
    axes = tuple(range(1, moved.ndim))
    factor = denoised.std(axes, keepdim=True) / moved.std(axes, keepdim=True).clamp(min=1e-8)
    return moved * torch.lerp(torch.ones_like(factor), factor, rescale)
