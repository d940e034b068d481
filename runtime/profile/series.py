"""How a series of clusters is read, as plain clusters or as a crossed series, and scored level by level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from ...engine.crossed import CrossedSums, Series, Shuffled, is_crossed, looks_crossed, separation
from ...engine.profile import CROSSED, LOOKS_CROSSED, NAMES_UNUSED, PLAIN
from ...engine.scoring import Scores, Separation, scores_of, separation_of


def scoring_of(styles: Sequence[int], subjects: Sequence[str], seed: int) -> Scoring:
    """Crossed where one subject at least stands in two clusters and another subject beside it, else plain."""
    series = Series.of(styles, subjects)
    if is_crossed(series):
        return _Crossed(series, subjects, seed)
    return _Plain(styles, any(subjects), seed)


class Scoring(ABC):
    """Takes distances of one noise level after another and gives scores of each at once, tests at the end."""

    images: int

    @abstractmethod
    def add(self, distances: torch.Tensor) -> Scores:
        """Scores [F, L] of one more noise level from distances [F, L, images, images]."""

    @abstractmethod
    def content(self) -> Scores | None:
        """Content scores [F, T, L] of the levels so far, where the series is crossed."""

    @abstractmethod
    def facts(self, distance: str) -> dict[str, Any]:
        """For the provenance: the estimator, how the series was read, and whether its clusters differ."""


class _Plain(Scoring):
    def __init__(self, styles: Sequence[int], labelled: bool, seed: int) -> None:
        self.images, self._styles, self._labelled, self._seed = len(styles), styles, labelled, seed
        self._distances: list[torch.Tensor] = []

    def add(self, distances: torch.Tensor) -> Scores:
        self._distances.append(distances)
        return scores_of(distances, self._styles, self._seed)

    def content(self) -> None:
        return None

    def facts(self, distance: str) -> dict[str, Any]:
        found = separation_of(torch.stack(self._distances, 1), self._styles, self._seed)
        return {
            "estimator": f"{distance}, score inner / outer, 90 % bootstrap over clusters",
            "series": self._read(),
            "separation": _in_json(found),
        }

    def _read(self) -> str:
        if self._labelled:
            return NAMES_UNUSED
        return LOOKS_CROSSED if looks_crossed(_typical(self._distances), self._styles) else PLAIN


class _Crossed(Scoring):
    def __init__(self, series: Series, subjects: Sequence[str], seed: int) -> None:
        self.images, self._series, self._subjects, self._seed = len(subjects), series, subjects, seed
        self._content: list[Scores] = []
        self._shuffled: list[Shuffled] = []

    def add(self, distances: torch.Tensor) -> Scores:
        sums = CrossedSums(self._series, distances.shape[:-2], self._seed)
        pictures = torch.arange(self.images)
        sums.add(distances, pictures, pictures)
        style, content = sums.scores()
        self._content.append(content)
        self._shuffled.append(sums.shuffled())
        return style

    def content(self) -> Scores:
        return Scores(*(torch.stack(part, 1) for part in zip(*self._content, strict=True)))

    def facts(self, distance: str) -> dict[str, Any]:
        shuffled = Shuffled(*(torch.stack(part, 1) for part in zip(*self._shuffled, strict=True)))
        style, content = separation(shuffled)
        return {
            "estimator": f"{distance}, crossed score, 90 % jackknife over styles and subjects",
            "series": CROSSED,
            "subjects": dict(Counter(filter(None, self._subjects))),
            "separation": _in_json(style),
            "content_separation": _in_json(content),
        }


def _in_json(found: Separation) -> dict[str, float]:
    return {"p": found.overall, "share": float((found.each <= 0.05).double().mean())}


def _typical(levels: Sequence[torch.Tensor]) -> torch.Tensor:
    """Distances [images, images] over all features, levels and layers, each of which counts the same."""
    total = sum((level / level.mean((-1, -2), keepdim=True).clamp(min=1e-30)).sum((0, 1)) for level in levels)
    return total / sum(level.shape[0] * level.shape[1] for level in levels)
