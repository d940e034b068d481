"""Scores of a crossed series, in which the same subjects recur in several styles: style and content told apart.

Two pictures of one subject in two styles are near to each other because of the subject. The plain score counts them as
"different" and so hides the style; here they are kept out of the style score, and make the content score.

    style   = mean distance(same style, other subject) / mean distance(other style, other subject)
    content = mean distance(same subject, other style) / mean distance(other style, other subject)

Everything is a sum over pairs, gathered from tiles of distances: what is held does not grow with the pairs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import combinations, islice
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import t as student

from .plain import separation as plain_separation
from .sampling import PartSums, group_numbers, widened
from .scoring import INTERVAL, MASK_ELEMENTS, PERMUTATIONS, Scores, Separation, log_of, ratio, shuffled_inside
from .series import BASE, CONTENT, STYLE, Series


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


def is_crossed(series: Series, groups: Sequence[torch.Tensor] | None = None) -> bool:
    """Whether there are pairs of every kind, inside `groups` if given: two subjects, and one of them in two styles."""
    groups = [torch.arange(len(series.styles))] if groups is None else groups
    kinds = (STYLE, CONTENT, BASE)
    return all(any(bool(strip[kind].any()) for strip in _strips(series, groups)) for kind in kinds)


def _strips(series: Series, groups: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    return (series.kinds(rows, group) for group in groups for rows in group.split(256))


class CrossedSums:
    """The sums behind both scores, their intervals and their permutation tests, for groups [...] of distances.

    Held for each group: three sums a cell (style, subject), one a style and subject that meet, and two a shuffle.
    """

    def __init__(self, series: Series, groups: Sequence[int], seed: int, sampled: Sequence[torch.Tensor] = ()) -> None:
        """`sampled` are the groups of pictures inside which pairs come, where not all pairs do (`engine.sampling`)."""
        self.series = series
        self._group = group_numbers(sampled or [torch.arange(len(series.styles))])
        self._labels = [
            _shuffled_labels(series.styles, series.subjects, self._group, seed),
            _shuffled_labels(series.subjects, series.styles, self._group, seed),
        ]
        self._others = [series.subjects, series.styles]
        self._pairs = _Sums.empty((), series)
        self._distances = _Sums.empty(groups, series)
        self._parts = PartSums(groups, 3, max(1, len(sampled)))

    def emptied(self) -> CrossedSums:
        """Sums of the same series with nothing in them; the shuffles are drawn once."""
        found = copy.copy(self)
        found._pairs, found._distances = (_Sums(*map(torch.zeros_like, one)) for one in (self._pairs, self._distances))
        found._parts = self._parts.emptied()
        return found

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What has been summed so far, to be written down, or added to that of others."""
        named = {"pairs": self._pairs, "distances": self._distances}
        found = {f"{name}.{field}": part for name, sums in named.items() for field, part in sums._asdict().items()}
        return found | {"parts.sums": self._parts.sums, "parts.pairs": self._parts.pairs}

    def add(self, tile: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> None:
        """Take distances [..., rows, columns] of pictures by index; every pair comes in one tile, in either order.

        On the diagonal `rows` and `columns` are the same and the tile is symmetric. A tile lies in one sampled group.
        """
        tile, diagonal = tile.double().cpu(), torch.equal(rows, columns)
        self._add_cells(tile, rows, columns)
        if not diagonal:
            self._add_cells(tile.mT, columns, rows)
        self._add_shuffles(tile, rows, columns, diagonal)

    def _add_cells(self, tile: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> None:
        """Add ordered pairs, as the first picture meets the second."""
        (styles, subjects), kinds = self.series.counts, self.series.kinds(rows, columns).double()
        cell = self.series.styles[rows] * subjects + self.series.subjects[rows]
        one = torch.nn.functional.one_hot(self.series.styles[rows], styles).double()
        other = torch.nn.functional.one_hot(self.series.subjects[columns], subjects).double()
        for sums, values in ((self._pairs, torch.ones_like(tile[(0,) * (tile.ndim - 2)])), (self._distances, tile)):
            sums.cells.index_add_(-1, cell, torch.einsum("...rc,krc->...kr", values, kinds))
            sums.meetings.add_(one.T @ (values * kinds[BASE]) @ other)
        by_kind = torch.einsum("...rc,krc->...k", tile, kinds)
        self._parts.add(int(self._group[rows[0]]), by_kind, kinds.sum((-1, -2)))

    def _add_shuffles(self, tile: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, diagonal: bool) -> None:
        """Add pairs whose other label differs, in both orders at once."""
        for which, (labels, others) in enumerate(zip(self._labels, self._others, strict=True)):
            apart = others[rows, None] != others[columns]
            row, column = torch.nonzero(apart.triu(1) if diagonal else apart, as_tuple=True)
            met = 2 * tile[..., row, column]
            step = max(1, MASK_ELEMENTS // max(1, len(row)))
            for start in range(0, len(labels), step):
                some = labels[start : start + step]
                same = (some[:, rows[row]] == some[:, columns[column]]).double()
                self._distances.shuffles[..., which, start : start + step] += met @ same.T
                self._pairs.shuffles[which, start : start + step] += 2 * same.sum(1)

    def scores(self) -> CrossedScores:
        """Both scores and their intervals [...]."""
        return CrossedScores(*(self._with_interval(kind) for kind in (STYLE, CONTENT)))

    def shuffled(self) -> Shuffled:
        """What `separation` needs of these groups."""
        logs = []
        for which in (STYLE, CONTENT):
            total = [sums.cells[..., [which, BASE], :].sum((-1, -2))[..., None] for sums in self._both]
            same = [sums.shuffles[..., which, :] for sums in self._both]
            logs.append(log_of(ratio(_mean(*same), _mean(total[0] - same[0], total[1] - same[1]))))
        return Shuffled(*logs)

    @property
    def _both(self) -> tuple[_Sums, _Sums]:
        return self._distances, self._pairs

    def _with_interval(self, kind: int) -> Scores:
        """The 90 % interval of ln score, by a jackknife over styles and one over subjects.

        A subject drawn in every style moves all styles together, so neither axis alone holds the whole spread: as in an
        analysis of variance that is the spread of styles plus that of subjects minus what both count. The part to
        subtract is noisy, so the axis whose clusters are scored sets the floor, and half of what the other adds counts
        (intervals then hold planted truths 9 times in 10; `benchmarks/ranking.py`). NaN where neither axis tells any.
        """
        whole, no_style, no_subject, neither = (self._log_score(kind, left) for left in self._left(kind))
        spreads = [_jackknife(no_style), _jackknife(no_subject)]
        own = torch.where(spreads[kind].isnan(), spreads[1 - kind], spreads[kind])
        more = (spreads[0] + spreads[1] - _interaction(neither) - own).nan_to_num(0).clamp(min=0)
        spread = own + more / 2
        styles, subjects = self.series.counts
        reach = float(student.ppf((1 + INTERVAL) / 2, styles + subjects - 2)) * spread.sqrt()
        score = whole[..., 0].exp()
        found = Scores(score, (whole[..., 0] - reach).exp(), (whole[..., 0] + reach).exp())
        return widened(found, self._parts.variance(kind, BASE))

    def _left(self, kind: int) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
        """Sums of the kind and of the base, for distances and pairs: of all, without each style, subject, and both."""
        parts = [(sums.left(kind), sums.left(BASE)) for sums in self._both]
        for place in range(4):
            yield [(own[place], base[place]) for own, base in parts]

    def _log_score(self, kind: int, left: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        (own, base), (own_pairs, base_pairs) = left
        return log_of(ratio(_mean(own, own_pairs), _mean(base, base_pairs)))


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
    return plain_separation(shuffled.style), plain_separation(shuffled.content)


def _shuffled_labels(labels: torch.Tensor, others: torch.Tensor, group: torch.Tensor, seed: int) -> torch.Tensor:
    """The labels, and shuffles of them among the pictures of one group that share the other label."""
    keys = torch.rand(PERMUTATIONS, len(labels), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return shuffled_inside(labels, others * (int(group.max()) + 1) + group, keys)


def _mean(sums: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """NaN where there is no pair: what is left there of the sums is rounding."""
    return torch.where(pairs > 0, sums / pairs.clamp(min=1), torch.nan)


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
