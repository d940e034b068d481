"""Textures: how a medium's lightness swings over the picture, in about [-1, 1], by coordinates in cycles [B, H, W]."""

from __future__ import annotations

import torch
from torch import Tensor


def wave(t: Tensor) -> Tensor:
    return torch.sin(2 * torch.pi * t)


def noise(i: Tensor, j: Tensor) -> Tensor:
    """A repeatable number in [0, 1) per integer cell."""
    return torch.frac((torch.sin(i * 12.9898 + j * 78.233) * 437.585).abs())


def tiles(a: Tensor, b: Tensor) -> Tensor:
    rim = torch.maximum((torch.frac(a.abs()) - 0.5).abs(), (torch.frac(b.abs()) - 0.5).abs())
    grout = torch.sigmoid(40 * (rim - 0.43))
    return (2 * noise(a.floor(), b.floor()) - 1) * (1 - grout) + 1.4 * grout


def bricks(a: Tensor, b: Tensor) -> Tensor:
    row = (2 * a).floor()
    along = b + 0.5 * torch.remainder(row, 2)
    joint = torch.maximum(0.5 * (torch.remainder(2 * a, 1) - 0.5).abs() + 0.25, (torch.remainder(along, 1) - 0.5).abs())
    mortar = torch.sigmoid(50 * (joint - 0.445))
    return (2 * noise(along.floor(), row) - 1) * (1 - mortar) - 1.6 * mortar


def blobs(a: Tensor, b: Tensor) -> Tensor:
    wash = torch.sin(2.1 * a + 1.7 * torch.sin(1.3 * b)) * torch.sin(1.9 * b + 1.3 * torch.sin(1.7 * a + 2))
    return 0.9 * wash + 0.3


TEXTURES = {
    "stripes": lambda a, b: wave(a),
    "waves": lambda a, b: wave(a + 0.35 * torch.sin(1.6 * b)),
    "zigzag": lambda a, b: wave(a + 0.9 * (torch.remainder(0.6 * b, 1) - 0.5).abs()),
    "dots": lambda a, b: torch.tanh(2.2 * (wave(a) * wave(b))),
    "hatch": lambda a, b: torch.maximum(wave(a), wave(b)) * 1.2 - 0.35,
    "tiles": tiles,
    "bricks": bricks,
    "blobs": blobs,
}
