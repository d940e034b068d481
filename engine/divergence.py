"""Distances between images: divergences of per-channel Gaussians, for all pairs of images at once.

Two 1-D Gaussians differ by two numbers only, whatever their unit: `shift` = (m1 - m2)^2 / (4 s1 s2) and
`stretch` = (s1 - s2)^2 / (4 s1 s2). Both distances are written in these, so no difference is too small to be seen, and
both are shift / 2 + stretch where that is tiny.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import cache
from threading import Lock
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import trapezoid
from scipy.interpolate import RectBivariateSpline

from .devices import able
from .moments import Moments

TILE = 1 << 18  # elements worked on at once: on a CPU a tile stays in its cache
WORK = 4  # tensors of a tile's size that the maths needs
LN_2 = math.log(2)
Divergence = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Sides = Sequence[Moments]
"""One set of images, or two."""

BITS = 11  # of a float, exponent first: a cell is an eighth of an octave; one channel is within 1.5 %, a mean 0.1 %
ROW = 2**BITS + 16  # cells of a row; rows that lie a power of two apart would drive one another out of the cache
KNOTS = 64  # where the table is computed; a cubic spline carries it to the cells
HALF_SHIFT, HALF_STRETCH = 1.0, 0.5  # the values half way along the knots


class FeaturesNotFinite(ValueError):
    """Moments that hold NaN or infinity; `place` is that of their set among all."""

    def __init__(self, place: int) -> None:
        super().__init__("The model's features are not finite numbers (NaN or infinite).")
        self.place = place


def pairwise(moments: Moments, distance: str) -> torch.Tensor:
    """Distances [groups, images, images] from moments [images, groups, channels]; float64, symmetric, zero diagonal.

    A group is one feature of one layer; each is a set of images of its own. `distance` names an entry of DISTANCES; a
    value is the mean over channels of the divergence of two 1-D Gaussians.
    Raises FeaturesNotFinite.
    """
    return among([[moments]], distance)[0]


def between(one: Moments, others: Moments, distance: str) -> torch.Tensor:
    """Distances [groups, rows, columns] of images [rows, groups, channels] and others [columns, groups, channels].

    As `pairwise`, for two sets that have no image in common.
    """
    return among([[one, others]], distance)[0]


def among(sets: Iterable[Sides], distance: str) -> list[torch.Tensor]:
    """`pairwise` of each set of images, or `between` of each two: of many layers at once, by all of torch's threads.

    A set is taken from `sets` when its turn comes, by one thread at a time but by any of them, so that a generator can
    make it there and then; what that raises ends the work and is raised here. Raises FeaturesNotFinite.
    """
    found: list[_Found] = []
    tiles = _Shared(_tiles_of(sets, found))
    with _one_thread_an_operation() as threads, ThreadPoolExecutor(threads) as pool, closing(tiles):
        for filled in [pool.submit(_fill, tiles, DISTANCES[distance]) for _ in range(threads)]:
            filled.result()
        return [one.whole() for one in found]


class _Found(NamedTuple):
    """Distances [groups, rows, columns] of a set; of one set of images, those above the diagonal."""

    distances: torch.Tensor
    alone: bool

    def whole(self) -> torch.Tensor:
        if not self.alone:
            return self.distances
        above = self.distances.triu(1)
        return above + above.mT


class _Tile(NamedTuple):
    """Images, as `_Prepared`, and where the distances [groups, rows, columns] of all pairs of them go."""

    rows: _Prepared
    columns: _Prepared
    to: torch.Tensor


def _tiles_of(sets: Iterable[Sides], found: list[_Found]) -> Generator[_Tile]:
    """The tiles of all sets, one set after the other; what they fill is added to `found`."""
    for place, given in enumerate(sets):
        sides = [Moments(*map(able, side)) for side in given]
        if not all(_finite(part) for side in sides for part in side):
            raise FeaturesNotFinite(place)
        prepared = [_prepared(side) for side in sides]
        one, others, alone = prepared[0], prepared[-1], len(sides) == 1
        images, groups, channels = one.mean.shape
        distances = one.mean.new_zeros(groups, images, len(others.mean), dtype=torch.float64)
        found.append(_Found(distances, alone))
        for rows, columns in _tiles(images, len(others.mean), groups * channels, alone):
            yield _Tile(one.some(rows), others.some(columns), distances[:, rows, columns])


def _tiles(rows: int, columns: int, width: int, alone: bool) -> Iterator[tuple[slice, slice]]:
    """Rows by columns, as many rows at once as make a TILE; of a set `alone` hardly more than is above the diagonal."""
    start, stop = 0, rows - 1 if alone else rows
    while start < stop:
        first = start + 1 if alone else 0
        end = start + max(1, TILE // (width * (columns - first)))
        yield slice(start, min(end, stop)), slice(first, columns)
        start = end


class _Shared(Iterator[_Tile]):
    """Tiles for several threads, each of which gets others."""

    def __init__(self, tiles: Generator[_Tile]) -> None:
        self._tiles, self._lock = tiles, Lock()

    def __next__(self) -> _Tile:
        with self._lock:
            return next(self._tiles)

    def close(self) -> None:
        """There are no more."""
        with self._lock:
            self._tiles.close()


@torch.no_grad()
def _fill(tiles: Iterator[_Tile], measure: Divergence) -> None:
    """What one thread does, in memory of its own."""
    work = _Work()
    for tile in tiles:
        tile.to.copy_(measure(*_differences(tile.rows, tile.columns, work)).mean(-1).movedim(-1, 0))


def _finite(part: torch.Tensor) -> bool:
    """Whether all of it is. A finite sum says so at once, and a sum that is not may be of large numbers."""
    return bool(part.sum().isfinite()) or bool(part.isfinite().all())


class _Work:
    """Tensors to work in, for one thread: fresh memory for every step costs more than the maths."""

    def __init__(self) -> None:
        self._held = torch.empty(WORK, 0)

    def like(self, shape: Sequence[int], device: torch.device) -> tuple[torch.Tensor, ...]:
        """WORK tensors of a shape, with anything in them."""
        count = math.prod(shape)
        if self._held.shape[1] < count or self._held.device != device:
            self._held = torch.empty(WORK, count, device=device)
        return tuple(one[:count].view(*shape) for one in self._held)


@contextmanager
def _one_thread_an_operation() -> Iterator[int]:
    """The number of threads that torch has, for tiles to be spread over them; within, torch uses one an operation.

    Torch's own way, every operation split over all threads, makes them wait for one another many thousand times, which
    is several times slower whenever another process is busy. A thread that has helped torch spins for milliseconds
    afterwards, so even small steps between the tiles belong inside.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


