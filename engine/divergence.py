"""Distances between images: divergences of per-channel Gaussians, for all pairs of images at once."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from scipy.integrate import trapezoid
from scipy.interpolate import RectBivariateSpline

from .moments import Moments

Terms = Sequence[torch.Tensor]  # what a divergence needs of every image

CPU_PIECE, ACCELERATOR_PIECE = 1 << 19, 1 << 24  # elements worked on at once: on a CPU the work stays in its cache

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
    with pairing(distance) as pairs:
        return pairs(moments)


@contextmanager
def pairing(distance: str) -> Iterator[Callable[[Moments], torch.Tensor]]:
    """`pairwise` for one layer after another: threads and work memory stay until the block ends.

    As many threads as torch has, each with operations of its own. Torch's way, every operation split over all threads,
    makes so many small ones wait for one another: many times slower when the machine has anything else to do.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield _Pairs(distance, pool, threads)
    finally:
        torch.set_num_threads(threads)


class _Pairs:
    def __init__(self, distance: str, pool: ThreadPoolExecutor, threads: int) -> None:
        self._terms, self._divergence = DISTANCES[distance]
        self._pool, self._threads, self._work = pool, threads, _Work()

    def __call__(self, moments: Moments) -> torch.Tensor:
        images, groups, channels = moments.mean.shape
        if images < 2:
            raise ValueError("A distance needs two images.")
        if not bool(torch.isfinite(moments.mean.sum() + moments.std.sum())):  # one sum is cheaper than asking each
            raise ValueError("The model's features are not finite numbers (NaN or infinite).")
        summed = torch.cat(list(self._pool.map(self._meetings, *self._shares(moments))))
        return _as_matrix(summed.unflatten(0, (groups, -1))) / channels

    @torch.inference_mode()
    def _shares(self, moments: Moments) -> tuple[list[Terms], list[Terms]]:
        """Every pair of images, as what divergences need of one [1, images, channels] and of others [shifts, ...].

        Image n meets n + shift, around the end: views that overlap. All threads get a share of the shifts.
        """
        images, groups, _ = moments.mean.shape
        shares = min(images // 2, -(-self._threads // groups))
        ones, others = [], []
        for mean, std in zip(moments.mean.unbind(1), moments.std.unbind(1), strict=True):
            terms = self._terms(Moments(mean, std))
            ones += [[term[None] for term in terms]] * shares
            others += zip(*(_shifted(term).tensor_split(shares) for term in terms), strict=True)
        return ones, others

    @torch.inference_mode()
    def _meetings(self, one: Terms, others: Terms) -> torch.Tensor:
        """Divergences of one share, summed over channels, [shifts, images]; as many shifts at once as make a piece."""
        elements = CPU_PIECE if one[0].device.type == "cpu" else ACCELERATOR_PIECE
        runs = zip(*(term.split(max(1, elements // one[0].numel())) for term in others), strict=True)
        return torch.cat([self._divergence(one, run, self._work.like(run[0])) for run in runs])


class _Work(threading.local):
    """Two tensors for each thread to work in: fresh memory for every piece costs as much as a third of the maths."""

    _held = torch.empty(2, 0)

    def like(self, term: torch.Tensor) -> torch.Tensor:
        """[2, *shape of term], with anything in it."""
        if self._held.device != term.device or self._held.shape[1] < term.numel():
            self._held = term.new_empty(2, term.numel())
        return self._held[:, : term.numel()].unflatten(1, term.shape)


def _shifted(term: torch.Tensor) -> torch.Tensor:
    """[shifts, images, channels] from [images, channels], without a copy for each shift."""
    images = len(term)
    around = torch.cat([term, term[: images // 2]])
    return around.unfold(0, images, 1).movedim(-1, 1)[1:]


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


def _bhattacharyya(one: Terms, other: Terms, work: torch.Tensor) -> torch.Tensor:
    """(m1 - m2)^2 / (8 s^2) + 1/2 ln(s^2 / (s1 s2)) with s^2 = (s1^2 + s2^2) / 2, summed over channels.

    What grade_layers_jsd.py, the paper's analysis code, computes, without its cancellation (arXiv 2412.19853).
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


def _jensen_shannon(one: Terms, other: Terms, work: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence in nats, summed over channels, looked up in `_jensen_shannon_table`.

    Two 1-D Gaussians differ by two numbers only: how far their means lie apart in widths, and the ratio of widths.
    The top bits of those floats are the cell, so cells are equally wide in relative terms and need no logarithm. One
    channel's value is within 1/30 of the true one; errors have no direction, so a layer's mean is within 1/400.
    """
    (mean1, scale1, log1), (mean2, scale2, log2) = one, other
    floor = mean1.new_tensor(2.0**_FLOOR)
    gap, ratio = work
    torch.sub(mean1, mean2, out=gap).mul_(scale1).mul_(scale2)
    torch.sub(log1, log2, out=ratio)
    gap_bin, ratio_bin = torch.addcmul(floor, work, work, out=work).view(torch.int32).bitwise_right_shift_(_SHIFT)
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
