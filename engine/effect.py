"""What opening one layer to a reference does to a prediction: how far it moves in style, how much content it loses.

Both are read off the predicted picture in latent space, without decoding: style as moments of channels and of their
detail at two sizes, content as where things are, whatever their contrast.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import avg_pool2d, interpolate

from .devices import double

EPS = 1e-5
HALVINGS = 2  # how often the picture is halved to tell fine detail from coarse


class Effect(NamedTuple):
    """Gain and loss, [...] each.

    `gain`: share of the distance in style to the reference that the layer takes away; 0 for none, 1 for all, negative
    where it leads away. `loss`: 1 - correlation of the layout with the plain prediction's; 0 keeps all.
    """

    gain: torch.Tensor
    loss: torch.Tensor


def effect_of(plain: torch.Tensor, styled: torch.Tensor, reference: torch.Tensor) -> Effect:
    """The effect [B] on predictions [B, C, h, w] of a reference's latent [1, C, h', w'], all free of noise."""
    before, after = style_gap(plain, reference), style_gap(styled, reference)
    gain = torch.where(before == 0, 0.0, (before - after) / before.clamp(min=1e-30))
    return Effect(gain, 1 - _layout(plain, styled))


def style_gap(pictures: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Bhattacharyya distance [B] of moments, a mean over channels and sizes of detail."""
    (mean, std), (mean_to, std_to) = _moments(pictures), _moments(reference)
    variance = (std.square() + std_to.square()) / 2
    gap = (mean - mean_to).square() / (8 * variance) + (variance / (std * std_to)).log() / 2
    return gap.mean(-1)


def _moments(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation [B, bands * C] of what is lost with each halving, and of what is left."""
    rest, bands = double(pictures), []
    for _ in range(HALVINGS):
        if min(rest.shape[-2:]) < 4:
            break
        coarse = avg_pool2d(rest, 2, ceil_mode=True)
        bands.append(rest - interpolate(coarse, rest.shape[-2:], mode="nearest"))
        rest = coarse
    found = [torch.var_mean(band.flatten(2), dim=-1, correction=0) for band in (*bands, rest)]
    variance, mean = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    return mean, (variance + EPS).sqrt()


def _layout(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Correlation [B] over places, a mean over channels: the moments of a channel do not count."""
    one, other = (_standard(double(picture)) for picture in (one, other))
    return (one * other).mean((-1, -2)).mean(-1)


def _standard(pictures: torch.Tensor) -> torch.Tensor:
    variance, mean = torch.var_mean(pictures, dim=(-1, -2), keepdim=True, correction=0)
    return (pictures - mean) / (variance + EPS).sqrt()
