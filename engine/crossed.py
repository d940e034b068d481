"""Scores of a crossed series, in which the same subjects recur in several styles: style and content told apart.

Two pictures of one subject in two styles are near to each other because of the subject. The plain score counts them as
"different" and so hides the style; here they are kept out of the style score, and make the content score.

    style   = mean distance(same style, other subject) / mean distance(other style, other subject)
    content = mean distance(same subject, other style) / mean distance(other style, other subject)

Everything is a sum over pairs, gathered from tiles of distances: what is held does not grow with the pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, islice
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import t as student

from .scoring import INTERVAL, PERMUTATIONS, Scores, Separation

STYLE, CONTENT, BASE = range(3)  # same style and other subject; same subject and other style; neither the same
MASK_ELEMENTS = 1 << 22  # of pair masks at once, so that shuffles of many pictures stay small


class Series(NamedTuple):
    """Each picture's style and subject [images], both counted from 0 upward."""

    styles: torch.Tensor
    subjects: torch.Tensor

    @classmethod
    def of(cls, styles: Sequence[int], subjects: Sequence[str | None]) -> Series:
        """A picture without a subject has one of its own, which meets no other picture of itself."""
        names = [(name, 0) if name else (None, place) for place, name in enumerate(subjects)]
        known = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return cls(torch.as_tensor(styles), torch.tensor([known[name] for name in names]))

    @property
    def counts(self) -> tuple[int, int]:
        """Styles and subjects."""
        return int(self.styles.max()) + 1, int(self.subjects.max()) + 1

    def kinds(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Which pairs are of each kind, [3, rows, columns]; a picture and itself, or its twin, are of none."""
        style = self.styles[rows, None] == self.styles[columns]
        subject = self.subjects[rows, None] == self.subjects[columns]
        return torch.stack([style & ~subject, subject & ~style, ~style & ~subject])


class CrossedScores(NamedTuple):
    """Both scores of one run, [...] each; lower = more sensitive."""

    style: Scores
    content: Scores


class Shuffled(NamedTuple):
    """ln of both scores for the true labels, which come first, and for shuffled ones: [..., 1 + shuffles]."""

    style: torch.Tensor
    content: torch.Tensor


TRIPLES = 60  # of clusters that are looked through
CLOSED = 0.6  # share of pictures whose partner's partner's partner they are themselves, in a series that looks crossed
NEARER = 0.9  # distance of partners over that of others


def looks_crossed(distances: torch.Tensor, styles: Sequence[int]) -> bool:
    """Whether subjects seem to recur in the clusters of `distances` [images, images], though nobody has named them.

    Pictures of every two clusters are paired so that the sum of distances is least. Where subjects recur, the partner
    in B of a picture's partner in A is its partner in C as well, and partners are nearer than others. Looks at three
    clusters or more, of three pictures or more.
    """
    member = torch.as_tensor(styles)
    clusters = [(member == style).nonzero()[:, 0] for style in member.unique()]
    large = [cluster for cluster in clusters if len(cluster) >= 3]
    closed, partners, others = [], [], []
    for one, two, three in islice(combinations(large, 3), TRIPLES):
        blocks = [distances[a][:, b] for a, b in ((one, two), (two, three), (three, one))]
        ways = [_partners(block) for block in blocks]
        onward = {second: ways[2].get(third) for second, third in ways[1].items()}
        closed += [onward.get(second) == first for first, second in ways[0].items()]
        partners += [
            float(block[list(way), list(way.values())].mean()) for block, way in zip(blocks, ways, strict=True)
        ]
        others += [float(block.mean()) for block in blocks]
    return bool(closed) and sum(closed) >= CLOSED * len(closed) and sum(partners) <= NEARER * sum(others)


def _partners(block: torch.Tensor) -> dict[int, int]:
    return dict(zip(*(side.tolist() for side in linear_sum_assignment(block.numpy())), strict=True))


def is_crossed(series: Series) -> bool:
    """Whether there are pairs of every kind: at least two subjects, and one of them in two styles."""
    images = torch.arange(len(series.styles))
    return all(any(bool(strip[kind].any()) for strip in _strips(series, images)) for kind in (STYLE, CONTENT, BASE))


def _strips(series: Series, images: torch.Tensor) -> Iterator[torch.Tensor]:
    return (series.kinds(rows, images) for rows in images.split(256))


class CrossedSums:
    """The sums behind both scores, their intervals and their permutation tests, for groups [...] of distances.

    Held for each group: three sums a cell (style, subject), one a style and subject that meet, and two a shuffle.
    """

    def __init__(self, series: Series, groups: Sequence[int], seed: int) -> None:
        self.series = series
        self._labels = [
            _shuffled_inside(series.styles, series.subjects, seed),
            _shuffled_inside(series.subjects, series.styles, seed),
        ]
        self._others = [series.subjects, series.styles]
        self._pairs = _Sums.empty((), series)
        self._distances = _Sums.empty(groups, series)

    def add(self, tile: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> None:
        """Take distances [..., rows, columns] of pictures by index. In the end every ordered pair must have come once.

        So a full symmetric matrix is one tile with `rows` and `columns` all pictures, or any cut of it.
        """
        tile = tile.double().cpu()
        kinds = self.series.kinds(rows, columns).double()
        counted = torch.ones(len(rows), len(columns), dtype=torch.float64)
        for sums, values in ((self._pairs, counted), (self._distances, tile)):
            self._add_cells(sums, values, kinds, rows, columns)
            self._add_shuffles(sums, values, rows, columns)

    def _add_cells(
        self, sums: _Sums, values: torch.Tensor, kinds: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
    ) -> None:
        styles, subjects = self.series.counts
        by_picture = torch.einsum("...rc,krc->...kr", values, kinds)
        sums.cells.index_add_(-1, self.series.styles[rows] * subjects + self.series.subjects[rows], by_picture)
        one = torch.nn.functional.one_hot(self.series.styles[rows], styles).double()
        other = torch.nn.functional.one_hot(self.series.subjects[columns], subjects).double()
        sums.meetings.add_(one.T @ (values * kinds[BASE]) @ other)

    def _add_shuffles(self, sums: _Sums, values: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> None:
        for which, (labels, others) in enumerate(zip(self._labels, self._others, strict=True)):
            row, column = torch.nonzero(others[rows, None] != others[columns], as_tuple=True)
            met = values[..., row, column]
            step = max(1, MASK_ELEMENTS // max(1, len(row)))
            for start in range(0, len(labels), step):
                some = labels[start : start + step]
                same = (some[:, rows[row]] == some[:, columns[column]]).double()
                sums.shuffles[..., which, start : start + step].add_(met @ same.T)

    def scores(self) -> CrossedScores:
        """Both scores and their intervals [...]."""
        return CrossedScores(*(self._with_interval(kind) for kind in (STYLE, CONTENT)))

    def shuffled(self) -> Shuffled:
        """What `separation` needs of these groups."""
        logs = []
        for which in (STYLE, CONTENT):
            total = [sums.cells[..., [which, BASE], :].sum((-1, -2))[..., None] for sums in self._both]
            same = [sums.shuffles[..., which, :] for sums in self._both]
            logs.append(_log_ratio(_mean(*same), _mean(total[0] - same[0], total[1] - same[1])))
        return Shuffled(*logs)

    @property
    def _both(self) -> tuple[_Sums, _Sums]:
        return self._distances, self._pairs

    def _with_interval(self, kind: int) -> Scores:
        """The 90 % interval of ln score, by a jackknife over styles and one over subjects.

        A subject drawn in every style moves all styles together, so neither axis alone holds the whole spread: as in an
        analysis of variance that is the spread of styles plus that of subjects minus what both count. The part to
        subtract is noisy, so the axis whose clusters are scored sets the floor, and half of what the other adds counts
        (intervals then hold planted truths 9 times in 10; `benchmarks/ranking.py`).
        """
        whole, no_style, no_subject, neither = (self._log_score(kind, left) for left in self._left(kind))
        spreads = [_jackknife(no_style), _jackknife(no_subject)]
        own = torch.where(spreads[kind].isnan(), spreads[1 - kind], spreads[kind]).nan_to_num(0)
        more = (spreads[0] + spreads[1] - _interaction(neither) - own).nan_to_num(0).clamp(min=0)
        spread = own + more / 2
        styles, subjects = self.series.counts
        reach = float(student.ppf((1 + INTERVAL) / 2, styles + subjects - 2)) * spread.sqrt()
        score = whole[..., 0].exp()
        return Scores(score, (whole[..., 0] - reach).exp(), (whole[..., 0] + reach).exp())

    def _left(self, kind: int) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
        """Sums of the kind and of the base, for distances and pairs: of all, without each style, subject, and both."""
        parts = [(sums.left(kind), sums.left(BASE)) for sums in self._both]
        for place in range(4):
            yield [(own[place], base[place]) for own, base in parts]

    def _log_score(self, kind: int, left: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        (own, base), (own_pairs, base_pairs) = left
        return _log_ratio(_mean(own, own_pairs), _mean(base, base_pairs))


class _Sums(NamedTuple):
    """Sums over ordered pairs: `cells` [..., 3, styles * subjects] by the first picture's cell, `meetings`
    [..., styles, subjects] of base pairs by the first one's style and the other's subject, `shuffles` [..., 2, n]."""

    cells: torch.Tensor
    meetings: torch.Tensor
    shuffles: torch.Tensor

    @classmethod
    def empty(cls, groups: Sequence[int], series: Series) -> _Sums:
        styles, subjects = series.counts
        shapes = (3, styles * subjects), (styles, subjects), (2, 1 + PERMUTATIONS)
        return cls(*(torch.zeros(*groups, *shape, dtype=torch.float64) for shape in shapes))

    def left(self, kind: int) -> tuple[torch.Tensor, ...]:
        """Sums of a kind: of all pairs [..., 1], without each style [..., S], each subject [..., T], both [..., S * T].

        A pair of one style goes with it once; a pair of two styles is met from either side. A base pair goes with both
        a style and a subject also where one picture has the style and the other the subject.
        """
        cells = self.cells[..., kind, :].unflatten(-1, self.meetings.shape[-2:])
        total = cells.sum((-1, -2))
        style = cells.sum(-1) * (1 if kind == STYLE else 2)
        subject = cells.sum(-2) * (1 if kind == CONTENT else 2)
        shared = 2 * cells + (2 * self.meetings if kind == BASE else 0)
        neither = total[..., None, None] - style[..., None] - subject[..., None, :] + shared
        return total[..., None], total[..., None] - style, total[..., None] - subject, neither


def separation(shuffled: Shuffled) -> tuple[Separation, Separation]:
    """Permutation tests of style and content within the design: one p over all scores, and p [...] of each.

    Styles are shuffled among the pictures of one subject, and subjects among those of one style. So content alone makes
    no style significant, nor style content.
    """
    return _separation(shuffled.style), _separation(shuffled.content)


def _separation(log_scores: torch.Tensor) -> Separation:
    as_low = (log_scores <= log_scores[..., :1] + 1e-12).double()
    mean = log_scores.flatten(0, -2).mean(0)
    return Separation(float((mean <= mean[0] + 1e-12).double().mean()), as_low.mean(-1))


def _shuffled_inside(labels: torch.Tensor, groups: torch.Tensor, seed: int) -> torch.Tensor:
    """The labels, and PERMUTATIONS shuffles of them among the pictures of each group, [1 + shuffles, images]."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.rand(PERMUTATIONS, len(labels), generator=generator, dtype=torch.float64)
    taken = (keys + groups).argsort(-1)  # keys lie in [0, 1): pictures of one group stay together
    places = groups.argsort(stable=True)
    shuffled = torch.empty(PERMUTATIONS, len(labels), dtype=labels.dtype)
    shuffled[:, places] = labels[taken]
    return torch.cat([labels[None], shuffled])


def _mean(sums: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """NaN where there is no pair: what is left there of the sums is rounding."""
    return torch.where(pairs > 0, sums / pairs.clamp(min=1), torch.nan)


def _log_ratio(inner: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
    """ln(inner / outer); 0 where nothing differs, NaN where there is no pair."""
    tiny = torch.finfo(torch.float64).tiny
    ratio = torch.where(outer > 0, inner / outer, torch.where(outer.isnan(), outer, 1.0))
    return ratio.clamp(min=tiny).log()


def _jackknife(left_out: torch.Tensor) -> torch.Tensor:
    """Variance [...] from values [..., n] with one part left out each; NaN where fewer than two can be told."""
    count = left_out.isfinite().sum(-1)
    spread = (left_out - left_out.nanmean(-1, keepdim=True)).square().nansum(-1)
    return torch.where(count > 1, (count - 1) / count * spread, torch.nan)


def _interaction(neither: torch.Tensor) -> torch.Tensor:
    """The part of the variance [...] that both jackknives count, from values [..., S, T] without style and subject."""
    apart = neither - neither.nanmean(-1, keepdim=True) - neither.nanmean(-2, keepdim=True)
    apart = apart + neither.nanmean((-1, -2), keepdim=True)
    styles, subjects = neither.shape[-2:]
    return (styles - 1) * (subjects - 1) / (styles * subjects) * apart.square().nansum((-1, -2))
