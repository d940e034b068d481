"""Hands: ways of drawing the same scene that differ in geometry only, as artists' edge maps do.

A hand bends the coordinates that shapes are drawn in, the shapes' signed distances, or the distance to the nearest
contour. Colours, textures and what is where stay the same. Coordinates and distances are [B, H, W] in units where the
picture spans [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Warp = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # x, y and phases [B, 6, 1, 1] of each picture's own
Bend = Callable[[Tensor], Tensor]

COARSE = 8  # cells across the picture of the angular hand
MELT = 12  # half windows of the rounded hand across the picture


def steady(x: Tensor, y: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
    return x, y


def same(distance: Tensor) -> Tensor:
    return distance


class Hand(NamedTuple):
    """How a hand draws; every default changes nothing."""

    warp: Warp = steady
    shape: Bend = same
    trace: Bend = same


def wobbly(x: Tensor, y: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
    return x + 0.08 * torch.sin(14 * y + phase[:, 0]), y + 0.08 * torch.sin(14 * x + phase[:, 1])


def zigzag(t: Tensor) -> Tensor:
    """A triangle wave of period 1 in [-1, 1]."""
    return 4 * (t - (t + 0.5).floor()).abs() - 1


def jagged(x: Tensor, y: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
    return x + 0.07 * zigzag(4 * y + phase[:, 0]), y + 0.07 * zigzag(4 * x + phase[:, 1])


def fragmented(x: Tensor, y: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
    """Panes of a broken glass, each shifted."""
    column, row = (2.5 * x + 0.6 * y).floor(), (2.5 * y - 0.6 * x).floor()
    shift = torch.sin(12.9 * column + 78.2 * row + phase[:, 0]), torch.sin(39.3 * column + 11.1 * row + phase[:, 1])
    return x + 0.16 * shift[0], y + 0.16 * shift[1]


def slanted(x: Tensor, y: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
    return x + 0.7 * y, y


def stretched(x: Tensor, y: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
    return 1.8 * x, 0.7 * y


def swirling(x: Tensor, y: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
    angle = 0.8 * torch.cos(6 * torch.hypot(x, y) + phase[:, 0])
    return x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()


def angular(distance: Tensor) -> Tensor:
    """Known at the corners of coarse cells only, with straight lines between: contours become facets."""
    corners = functional.interpolate(distance[:, None], (COARSE, COARSE), mode="bilinear", align_corners=True)
    return functional.interpolate(corners, distance.shape[-2:], mode="bilinear", align_corners=True)[:, 0]


def rounded(distance: Tensor) -> Tensor:
    """Averaged over a window: corners melt, thin parts vanish."""
    reach = max(distance.shape[-1] // MELT, 1)
    smooth = functional.pad(distance[:, None], [2 * reach] * 4, mode="replicate")
    for _ in range(2):
        smooth = functional.avg_pool2d(smooth, 2 * reach + 1, 1)
    return smooth[:, 0]


def doubled(edge: Tensor) -> Tensor:
    """Every contour drawn twice, side by side."""
    return (edge - 0.09).abs()


PLAIN = Hand()
HANDS = {
    "plain": PLAIN,
    "wobbly": Hand(warp=wobbly),
    "jagged": Hand(warp=jagged),
    "fragmented": Hand(warp=fragmented),
    "slanted": Hand(warp=slanted),
    "stretched": Hand(warp=stretched),
    "swirling": Hand(warp=swirling),
    "angular": Hand(shape=angular),
    "rounded": Hand(shape=rounded),
    "doubled": Hand(trace=doubled),
}
