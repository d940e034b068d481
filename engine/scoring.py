"""Scores: how much closer images of one cluster are than images of different ones, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .texts import quoted

BOOTSTRAPS = 1000
PERMUTATIONS = 999
MASK_ELEMENTS = 1 << 22  # of pair masks at once, so that shuffles of many pictures stay small
INTERVAL = 0.9  # share of bootstrap scores between low and high
REACH = 1.6449  # standard deviations on either side of a Gaussian's mean that hold that share


class Scores(NamedTuple):
    """Score [...] and the bounds [...] of its bootstrap interval, NaN where unknown; lower = more sensitive."""

    score: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    @property
    def interval(self) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        """Both bounds, or None for each where they are unknown."""
        return (None, None) if bool(self.low.isnan().any()) else (self.low, self.high)


class Separation(NamedTuple):
    """Whether the clusters differ at all: p of the mean log score, and p [...] of every score by itself."""

    overall: float
    each: torch.Tensor


class TooFewClusters(ValueError):
    """One cluster, or none: there is nothing to tell apart."""

    def __init__(self, count: int) -> None:
        super().__init__(f"There is {'one' if count else 'no'} cluster: two or more are needed, to tell them apart.")
        self.count = count


class TooFewImages(ValueError):
    """A cluster of one image, or of none: it holds no pair."""

    def __init__(self, cluster: str, count: int) -> None:
        images = "one image" if count else "no image"
        super().__init__(f"The cluster {quoted(cluster)} has {images}: two or more are needed.")
        self.cluster, self.count = cluster, count


def check_clusters(labels: Sequence[int], names: Sequence[str]) -> None:
    """Raises TooFewClusters or TooFewImages unless there are two clusters or more, of two images or more each."""
    if len(names) < 2:
        raise TooFewClusters(len(names))
    counts = torch.bincount(torch.as_tensor(labels), minlength=len(names)).tolist()
    for name, count in zip(names, counts, strict=True):
        if count < 2:
            raise TooFewImages(name, count)


def shuffled_inside(labels: torch.Tensor, groups: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """The labels, and a shuffle of them among the pictures of each group for each row of keys, [1 + shuffles, images].

    `keys` [shuffles, images] are drawn from [0, 1), so that pictures of one group stay together when both are added.
    """
    taken = (keys + groups).argsort(-1)
    shuffled = torch.empty(keys.shape, dtype=labels.dtype)
    shuffled[:, groups.argsort(stable=True)] = labels[taken]
    return torch.cat([labels[None], shuffled])


def ratio(inner: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
    """inner / outer; 1 where nothing differs, NaN where there is no pair to compare with."""
    return torch.where(outer > 0, inner / outer, torch.where(outer.isnan(), outer, 1.0))


def log_of(scores: torch.Tensor) -> torch.Tensor:
    """ln of scores, finite where a score is 0, as that of pictures that are all alike inside their clusters is."""
    return scores.clamp(min=torch.finfo(scores.dtype).tiny).log()


def sureness(scores: Scores) -> float:
    """How far a ranking by scores [..., L] may be believed: its expected correlation with the true one, 0 to 1.

    The root of the share of the spread over layers, in ln score, that is not the scores' own uncertainty; 0 where that
    is unknown.
    """
    score, low, high = (log_of(part) for part in scores)
    noise = ((high - low) / (2 * REACH)).square().mean(-1).nan_to_num(torch.inf)
    total = score.var(-1)
    return float((1 - noise / total.clamp(min=1e-30)).clamp(0, 1).sqrt().mean())
