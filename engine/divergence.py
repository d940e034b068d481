"""Distances between images: divergences of per-channel Gaussians, for all pairs of images at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial

import numpy as np
import torch
from scipy.integrate import trapezoid
from scipy.interpolate import RectBivariateSpline

from .moments import Moments

Terms = Sequence[torch.Tensor]  # what a divergence needs of every image, and as many again for its work

CPU_PIECE, ACCELERATOR_PIECE = 1 << 18, 1 << 24  # elements worked on at once: on a CPU the work stays in its cache

# The Jensen-Shannon table: one cell for each combination of the top bits of two float32 numbers.
BINS_PER_OCTAVE = 16
_SHIFT = 23 - 4  # a float32 has 23 bits of mantissa; the first four make 16 bins an octave
_FLOOR = -24  # octave of the least value that is told from zero: means differ by 0.0002 widths, widths by 0.02 %
_GAP_TOP = 16  # (mean difference)^2 / (std * std); from here, 256 widths, the divergence is ln 2 as float32 sees it
_RATIO_TOP = 14  # ln(std / std)^2; float32 holds no larger ratio
_FLOAT_TOP = 129  # the octave behind the last of float32, which is infinity's: no gap needs a bound of its own


def pairwise(moments: Moments, distance: str) -> torch.Tensor:
    """Distances [groups, images, images] from moments [images, groups, channels]; float64, symmetric, zero diagonal.

    A group is one feature of one layer; each is a set of images of its own. `distance` names an entry of DISTANCES; a
    value is the mean over channels of the divergence of two 1-D Gaussians.
    Raises ValueError on moments that are not finite, or for fewer than two images.
    """
    images, groups, channels = moments.mean.shape
    if images < 2:
        raise ValueError("A distance needs two images.")
    with _workers() as pool:
        if not bool(torch.isfinite(moments.mean.sum() + moments.std.sum())):  # one sum is cheaper than asking each
            raise ValueError("The model's features are not finite numbers (NaN or infinite).")
        summed = torch.cat(list(pool.map(partial(_meetings, DISTANCES[distance][1]), *_pieces(moments, distance))))
        return _as_matrix(summed.unflatten(0, (groups, -1))) / channels


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch has, each with operations of its own.

    Torch's way, every operation split over all threads, makes so many small ones wait for one another: many times
    slower when the machine has anything else to do.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def _pieces(moments: Moments, distance: str) -> tuple[list[Terms], list[Terms]]:
    """Every pair of images, as what divergences need of one [1, images, channels] and of the other [shifts, ...].

    Image n meets n + shift, around the end: views that overlap, in runs of shifts, group after group.
    """
    images, groups, channels = moments.mean.shape
    elements = CPU_PIECE if moments.mean.device.type == "cpu" else ACCELERATOR_PIECE
    run = max(1, elements // (images * channels))
    ones, others = [], []
    for group in range(groups):
        terms = DISTANCES[distance][0](Moments(moments.mean[:, group], moments.std[:, group]))
        runs = list(zip(*(_shifted(term).split(run) for term in terms), strict=True))
        others += runs
        ones += [[term[None] for term in terms]] * len(runs)
    return ones, others


def _shifted(term: torch.Tensor) -> torch.Tensor:
    """[shifts, images, channels] from [images, channels], without a copy for each shift."""
    images = len(term)
    around = torch.cat([term, term[: images // 2]])
    return around.unfold(0, images, 1).movedim(-1, 1)[1:]


@torch.inference_mode()
def _meetings(divergence: Callable[[Terms, Terms, Terms], torch.Tensor], one: Terms, other: Terms) -> torch.Tensor:
    """Divergences of one piece, summed over channels, [shifts, images]."""
    work = [torch.empty_like(other[0], memory_format=torch.contiguous_format) for _ in range(2)]
    return divergence(one, other, work)


def _as_matrix(summed: torch.Tensor) -> torch.Tensor:
    """[groups, shifts, images] of image n with n + shift, as symmetric [groups, images, images]."""
    groups, shifts, images = summed.shape
    image = torch.arange(images, device=summed.device)
    partner = (image + torch.arange(1, shifts + 1, device=summed.device)[:, None]) % images
    matrix = summed.new_zeros(groups, images, images)
    matrix[:, image.expand_as(partner), partner] = summed
    return torch.maximum(matrix, matrix.mT)  # of an even number, images half way around meet twice


def _bhattacharyya_terms(moments: Moments) -> Terms:
    return moments.mean, moments.std.square(), (math.sqrt(2) * moments.std).reciprocal()


def _bhattacharyya(one: Terms, other: Terms, work: Terms) -> torch.Tensor:
    """(m1 - m2)^2 / (8 s^2) + 1/2 ln(s^2 / (s1 s2)) with s^2 = (s1^2 + s2^2) / 2, summed over channels.

    What the authors' code computes, without its cancellation (conditional-balance.md 1.2).
    """
    (mean1, variance1, scale1), (mean2, variance2, scale2) = one, other
    variances = torch.add(variance1, variance2, out=work[0])
    gap = torch.sub(mean1, mean2, out=work[1]).square_().div_(variances)
    return _sum(gap) / 4 + _sum_of_logs(variances.mul_(scale1).mul_(scale2)) / 2


def _sum_of_logs(values: torch.Tensor) -> torch.Tensor:
    """Logarithms of values >= 1 summed over channels; values are lost. A product of four costs far less than four logs.

    Widths r times apart give r / 2, so a product leaves float32's range (3e38) only if all four are 8e9 times apart.
    No width is below sqrt(VARIANCE_FLOOR) = 0.003 and none of float16 features above 93,000, which is 3e7 times apart.
    """
    quarter = values.shape[-1] // 4
    first, *others, rest = values.split([quarter] * 4 + [values.shape[-1] - 4 * quarter], -1)
    for each in others:
        first.mul_(each)
    return _sum(first.log_()) + _sum(rest.log_())


def _jensen_shannon_terms(moments: Moments) -> Terms:
    return moments.mean, moments.std.rsqrt(), moments.std.log()


def _jensen_shannon(one: Terms, other: Terms, work: Terms) -> torch.Tensor:
    """Jensen-Shannon divergence in nats, summed over channels, looked up in `_jensen_shannon_table`.

    Two 1-D Gaussians differ by two numbers only: how far their means lie apart in widths, and the ratio of widths.
    The top bits of those floats are the cell, so cells are equally wide in relative terms and need no logarithm. One
    channel's value is within 1/30 of the true one; errors have no direction, so a layer's mean is within 1/400.
    """
    (mean1, scale1, log1), (mean2, scale2, log2) = one, other
    floor = mean1.new_tensor(2.0**_FLOOR)
    gap = torch.sub(mean1, mean2, out=work[0]).mul_(scale1).mul_(scale2)
    ratio = torch.sub(log1, log2, out=work[1])
    gap_bin, ratio_bin = (
        torch.addcmul(floor, apart, apart, out=apart).view(torch.int32).bitwise_right_shift_(_SHIFT)
        for apart in (gap, ratio)
    )
    cell = ratio_bin.add_(gap_bin, alpha=_bins(_FLOOR, _RATIO_TOP))
    torch.index_select(_jensen_shannon_table(cell.device), 0, cell.flatten(), out=gap.view(-1))
    return _sum(gap)


def _sum(values: torch.Tensor) -> torch.Tensor:
    """Sum over channels; torch adds pairwise, so float32 is exact to 1e-6."""
    return values.sum(-1).double()


def _bins(low: int, high: int) -> int:
    return (high - low) * BINS_PER_OCTAVE


def _first_bin() -> int:
    return int(torch.tensor(2.0**_FLOOR).view(torch.int32)) >> _SHIFT


def _centres(top: int) -> np.ndarray:
    """The middle of each bin: an octave is 16 bins of equal width, as float32 counts."""
    within = 1 + (np.arange(BINS_PER_OCTAVE) + 0.5) / BINS_PER_OCTAVE
    return np.concatenate([2.0**octave * within for octave in range(_FLOOR, top)])


@cache
def _jensen_shannon_table(device: torch.device) -> torch.Tensor:
    """The divergence at every cell's centre, flat, float32, gap by ratio, behind as many zeros as the bits count from.

    Computed on a grid of octaves and carried to the cells by a cubic spline of ln(JSD / its second-order form),
    which is nearly flat: the spline's error is below 1e-4 of the value, half a cell's width below 1/32.
    """
    gaps, ratios = _octave_marks(_GAP_TOP), _octave_marks(_RATIO_TOP)
    exact = jensen_shannon_of(np.sqrt(gaps)[:, None], np.sqrt(ratios)[None, :])
    bend = np.log(exact / _second_order(gaps[:, None], ratios[None, :]))
    spline = RectBivariateSpline(np.log2(gaps), np.log2(ratios), bend)
    gaps, ratios = _centres(_GAP_TOP), _centres(_RATIO_TOP)
    values = np.exp(spline(np.log2(gaps), np.log2(ratios))) * _second_order(gaps[:, None], ratios[None, :])
    table = np.full((_bins(_FLOOR, _FLOAT_TOP), len(ratios)), math.log(2), dtype=np.float32)
    table[: len(gaps)] = np.minimum(values, math.log(2))
    behind = _first_bin() * (1 + len(ratios))
    return torch.from_numpy(np.concatenate([np.zeros(behind, np.float32), table.ravel()])).to(device)


def _octave_marks(top: int) -> np.ndarray:
    return 2.0 ** np.arange(_FLOOR, top + 1)


def _second_order(gap: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    return gap / 8 + ratio / 4


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
    log_m = np.logaddexp(log_p, log_q) - math.log(2)
    integrand = np.exp(log_p) * (log_p - log_m) + np.exp(log_q) * (log_q - log_m)
    return trapezoid(integrand, nodes, axis=-1) / 2


_NODES = np.linspace(-9, 9, 601)  # in standard deviations
_LARGEST_LOG_RATIO = 12.0  # one Gaussian 160,000 times wider than the other: the divergence is ln 2


def _log_density(distance: np.ndarray, width: np.ndarray) -> np.ndarray:
    return -0.5 * (distance / width) ** 2 - np.log(width * math.sqrt(2 * math.pi))


DISTANCES = {
    "jensen_shannon": (_jensen_shannon_terms, _jensen_shannon),
    "bhattacharyya": (_bhattacharyya_terms, _bhattacharyya),
}