class _Prepared(NamedTuple):
    """Moments and (2 s)^-1/2, of which two make the unit in which their images differ."""

    mean: torch.Tensor
    std: torch.Tensor
    unit: torch.Tensor

    def some(self, images: slice) -> _Prepared:
        return _Prepared(*(part[images] for part in self))


def _prepared(moments: Moments) -> _Prepared:
    mean, std = moments.mean.float(), moments.std.float()
    return _Prepared(mean, std, (2 * std).rsqrt())


def _differences(one: _Prepared, others: _Prepared, work: _Work) -> tuple[torch.Tensor, ...]:
    """`shift` and `stretch` [rows, images, groups, channels] of moments [rows, ...] against [images, ...], and two
    tensors more to work in."""
    shift, stretch, unit, spare = work.like((len(one.mean), *others.mean.shape), one.mean.device)
    torch.mul(one.unit[:, None], others.unit, out=unit)
    torch.sub(one.mean[:, None], others.mean, out=shift).mul_(unit).square_()
    torch.sub(one.std[:, None], others.std, out=stretch).mul_(unit).square_()
    return shift, stretch, unit, spare


def _bhattacharyya(
    shift: torch.Tensor, stretch: torch.Tensor, work: torch.Tensor, _spare: torch.Tensor
) -> torch.Tensor:
    """(m1 - m2)^2 / (8 s^2) + 1/2 ln(s^2 / (s1 s2)) with s^2 = (s1^2 + s2^2) / 2 = s1 s2 (1 + 2 stretch).

    What grade_layers_jsd.py, the paper's analysis code, computes, without its cancellation (arXiv 2412.19853).
    """
    twice = stretch.mul_(2)
    return shift.div_(torch.add(twice, 1, out=work)).add_(twice.log1p_()).mul_(0.5)


