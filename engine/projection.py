"""Linear conditions on a predicted picture: the nearest one that agrees with what is known of it.

A condition is y = A x with A a mean over cells, so that its pseudo-inverse A+ spreads a cell's value over the cell, and
x + A+ (y - A x) is the nearest latent that meets it (DDNM, arXiv 2212.00490, eq. 13).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from .devices import able


def cell_means(x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """A x: means [..., rows, columns] of x [..., h, w] over a grid of cells, which may differ by one in size."""
    return functional.adaptive_avg_pool2d(able(x).flatten(0, -3), grid).unflatten(0, x.shape[:-2]).to(x)


def spread(means: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """A+ y: every cell's value over the whole cell; exact where the grid divides the size."""
    flat = means.flatten(0, -3)[None]
    return functional.interpolate(flat, size=list(size), mode="nearest-exact")[0].unflatten(0, means.shape[:-2])


def projected(x: torch.Tensor, known: torch.Tensor, grid: tuple[int, int], strength: float = 1.0) -> torch.Tensor:
    """x [..., h, w] moved by `strength` toward the nearest one whose cell means are those of `known`, broadcast."""
    missing = cell_means(known, grid) - cell_means(x, grid)
    return x + strength * spread(missing, x.shape[-2:])
