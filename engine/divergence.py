"""Distances between images: divergences of per-channel Gaussians, for all pairs of images at once.

Two 1-D Gaussians differ by two numbers only, whatever their unit: `shift` = (m1 - m2)^2 / (s1 s2) and
`stretch` = (s1 - s2)^2 / (s1 s2). Both distances are written in these, so no difference is too small to be seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from types import MappingProxyType

import numpy as np
import torch
from scipy.integrate import trapezoid
from scipy.interpolate import RectBivariateSpline

from .moments import Moments

TILE = 1 << 18  # elements worked on at once: on a CPU a tile stays in its cache
LN_2 = math.log(2)

CELLS = 256  # along either side of the Jensen-Shannon table: one channel is within 1.5 % of the truth, a mean 0.1 %
KNOTS = 64  # where the table is computed; a cubic spline carries it to the cells
HALF_SHIFT, HALF_STRETCH = 4.0, 2.0  # the values half way along the table's sides


class FeaturesNotFinite(ValueError):
    """Moments that hold NaN or infinity."""

    def __init__(self) -> None:
        super().__init__("The model's features are not finite numbers (NaN or infinite).")


def pairwise(moments: Moments, distance: str) -> torch.Tensor:
    """Distances [groups, images, images] from moments [images, groups, channels]; float64, symmetric, zero diagonal.

    A group is one feature of one layer; each is a set of images of its own. `distance` names an entry of DISTANCES; a
    value is the mean over channels of the divergence of two 1-D Gaussians.
    Raises FeaturesNotFinite.
    """
    images, groups, channels = moments.mean.shape
    found = moments.mean.new_zeros(groups, images, images, dtype=torch.float64)
    rows = [(rows, slice(rows.start, None)) for rows in _tiles(images, groups * channels)]
    _fill(found, moments, moments, rows, distance)
    above = found.triu(1)
    return above + above.mT


def between(one: Moments, others: Moments, distance: str) -> torch.Tensor:
    """Distances [groups, rows, columns] of images [rows, groups, channels] and others [columns, groups, channels].

    As `pairwise`, for two sets that have no image in common.
    """
    rows, groups, channels = one.mean.shape
    found = one.mean.new_zeros(groups, rows, len(others.mean), dtype=torch.float64)
    step = max(1, TILE // (groups * channels * len(others.mean)))
    strips = [(slice(start, min(start + step, rows)), slice(0, None)) for start in range(0, rows, step)]
    _fill(found, one, others, strips, distance)
    return found


def among(sides: Sequence[Moments], distance: str) -> torch.Tensor:
    """`pairwise` of one set of images, `between` of two."""
    return pairwise(sides[0], distance) if len(sides) == 1 else between(sides[0], sides[1], distance)


def _fill(
    found: torch.Tensor, one: Moments, others: Moments, tiles: Sequence[tuple[slice, slice]], distance: str
) -> None:
    """Put the distances of tiles (rows, columns) into `found` [groups, rows, columns]."""
    if not all(bool(part.isfinite().all()) for moments in (one, others) for part in moments):
        raise FeaturesNotFinite
    measure = DISTANCES[distance]

    @torch.inference_mode()
    def fill(tile: tuple[slice, slice]) -> None:
        rows, columns = tile
        mine, theirs = Moments(*(part[rows] for part in one)), Moments(*(part[columns] for part in others))
        found[:, rows, columns] = measure(*_differences(mine, theirs)).mean(-1).double().movedim(-1, 0)

    if len(tiles) == 1:  # not worth a pool
        fill(tiles[0])
        return
    with _one_thread_an_operation() as threads, ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, tiles))


@contextmanager
def _one_thread_an_operation() -> Iterator[int]:
    """The number of threads that torch has, for tiles to be spread over them; within, torch uses one an operation.

    Torch's own way, every operation split over all threads, makes them wait for one another many thousand times, which
    is several times slower whenever another process is busy.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _tiles(images: int, width: int) -> Iterator[slice]:
    """Rows of the matrix of pairs, as many at once as make a TILE with the images from the first of them on."""
    start = 0
    while start < images:
        rows = max(1, TILE // (width * (images - start)))
        yield slice(start, min(start + rows, images))
        start += rows


def _differences(one: Moments, others: Moments) -> tuple[torch.Tensor, torch.Tensor]:
    """`shift` and `stretch` [rows, images, groups, channels] of moments [rows, ...] against [images, ...]."""
    widths = one.std[:, None], others.std
    shift, stretch = (mine[:, None] - theirs for mine, theirs in zip(one, others, strict=True))
    return (shift / widths[0]).mul_(shift.div_(widths[1])), (stretch / widths[0]).mul_(stretch.div_(widths[1]))


def _bhattacharyya(shift: torch.Tensor, stretch: torch.Tensor) -> torch.Tensor:
    """(m1 - m2)^2 / (8 s^2) + 1/2 ln(s^2 / (s1 s2)) with s^2 = (s1^2 + s2^2) / 2 = s1 s2 (1 + stretch / 2).

    What grade_layers_jsd.py, the paper's analysis code, computes, without its cancellation (arXiv 2412.19853).
    """
    half = stretch / 2
    return shift.div_(8).div_(1 + half).add_(half.log1p_(), alpha=0.5)


def _jensen_shannon(shift: torch.Tensor, stretch: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence in nats: `_growth` times the nearest entry of the table of what that leaves out."""
    near = _cells(shift, HALF_SHIFT).mul_(CELLS + 1).add_(_cells(stretch, HALF_STRETCH))
    left_out = _jensen_shannon_table(shift.device).index_select(0, near.flatten()).view_as(shift)
    return left_out.mul_(_growth(shift, stretch)).clamp_(max=LN_2)


def _growth(shift: torch.Tensor, stretch: torch.Tensor) -> torch.Tensor:
    """Like the divergence shift / 8 + stretch / 4 where differences are tiny, and ln 2 where they are huge."""
    return (shift / 8).add_(stretch, alpha=0.25).reciprocal_().add_(1 / LN_2).reciprocal_()


def _cells(difference: torch.Tensor, middle: float) -> torch.Tensor:
    """The entry nearest to CELLS * difference / (middle + difference): 0 at no difference, CELLS at infinity."""
    return (difference + middle).reciprocal_().mul_(-CELLS * middle).add_(CELLS + 0.5).int()


@cache
def _jensen_shannon_table(device: torch.device) -> torch.Tensor:
    """Divergence / growth at every pair of cells, shift by stretch, flat [(CELLS + 1)^2], float32, 0.8 to 1.24.

    1 in the first entry and along both far ends, where growth alone is right; smooth between, so that the nearest entry
    is enough.
    """
    along = np.arange(KNOTS) / KNOTS
    shift, stretch = HALF_SHIFT * (along / (1 - along))[:, None], HALF_STRETCH * (along / (1 - along))[None, :]
    exact = jensen_shannon_of(np.sqrt(shift), 2 * np.arcsinh(np.sqrt(stretch) / 2))
    growth = _growth(*torch.broadcast_tensors(torch.from_numpy(shift), torch.from_numpy(stretch))).numpy()
    knots = np.ones((KNOTS + 1, KNOTS + 1))
    np.divide(exact, growth, out=knots[:-1, :-1], where=growth > 0)
    at, between = np.linspace(0, 1, KNOTS + 1), np.linspace(0, 1, CELLS + 1)
    table = RectBivariateSpline(at, at, knots)(between, between)
    return torch.from_numpy(table.ravel()).float().to(device)


def jensen_shannon_of(gap: np.ndarray, log_ratio: np.ndarray) -> np.ndarray:
    """True Jensen-Shannon divergence in nats, in [0, ln 2], of N(0, e^r) and N(gap, e^-r) in standard deviations.

    `gap` is |m1 - m2| / sqrt(s1 s2) and `log_ratio` ln(s1 / s2), broadcast against each other. A quadrature on nodes
    that follow both Gaussians: 1/2 of the integral of p ln(p / m) + q ln(q / m), m the mixture.
    """
    gap, log_ratio = np.broadcast_arrays(gap, log_ratio)
    gap, wide = gap[..., None], np.exp(np.minimum(log_ratio[..., None], _LARGEST_LOG_RATIO) / 2)
    narrow = 1 / wide
    nodes = np.sort(np.concatenate([_NODES * wide, gap + _NODES * narrow], -1), -1)
    log_p, log_q = _log_density(nodes, wide), _log_density(nodes - gap, narrow)
    log_m = np.logaddexp(log_p, log_q) - LN_2
    integrand = np.exp(log_p) * (log_p - log_m) + np.exp(log_q) * (log_q - log_m)
    return trapezoid(integrand, nodes, axis=-1) / 2


_NODES = np.linspace(-9, 9, 601)  # in standard deviations
_LARGEST_LOG_RATIO = 12.0  # one Gaussian 160,000 times wider than the other: the divergence is ln 2


def _log_density(distance: np.ndarray, width: np.ndarray) -> np.ndarray:
    return -0.5 * (distance / width) ** 2 - np.log(width * math.sqrt(2 * math.pi))


DISTANCES: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = MappingProxyType(
    {"jensen_shannon": _jensen_shannon, "bhattacharyya": _bhattacharyya}
)
"""Divergences of two Gaussians from `shift` and `stretch`, which they may write to."""