def _jensen_shannon(
    shift: torch.Tensor, stretch: torch.Tensor, work: torch.Tensor, spare: torch.Tensor
) -> torch.Tensor:
    """Jensen-Shannon divergence in nats: 1 / `_slowness` times the cell of the table of what that leaves out."""
    cells = _cells(stretch, work).add_(_cells(shift, spare), alpha=ROW)
    slowness = _slowness(shift, stretch, out=shift)
    table = _jensen_shannon_table(shift.device)
    torch.index_select(table, 0, cells.view(-1), out=stretch.view(-1))
    return stretch.div_(slowness).clamp_(max=LN_2)


def _slowness(shift: torch.Tensor, stretch: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """1 / (shift / 2 + stretch), like the divergence where differences are tiny, + 1 / ln 2, the most it can be."""
    return torch.add(stretch, shift, alpha=0.5, out=out).reciprocal_().add_(1 / LN_2)


def _cells(difference: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The first bits of a float32 that is not negative, which part the numbers evenly in octaves."""
    return torch.bitwise_right_shift(difference.view(torch.int32), 31 - BITS, out=out.view(torch.int32))


@cache
def _jensen_shannon_table(device: torch.device) -> torch.Tensor:
    """Divergence times slowness in the middle of every pair of cells, shift by stretch, flat [2^BITS * ROW], float32.

    0.8 to 1.24: 1 in the first cell and along both far ends, where slowness alone is right; smooth between, so that one
    number a cell is enough.
    """
    along = np.arange(KNOTS) / KNOTS
    shift, stretch = HALF_SHIFT * (along / (1 - along))[:, None], HALF_STRETCH * (along / (1 - along))[None, :]
    exact = jensen_shannon_of(2 * np.sqrt(shift), 2 * np.arcsinh(np.sqrt(stretch)))
    knots = np.ones((KNOTS + 1, KNOTS + 1))
    slowness = _slowness(torch.from_numpy(shift), torch.from_numpy(stretch)).numpy()
    np.multiply(exact, slowness, out=knots[:-1, :-1], where=np.isfinite(slowness))
    at, middles = np.linspace(0, 1, KNOTS + 1), _middles()
    table = RectBivariateSpline(at, at, knots)(middles / (HALF_SHIFT + middles), middles / (HALF_STRETCH + middles))
    return torch.from_numpy(np.pad(table, ((0, 0), (0, ROW - len(middles)))).ravel()).float().to(device)


def _middles() -> np.ndarray:
    """The number in the middle of each cell [2^BITS]; the last ones, for infinity, hold the largest."""
    largest = np.float32(np.finfo(np.float32).max).view(np.int32)
    starts = np.minimum(np.arange(2**BITS + 1) << 31 - BITS, largest).astype(np.int32).view(np.float32)
    return (starts[:-1].astype(np.float64) + starts[1:]) / 2


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


DISTANCES: Mapping[str, Divergence] = MappingProxyType(
    {"jensen_shannon": _jensen_shannon, "bhattacharyya": _bhattacharyya}
)
"""Divergences of two Gaussians from `shift`, `stretch` and two tensors to work in; they may write to all."""
