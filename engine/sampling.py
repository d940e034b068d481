"""Which pairs of pictures are looked at: all of them, or a sample of a large series; and in what tiles.

The number of pairs grows with the square of the pictures. Beyond a cap the pictures are dealt into groups, and pairs
are taken inside a group only. A group is a small crossing, some styles by some subjects, so that pairs of every kind
meet in it; within one kind every pair is as likely to be in the sample, so that means over it need no weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement

import torch

from .scoring import REACH, Scores, log_of
from .series import Series

MOST_PAIRS = 250_000  # all pairs of 707 pictures
BLOCK = 256  # pictures along one side of a tile of distances
PARTS = 20  # in which sampled groups are left out in turn
SMALLEST = 12  # pictures of a group on average


def groups_of(series: Series, most_pairs: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Pictures [n] of each group, by index and ascending: one group where all pairs are no more than `most_pairs`.

    Else groups of equal size on average, about `most_pairs` pairs in all, but of no fewer than SMALLEST pictures.
    """
    count = len(series.styles)
    if count * (count - 1) // 2 <= most_pairs:
        return (torch.arange(count),)
    return _dealt(series, max(SMALLEST, 2 * most_pairs // count), seed)


def portions_of(series: Series, size: int, seed: int) -> tuple[torch.Tensor, ...]:
    """The same in groups of about `size` pictures, each of which is a small series of its own."""
    return _dealt(series, size, seed) if size < len(series.styles) else (torch.arange(len(series.styles)),)


def _dealt(series: Series, size: int, seed: int) -> tuple[torch.Tensor, ...]:
    count, (styles, subjects) = len(series.styles), series.counts
    style_sets = max(1, styles // max(2, round(math.sqrt(size))))
    subject_sets = min(max(1, subjects // 2), max(1, round(count / (size * style_sets))))
    parts = max(1, round(count / (size * style_sets * subject_sets)))  # where one style and subject fill a group
    generator = torch.Generator().manual_seed(seed)
    of_subject = torch.randperm(subjects, generator=generator) % subject_sets
    of_style = torch.stack([torch.randperm(styles, generator=generator) % style_sets for _ in range(subject_sets)])
    part = torch.randperm(count, generator=generator) % parts
    subject_set = of_subject[series.subjects]
    key = (subject_set * style_sets + of_style[subject_set, series.styles]) * parts + part
    return tuple((key == one).nonzero()[:, 0] for one in key.unique())


def group_numbers(groups: Sequence[torch.Tensor]) -> torch.Tensor:
    """The group [images] that every picture is in."""
    numbers = torch.empty(sum(map(len, groups)), dtype=torch.long)
    for number, group in enumerate(groups):
        numbers[group] = number
    return numbers


def tiles(count: int, block: int = BLOCK) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows and columns of tiles that hold every pair of `count` pictures once; on the diagonal they are the same."""
    return combinations_with_replacement(torch.arange(count).split(block), 2)


def pairs_in(groups: Sequence[torch.Tensor]) -> int:
    """How many pairs are looked at."""
    return sum(len(group) * (len(group) - 1) // 2 for group in groups)


class PartSums:
    """Sums and numbers of pairs by kind, for at most PARTS parts of the groups: what a sample leaves open."""

    def __init__(self, shape: Sequence[int], kinds: int, groups: int) -> None:
        self.parts = min(PARTS, groups)
        self.sums = torch.zeros(self.parts, *shape, kinds, dtype=torch.float64)
        self.pairs = torch.zeros(self.parts, kinds, dtype=torch.float64)

    def emptied(self) -> PartSums:
        """The same with nothing in it."""
        found = copy.copy(self)
        found.sums, found.pairs = torch.zeros_like(self.sums), torch.zeros_like(self.pairs)
        return found

    def add(self, group: int, sums: torch.Tensor, pairs: torch.Tensor) -> None:
        """Sums [..., kinds] and pairs [kinds] of a tile of the group."""
        self.sums[group % self.parts] += sums
        self.pairs[group % self.parts] += pairs

    def variance(self, inner: int, outer: int) -> torch.Tensor:
        """Variance [...] of ln(mean of one kind / mean of another) over samples, by leaving out each part; 0 for all
        pairs, and for a part alone. Parts that no tile has come from are none."""
        came = self.pairs.sum(-1) > 0
        parts, seen, counted = int(came.sum()), self.sums[came], self.pairs[came]
        if parts < 2:
            return self.sums.new_zeros(self.sums.shape[1:-1])
        sums, pairs = seen.sum(0) - seen, counted.sum(0) - counted
        means = sums / pairs.clamp(min=1).view(parts, *[1] * (sums.ndim - 2), -1)
        logs = log_of(means[..., inner]) - log_of(means[..., outer])
        return (parts - 1) ** 2 / parts * logs.var(0)


def widened(scores: Scores, variance: torch.Tensor) -> Scores:
    """The interval with the spread of the sample beside its own, both in ln score; unchanged where that is 0."""
    score = log_of(scores.score)
    low, high = (
        (score + sign * ((log_of(bound) - score).square() + REACH**2 * variance).sqrt()).exp()
        for sign, bound in ((-1, scores.low), (1, scores.high))
    )
    return Scores(
        scores.score, torch.where(variance > 0, low, scores.low), torch.where(variance > 0, high, scores.high)
    )
