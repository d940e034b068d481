"""Metadata by noise level, and noise levels by resolution: control signals kept apart from what a picture means.

Metadata such as a picture's size enters late in denoising, along a power-cosine curve, so that it acts on detail and
leaves the layout to the prompt (after arXiv 2411.03177; the curve has the form of MDT's guidance schedule).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable

import torch

LEVELS = 1000
"""Noise levels at which a schedule is read to turn a sigma back into a percent."""


def power_cosine(percent: float, power: float) -> float:
    """gamma in [0, 1] at a percent of the schedule: (1 - cos(pi * percent^power)) / 2.

    0 at the start and 1 at the end; a higher power enters later, and power 0 is 1 all the time.
    """
    return (1 - math.cos(math.pi * percent**power)) / 2


def percent_of(sigma: float, to_sigma: Callable[[float], float]) -> float:
    """The percent of the schedule at a sigma, linear between LEVELS of them, clamped to [0, 1].

    `to_sigma` falls. It is asked a dozen times, and answers on the GPU where ComfyUI keeps a schedule there.
    """
    levels = range(1, LEVELS)
    above = bisect.bisect_left(levels, -sigma, key=lambda level: -to_sigma(level / LEVELS))  # those noisier than sigma
    if above in (0, len(levels)):
        return float(above > 0)
    high, low = (to_sigma(level / LEVELS) for level in (above, above + 1))
    return (above + (high - sigma) / (high - low)) / LEVELS


def between_sizes(early: torch.Tensor, late: torch.Tensor, gamma: float) -> torch.Tensor:
    """Sizes above 0 on the way from `early` to `late`, geometrically: doubling is the same step everywhere."""
    return torch.exp(torch.lerp(early.log(), late.log(), gamma)) if 0 < gamma < 1 else (late if gamma else early)


def between(early: torch.Tensor, late: torch.Tensor, gamma: float) -> torch.Tensor:
    """Values on the way from `early` to `late`, linearly, and exact at both ends."""
    return torch.lerp(early, late, gamma) if 0 < gamma < 1 else (late if gamma else early)


def sinusoid_value(block: torch.Tensor) -> torch.Tensor:
    """The whole numbers [...] that sinusoidal embeddings [..., 2 * half] (cosines, then sines) were made of.

    Read from the lowest of the frequencies 10000^(-i / half), which tells numbers up to 29,000 apart.
    """
    half = block.shape[-1] // 2
    frequency = 10000.0 ** (-(half - 1) / half)
    return (torch.atan2(block[..., -1], block[..., half - 1]) / frequency).round()


def resolution_ratio(width: int, height: int, trained: int) -> float:
    """How many times longer the sides of a picture are than those of the square a model was trained on."""
    return math.sqrt(width * height) / trained


def shifted_sigmas(sigmas: torch.Tensor, ratio: float, flow: bool) -> torch.Tensor:
    """A falling schedule [T + 1] for pictures whose sides are `ratio` times as long, its endpoints kept.

    More tokens average more noise away, so the same uncertainty needs sigma * ratio (eps, v), or, in flow models, whose
    time t is sigma / (1 + sigma), t' = ratio t / (1 + (ratio - 1) t): one law, that of SD3's shift (arXiv 2403.03206,
    eq. 23). A model knows no sigma above its highest, so t is stretched to [0, 1] over the schedule before the shift
    and back after it. A last sigma of 0 stays 0. Ratio 1 returns the schedule itself.
    """
    if ratio == 1 or len(sigmas) < 2:
        return sigmas
    levels = sigmas[:-1] if float(sigmas[-1]) == 0 else sigmas
    if len(levels) < 2:
        return sigmas
    times = levels.double() if flow else levels.double() / (1 + levels.double())
    high, low = times[0], times[-1]
    stretched = (times - low) / (high - low)
    times = low + (high - low) * ratio * stretched / (1 + (ratio - 1) * stretched)
    shifted = (times if flow else times / (1 - times)).to(sigmas)
    shifted[0], shifted[-1] = levels[0], levels[-1]
    return torch.cat((shifted, sigmas[len(levels) :]))
