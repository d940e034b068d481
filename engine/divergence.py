"""Distances between images: divergences of per-channel Gaussians, for all pairs of images at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial

import numpy as np
import torch
from scipy.integrate import trapezoid
from scipy.interpolate import RectBivariateSpline

from .moments import Moments

Terms = Sequence[torch.Tensor]  # what a divergence needs of every image, each [images, channels]

CPU_PIECE, ACCELERATOR_PIECE = 1 << 17, 1 << 22  # elements worked on at once; on a CPU a few such must fit its cache

# The Jensen-Shannon table: one cell for each combination of the top bits of two float32 numbers.
BINS_PER_OCTAVE = 16
_SHIFT = 23 - 4  # a float32 has 23 bits of mantissa; the first four make 16 bins an octave
_GAP_OCTAVES = (-24, 16)  # of (mean difference)^2 / (std * std); beyond it means differ by 0.0002 or 256 widths
_RATIO_OCTAVES = (-24, 14)  # of ln(std / std)^2; float32 holds no larger ratio


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
        summed = moments.mean.new_zeros(groups, images // 2, images, dtype=torch.float64)
        pieces = [piece for group in range(groups) for piece in _pieces(moments, group)]
        for (group, _), found in zip(pieces, pool.map(partial(_meetings, distance=distance), pieces), strict=True):
            summed[group] += found
        return _as_matrix(summed) / channels


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


def _pieces(moments: Moments, group: int) -> Iterator[tuple[int, Moments]]:
    """Runs of channels of one group."""
    mean, std = moments.mean[:, group], moments.std[:, group]
    elements = CPU_PIECE if mean.device.type == "cpu" else ACCELERATOR_PIECE
    width = max(1, elements // len(mean))
    yield from ((group, Moments(*run)) for run in zip(mean.split(width, -1), std.split(width, -1), strict=True))


@torch.inference_mode()
def _meetings(piece: tuple[int, Moments], distance: str) -> torch.Tensor:
    """Divergences summed over channels, [shifts, images]: image n meets n + shift, two plain slices for each shift."""
    _, moments = piece
    prepare, divergence = DISTANCES[distance]
    images = len(moments.mean)
    around = [torch.cat([term, term[: images // 2]]) for term in prepare(moments)]
    work = [torch.empty_like(around[0][:images]) for _ in range(3)]  # fresh memory would cost as much as the maths
    one = [term[:images] for term in around]
    shifts = range(1, images // 2 + 1)
    return torch.stack([divergence(one, [term[s : s + images] for term in around], work) for s in shifts])


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
    logs = variances.mul_(scale1).mul_(scale2).log_()
    return _sum(gap) / 4 + _sum(logs) / 2


def _jensen_shannon_terms(moments: Moments) -> Terms:
    return moments.mean, moments.std.reciprocal(), moments.std.log()


def _jensen_shannon(one: Terms, other: Terms, work: Terms) -> torch.Tensor:
    """Jensen-Shannon divergence in nats, summed over channels, looked up in `_jensen_shannon_table`.

    Two 1-D Gaussians differ by two numbers only: how far their means lie apart in widths, and the ratio of widths.
    The top bits of those floats are the cell, so cells are equally wide in relative terms and need no logarithm. One
    channel's value is within 1/30 of the true one; errors have no direction, so a layer's mean is within 1/400.
    """
    (mean1, inverse1, log1), (mean2, inverse2, log2) = one, other
    floor = mean1.new_tensor(2.0 ** _GAP_OCTAVES[0])
    gap = torch.sub(mean1, mean2, out=work[0]).square_().mul_(inverse1)
    gap = torch.addcmul(floor, gap, inverse2, out=gap).clamp_(max=2.0 ** _GAP_OCTAVES[1] * 0.99)
    ratio = torch.sub(log1, log2, out=work[1])
    ratio = torch.addcmul(floor, ratio, ratio, out=ratio)
    cell = gap.view(torch.int32).bitwise_right_shift_(_SHIFT)
    cell.add_(ratio.view(torch.int32).bitwise_right_shift_(_SHIFT), alpha=_bins(_GAP_OCTAVES))
    torch.index_select(_jensen_shannon_table(cell.device), 0, cell.flatten(), out=work[2].view(-1))
    return _sum(work[2])


def _sum(values: torch.Tensor) -> torch.Tensor:
    """Sum over channels; torch adds pairwise, so float32 is exact to 1e-6 within a chunk, and chunks add in float64."""
    return values.sum(-1).double()


def _bins(octaves: tuple[int, int]) -> int:
    return (octaves[1] - octaves[0]) * BINS_PER_OCTAVE


def _first_bin(octaves: tuple[int, int]) -> int:
    return int(torch.tensor(2.0 ** octaves[0]).view(torch.int32)) >> _SHIFT


def _centres(octaves: tuple[int, int]) -> np.ndarray:
    """The middle of each bin: an octave is 16 bins of equal width, as float32 counts."""
    within = 1 + (np.arange(BINS_PER_OCTAVE) + 0.5) / BINS_PER_OCTAVE
    return np.concatenate([2.0**octave * within for octave in range(*octaves)])


@cache
def _jensen_shannon_table(device: torch.device) -> torch.Tensor:
    """The divergence at every cell's centre, flat, float32, ratio by gap, behind as many zeros as the bits count from.

    Computed on a grid of octaves and carried to the cells by a cubic spline of ln(JSD / its second-order form),
    which is nearly flat: the spline's error is below 1e-4 of the value, half a cell's width below 1/32.
    """
    gaps, ratios = _octave_marks(_GAP_OCTAVES), _octave_marks(_RATIO_OCTAVES)
    exact = jensen_shannon_of(np.sqrt(gaps)[None, :], np.sqrt(ratios)[:, None])
    bend = np.log(exact / _second_order(gaps[None, :], ratios[:, None]))
    spline = RectBivariateSpline(np.log2(ratios), np.log2(gaps), bend)
    gaps, ratios = _centres(_GAP_OCTAVES), _centres(_RATIO_OCTAVES)
    values = np.exp(spline(np.log2(ratios), np.log2(gaps))) * _second_order(gaps[None, :], ratios[:, None])
    first = _first_bin(_RATIO_OCTAVES) * _bins(_GAP_OCTAVES) + _first_bin(_GAP_OCTAVES)
    table = torch.zeros(first + values.size)
    table[first:] = torch.from_numpy(np.minimum(values, math.log(2)).ravel())
    return table.to(device)


def _octave_marks(octaves: tuple[int, int]) -> np.ndarray:
    return 2.0 ** np.arange(octaves[0], octaves[1] + 1)


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
