"""Blends two prompts' predictions, by place; the parts of the two that oppose each other are left out.

A prompt's direction is its prediction minus the one without a prompt; two of them are added (Composable Diffusion,
arXiv 2206.01714). Where both act, the part of each that points against the other is taken out first, as Perp-Neg does
for a negative prompt (arXiv 2304.04968) and gradient surgery for two tasks (arXiv 2001.06782).
"""

from __future__ import annotations

import torch


def blended(
    own: torch.Tensor, other: torch.Tensor, without: torch.Tensor, own_weight: torch.Tensor, other_weight: torch.Tensor
) -> torch.Tensor:
    """One prediction of two prompts' and the one without a prompt, all [B, C, ..., H, W], by weights [H, W].

    At weights 0 and 1 it is `other` itself, at 1 and 0 `own`. Two directions that agree are added whole.
    """
    overlap = torch.minimum(own_weight, other_weight).clamp(max=1)
    first, second = own - without, other - without
    against_second, against_first = opposing(first, second, overlap)
    kept = own_weight * own + other_weight * other + (1 - own_weight - other_weight) * without
    return kept - own_weight * against_second - other_weight * against_first


def opposing(first: torch.Tensor, second: torch.Tensor, overlap: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The part of each direction [B, C, ..., H, W] that points against the other one within an overlap [H, W] in 0..1.

    One product for each picture decides, over the whole overlap: in single places half of all directions oppose by
    chance. Zero where they agree and outside.
    """
    axes = tuple(range(1, first.ndim))
    product = (overlap * first * second).sum(axes, keepdim=True).clamp(max=0)
    parts = []
    for along in (second, first):
        square = (overlap * along * along).sum(axes, keepdim=True)
        parts.append(overlap * along * product / square.clamp(min=torch.finfo(square.dtype).tiny))
    return parts[0], parts[1]


def weights_of(mask: torch.Tensor, strength: float, stays: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights [H, W] of a run's own prompt and of another one that acts where a mask in 0..1 is.

    The own prompt `stays` everywhere, or gives way where the other one acts.
    """
    other = strength * mask
    return torch.ones_like(other) if stays else (1 - other).clamp(min=0), other
