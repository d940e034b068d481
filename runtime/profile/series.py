"""How a series of clusters is read, as plain clusters or as a crossed series, and scored from tiles of distances."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch

from ...engine.crossed import CrossedSums, Shuffled, is_crossed, looks_crossed
from ...engine.crossed import separation as crossed_separation
from ...engine.plain import PlainSums, separation
from ...engine.profile import CROSSED, LOOKS_CROSSED, NAMES_UNUSED, PLAIN
from ...engine.sampling import MOST_PAIRS, groups_of, pairs_in, portions_of
from ...engine.scoring import Scores, Separation
from ...engine.series import Series


def scoring_of(
    styles: Sequence[int],
    subjects: Sequence[str],
    shape: tuple[int, int, int],
    seed: int,
    most_pairs: int = MOST_PAIRS,
    portion: int | None = None,
) -> Scoring:
    """Crossed where one subject at least stands in two clusters and another subject beside it, else plain.

    `shape` is features, noise levels and layers. Beyond `most_pairs` pairs a sample is looked at. With `portion` the
    series comes in groups of about so many pictures.
    """
    series = Series.of(styles, subjects)
    groups = groups_of(series, most_pairs, seed) if portion is None else portions_of(series, portion, seed)
    kind = _Crossed if is_crossed(series, groups) else _Plain
    return kind(series, subjects, groups, shape, seed)


Kind = TypeVar("Kind", bound="Scoring")
Plain = TypeVar("Plain", bound="_Plain")


class Scoring(ABC):
    """Takes tiles of distances and gives scores and tests; what it holds does not grow with the pictures.

    Pictures are compared inside each of `groups`, by index and ascending.
    """

    def __init__(
        self,
        series: Series,
        subjects: Sequence[str],
        groups: tuple[torch.Tensor, ...],
        shape: tuple[int, int, int],
        seed: int,
    ) -> None:
        self.groups, self._series, self._subjects = groups, series, subjects
        features, levels, layers = shape
        sampled = groups if len(groups) > 1 else ()
        first = self._sums((features, layers), seed, sampled)
        self._levels = [first, *(first.emptied() for _ in range(levels - 1))]

    @property
    def images(self) -> int:
        return len(self._subjects)

    @abstractmethod
    def _sums(self, shape: tuple[int, int], seed: int, sampled: Sequence[torch.Tensor]) -> Any:
        """The sums of one noise level."""

    def emptied(self: Kind) -> Kind:
        """The same with nothing in it, for other tiles of the series."""
        found = copy.copy(self)
        found._levels = [sums.emptied() for sums in self._levels]
        return found

    def add(self, level: int, tile: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> None:
        """Take distances [F, L, rows, columns] of pictures of one group; every pair of a group comes in one tile.

        On the diagonal, `rows` and `columns` are the same.
        """
        self._levels[level].add(tile, rows, columns)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All that has been summed, by name."""
        return {
            f"{level}.{name}": part for level, sums in enumerate(self._levels) for name, part in sums.tensors.items()
        }

    def take(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Add what another scoring of the same series has summed over other tiles."""
        for name, part in self.tensors.items():
            part += tensors[name]

    @abstractmethod
    def scores(self) -> Scores:
        """Scores [F, T, L]."""

    @abstractmethod
    def content(self) -> Scores | None:
        """Content scores [F, T, L], where the series is crossed; their own bounds where no others are known."""

    @abstractmethod
    def facts(self, distance: str) -> dict[str, Any]:
        """For the provenance: the estimator, how the series was read, and whether its clusters differ."""

    def _sample(self) -> dict[str, Any]:
        if len(self.groups) == 1:
            return {}
        return {"pairs": {"measured": pairs_in(self.groups), "of": self.images * (self.images - 1) // 2}}


class _Plain(Scoring):
    def __init__(self, series: Series, *args: Any) -> None:
        super().__init__(series, *args)
        first = self.groups[0]  # where it is looked whether subjects recur
        self._typical = torch.zeros(len(first), len(first), dtype=torch.float64)

    def emptied(self: Plain) -> Plain:
        found = super().emptied()
        found._typical = torch.zeros_like(self._typical)
        return found

    def _sums(self, shape: tuple[int, int], seed: int, sampled: Sequence[torch.Tensor]) -> PlainSums:
        return PlainSums(self._series.styles, shape, seed, sampled)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return super().tensors | {"typical": self._typical}

    def add(self, level: int, tile: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> None:
        super().add(level, tile, rows, columns)
        if torch.isin(rows[:1], self.groups[0]):
            self._add_typical(tile, *(torch.searchsorted(self.groups[0], side) for side in (rows, columns)))

    def _add_typical(self, tile: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> None:
        """Distances over all features, levels and layers, each of which counts the same."""
        scaled = (tile / tile.mean((-1, -2), keepdim=True).clamp(min=1e-30)).sum((0, 1)).cpu()
        self._typical[rows[:, None], columns] += scaled
        if not torch.equal(rows, columns):
            self._typical[columns[:, None], rows] += scaled.T

    def scores(self) -> Scores:
        return _over_levels([sums.scores() for sums in self._levels])

    def content(self) -> None:
        return None

    def facts(self, distance: str) -> dict[str, Any]:
        found = separation(torch.stack([sums.shuffled() for sums in self._levels], 1))
        return {
            "estimator": f"{distance}, score inner / outer, {self._interval()}",
            "series": self._read(),
            "separation": _in_json(found),
            **self._sample(),
        }

    def _interval(self) -> str:
        few = self._series.counts[0] < 3
        return "without interval, which needs three clusters" if few else "90 % bootstrap over clusters"

    def _read(self) -> str:
        if any(self._subjects):
            return NAMES_UNUSED
        styles = self._series.styles[self.groups[0]].tolist()
        return LOOKS_CROSSED if looks_crossed(self._typical, styles) else PLAIN


class _Crossed(Scoring):
    def _sums(self, shape: tuple[int, int], seed: int, sampled: Sequence[torch.Tensor]) -> CrossedSums:
        return CrossedSums(self._series, shape, seed, sampled)

    def scores(self) -> Scores:
        return _over_levels([sums.scores().style for sums in self._levels])

    def content(self) -> Scores:
        found = _over_levels([sums.scores().content for sums in self._levels])
        return found if found.interval[0] is not None else Scores(found.score, found.score.clone(), found.score.clone())

    def facts(self, distance: str) -> dict[str, Any]:
        each = [sums.shuffled() for sums in self._levels]
        style, content = crossed_separation(Shuffled(*(torch.stack(part, 1) for part in zip(*each, strict=True))))
        return {
            "estimator": f"{distance}, crossed score, 90 % jackknife over styles and subjects",
            "series": CROSSED,
            "subjects": dict(Counter(filter(None, self._subjects))),
            "separation": _in_json(style),
            "content_separation": _in_json(content),
            **self._sample(),
        }


def _over_levels(levels: Sequence[Scores]) -> Scores:
    return Scores(*(torch.stack(part, 1) for part in zip(*levels, strict=True)))


def _in_json(found: Separation) -> dict[str, float]:
    return {"p": found.overall, "share": float((found.each <= 0.05).double().mean())}
