"""Hands that no one has: the known ones redrawn, so that the judge's sense of a hand does not end with eight."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from demo.world.media import oklab, srgb

Drawings = tuple[Tensor, Tensor]  # colours [N, 3, H, W] and alpha [N, 1, H, W] in [0, 1]; colours not multiplied


def redrawn(drawings: Tensor, seed: int) -> Tensor:
    """Bytes of an atlas, [N, 4, H, W], all redrawn in one way: up to three changes of line, tone and colour."""
    dice = random.Random(seed)
    whole = drawings.float() / 255
    alpha = whole[:, 3:]
    parts = whole[:, :3] / alpha.clamp_min(1 / 255), alpha
    for change in dice.sample(CHANGES, dice.choice((1, 2, 2, 3))):
        colours, alpha = change(*parts, dice)
        parts = colours.clamp(0, 1), alpha.clamp(0, 1)
    return torch.cat([parts[0] * parts[1], parts[1]], 1).mul(255).round().byte()


def _grown(mask: Tensor, reach: int) -> Tensor:
    return functional.max_pool2d(mask, 2 * reach + 1, 1, reach)


def _soft(picture: Tensor, sigma: float) -> Tensor:
    reach = round(2.5 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=picture.device) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(picture.shape[1], 1, 1, -1)
    along = functional.conv2d(picture, kernel, padding=(0, reach), groups=picture.shape[1])
    return functional.conv2d(along, kernel.movedim(-1, -2), padding=(reach, 0), groups=picture.shape[1])


def _ink(dice: random.Random, like: Tensor) -> Tensor:
    tone = dice.choice((0.05, 0.1, 0.2, 0.95))
    return torch.tensor([tone, tone, tone + dice.uniform(-0.03, 0.25)], device=like.device)[None, :, None, None]


def outlined(colours: Tensor, alpha: Tensor, dice: random.Random) -> Drawings:
    """A line around the silhouette, inside it so that it stays in the frame."""
    line = alpha * _grown(1 - functional.pad(alpha, (1, 1, 1, 1)), dice.choice((2, 3, 4, 6)))[..., 1:-1, 1:-1]
    return colours + line * (_ink(dice, colours) - colours), alpha


def lined(colours: Tensor, alpha: Tensor, dice: random.Random) -> Drawings:
    """Lines where colours change."""
    over = colours * alpha + 1 - alpha
    reach = dice.choice((1, 2, 3))
    edges = (_grown(over, reach) + _grown(-over, reach)).amax(1, keepdim=True)
    line = ((edges - 0.15) / 0.15).clamp(0, 1) * alpha
    ground = torch.ones_like(colours) if dice.random() < 0.4 else colours
    return ground + line * (_ink(dice, colours) - ground), alpha


def thick(colours: Tensor, alpha: Tensor, dice: random.Random) -> Drawings:
    """Dark lines thicker, or light ones."""
    over, reach = colours * alpha + 1 - alpha, dice.choice((1, 2, 3))
    return (-_grown(-over, reach) if dice.random() < 0.6 else _grown(colours * alpha, reach)), alpha


def blurred(colours: Tensor, alpha: Tensor, dice: random.Random) -> Drawings:
    sigma = dice.uniform(1.0, 5.0)
    return _soft(colours * alpha, sigma) / _soft(alpha, sigma).clamp_min(1e-3), alpha


def posterised(colours: Tensor, alpha: Tensor, dice: random.Random) -> Drawings:
    levels = dice.choice((1, 2, 3))
    return (colours * levels).round() / levels, alpha


def rounded(colours: Tensor, alpha: Tensor, dice: random.Random) -> Drawings:
    return colours, ((_soft(alpha, dice.uniform(2.0, 5.0)) - 0.5) * 6 + 0.5).clamp(0, 1)


def recoloured(colours: Tensor, alpha: Tensor, dice: random.Random) -> Drawings:
    """Hues turned, chroma and contrast changed, perhaps inverted."""
    lab = oklab(colours)
    turn = torch.tensor(dice.choice((0.0, 0.0, dice.uniform(0, 6.28))))
    a, b = lab[:, 1], lab[:, 2]
    chroma = dice.choice((0.0, 0.5, 1.0, 1.6))
    turned = torch.stack([a * turn.cos() - b * turn.sin(), a * turn.sin() + b * turn.cos()], 1) * chroma
    light = lab[:, :1]
    light = 1 - light if dice.random() < 0.25 else 0.6 + (light - 0.6) * dice.uniform(0.4, 1.4)
    return srgb(torch.cat([light.clamp(0, 1), turned], 1)), alpha


def shaded(colours: Tensor, alpha: Tensor, dice: random.Random) -> Drawings:
    """Light from one side, or round its middle."""
    ramp = torch.linspace(-1, 1, colours.shape[-1], device=colours.device)
    x, y = ramp[None, :], ramp[:, None]
    slope = dice.choice((y + 0 * x, 0.7 * (x + y), x**2 + y**2 - 0.5))
    return colours - dice.uniform(0.12, 0.3) * slope, alpha


def wobbling(colours: Tensor, alpha: Tensor, dice: random.Random) -> Drawings:
    """An unsteady line."""
    whole = warped(torch.cat([colours * alpha, alpha], 1), dice.uniform(0.01, 0.03), dice.choice((12, 20, 32)))
    return whole[:, :3] / whole[:, 3:].clamp_min(1e-3), whole[:, 3:]


def warped(pictures: Tensor, reach: float, knots: int) -> Tensor:
    """Pictures [B, C, H, W], every part of them moved by about `reach` of half the side, smoothly between knots."""
    field = reach * torch.randn(len(pictures), 2, knots, knots, device=pictures.device)
    field = functional.interpolate(field, pictures.shape[-2:], mode="bicubic", align_corners=False).movedim(1, -1)
    still = torch.eye(2, 3, device=pictures.device).expand(len(pictures), -1, -1)
    where = functional.affine_grid(still, pictures.shape, align_corners=False) + field
    return functional.grid_sample(pictures, where, padding_mode="border", align_corners=False)


Change = Callable[[Tensor, Tensor, random.Random], Drawings]
CHANGES: list[Change] = [
    outlined, lined, thick, blurred, posterised, rounded, recoloured, recoloured, shaded, wobbling,
]  # fmt: skip
