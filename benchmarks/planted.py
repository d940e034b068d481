"""Series whose truth is known: layers with planted amounts of style and content, as moments a model could have given.

A picture's channel means are sqrt(a) style + sqrt(b) subject + noise, all standard normal, widths equal. The
Bhattacharyya distance of two such pictures is the squared difference / 8, so the truth is a closed form:
style score = (b + 1) / (a + b + 1), content score = (a + 1) / (a + b + 1).
"""

from __future__ import annotations

import statistics
from typing import NamedTuple

import torch

from conditional_balance.engine.agreement import spearman
from conditional_balance.engine.crossed import CrossedSums, separation
from conditional_balance.engine.divergence import pairwise
from conditional_balance.engine.moments import Moments
from conditional_balance.engine.plain import scores_of, separation_of
from conditional_balance.engine.series import Series

CHANNELS = 64
LAYERS = 70
BATCH = 250
STYLE_RANGE, CONTENT_RANGE = (0.02, 0.5), (0.05, 2.0)  # variance beside the noise's 1; content is often the stronger


class Planted(NamedTuple):
    """Distances [L, images, images] of a crossed series, and the true scores [L] of its layers."""

    series: Series
    distances: torch.Tensor
    style: torch.Tensor
    content: torch.Tensor


class Ranked(NamedTuple):
    """Rank correlation with the truth, of the crossed scores and of the plain one."""

    style: float
    content: float
    plain: float


def amounts(layers: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Variances [L] of style and of content, independent and even in their logarithm."""
    drawn = torch.rand(2, layers, generator=generator, dtype=torch.float64)
    return tuple(
        low * (high / low) ** one for one, (low, high) in zip(drawn, (STYLE_RANGE, CONTENT_RANGE), strict=True)
    )


def plant(
    style: torch.Tensor, content: torch.Tensor, styles: int, subjects: int, generator: torch.Generator
) -> Planted:
    """One picture of every subject in every style, seen by layers with these variances [L] of style and content."""
    parts = [(style, (styles, 1)), (content, (1, subjects)), (torch.ones_like(style), (styles, subjects))]
    means = sum(
        variance.sqrt()[:, None] * torch.randn(*shape, len(style), CHANNELS, generator=generator).double()
        for variance, shape in parts
    )
    means = means.flatten(0, 1).float()
    cells = torch.cartesian_prod(torch.arange(styles), torch.arange(subjects))
    total = style + content + 1
    distances = pairwise(Moments(means, torch.ones_like(means)), "bhattacharyya")
    return Planted(Series(*cells.T), distances, (content + 1) / total, (style + 1) / total)


def sums_of(planted: Planted) -> CrossedSums:
    images = torch.arange(len(planted.series.styles))
    sums = CrossedSums(planted.series, planted.distances.shape[:-2], seed=0)
    sums.add(planted.distances, images, images)
    return sums


def ranked(styles: int, subjects: int, generator: torch.Generator) -> Ranked:
    planted = plant(*amounts(LAYERS, generator), styles, subjects, generator)
    found = sums_of(planted).scores()
    plain = scores_of(planted.distances, planted.series.styles.tolist(), 0).score
    truths = planted.style, planted.content, planted.style
    scores = found.style.score, found.content.score, plain
    return Ranked(*(spearman(one, truth) for one, truth in zip(scores, truths, strict=True)))


def mean_ranked(styles: int, subjects: int, rounds: int, seed: int = 0) -> Ranked:
    generator = torch.Generator().manual_seed(seed)
    each = [ranked(styles, subjects, generator) for _ in range(rounds)]
    return Ranked(*(statistics.mean(column) for column in zip(*each, strict=True)))


def covered(styles: int, subjects: int, layers: int, seed: int = 0) -> tuple[float, float]:
    """The share of layers whose interval of style, and of content, holds the truth; each layer has its own series."""
    generator = torch.Generator().manual_seed(seed)
    held = [_held(plant(*amounts(count, generator), styles, subjects, generator)) for count in _batches(layers)]
    return tuple(torch.cat(held, 1).double().mean(1).tolist())


def _held(planted: Planted) -> torch.Tensor:
    """Whether the intervals of style and content hold the truth, [2, L]."""
    truths = zip(sums_of(planted).scores(), (planted.style, planted.content), strict=True)
    return torch.stack([(scores.low <= truth) & (truth <= scores.high) for scores, truth in truths])


def false_alarms(styles: int, subjects: int, layers: int, seed: int = 0) -> dict[str, float]:
    """How often p <= .05 where there is no style but content, no content but style, and for the plain test of style."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.cat([_alarms(styles, subjects, count, generator) for count in _batches(layers)], 1)
    names = "style", "content", "style_found", "content_found", "style_found_plain"
    return dict(zip(names, (found <= 0.05).double().mean(1).tolist(), strict=True))


def _alarms(styles: int, subjects: int, layers: int, generator: torch.Generator) -> torch.Tensor:
    """p [5, L] of style and content where there is none, where there is, and of style by the plain test."""
    amount, none = torch.full((layers,), 0.5, dtype=torch.float64), torch.zeros(layers, dtype=torch.float64)
    only_content = plant(none, amount, styles, subjects, generator)
    only_style = plant(amount, none, styles, subjects, generator)
    of_content, of_style = (separation(sums_of(one).shuffled()) for one in (only_content, only_style))
    plain = separation_of(only_style.distances, only_style.series.styles.tolist(), 0)
    return torch.stack([one.each for one in (of_content[0], of_style[1], of_style[0], of_content[1], plain)])


def _batches(layers: int) -> list[int]:
    """How many layers are planted at once, so that memory does not grow with them."""
    return [min(BATCH, layers - start) for start in range(0, layers, BATCH)]
