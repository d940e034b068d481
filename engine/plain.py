"""The plain score, from tiles of distances: what is held does not grow with the pictures.

    score = mean distance of pairs inside a cluster / mean distance of pairs across clusters

(arXiv 2412.19853, with the pairs that its code meant to take); 1 where nothing differs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from .sampling import PartSums, group_numbers, widened
from .scoring import (
    BOOTSTRAPS,
    INTERVAL,
    MASK_ELEMENTS,
    PERMUTATIONS,
    Scores,
    Separation,
    log_of,
    ratio,
    shuffled_inside,
)

INNER, OUTER = range(2)


class PlainSums:
    """The sums behind the score, its interval and its permutation test, for groups [...] of distances.

    Held for each group: one sum a pair of clusters and one a shuffle.
    """

    def __init__(
        self,
        labels: Sequence[int] | torch.Tensor,
        groups: Sequence[int],
        seed: int,
        sampled: Sequence[torch.Tensor] = (),
        shuffles: bool = True,
    ) -> None:
        """`labels` are the clusters from 0 upward; `sampled` are the groups of pictures inside which pairs come, where
        not all pairs do (`engine.sampling`). Without `shuffles` there is no test."""
        self._labels, self._seed = torch.as_tensor(labels), seed
        self._group = group_numbers(sampled or [torch.arange(len(self._labels))])
        clusters = int(self._labels.max()) + 1
        self._member = torch.nn.functional.one_hot(self._labels, clusters).double()
        self._shuffles = _shuffled(self._labels, self._group, seed) if shuffles else self._labels[None]
        zeros = {
            "sums": (*groups, clusters, clusters),
            "pairs": (clusters, clusters),
            "inner": (*groups, len(self._shuffles)),
            "inner_pairs": (len(self._shuffles),),
        }
        self._found = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in zeros.items()}
        self._parts = PartSums(groups, 2, max(1, len(sampled)))

    def emptied(self) -> PlainSums:
        """Sums of the same series with nothing in them; the shuffles are drawn once."""
        found = copy.copy(self)
        found._found = {name: torch.zeros_like(part) for name, part in self._found.items()}
        found._parts = self._parts.emptied()
        return found

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What has been summed so far, to be written down, or added to that of others."""
        return self._found | {"parts.sums": self._parts.sums, "parts.pairs": self._parts.pairs}

    def add(self, tile: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> None:
        """Take distances [..., rows, columns] of pictures by index; every pair comes in one tile, in either order.

        On the diagonal `rows` and `columns` are the same and the tile is symmetric. A tile lies in one sampled group.
        """
        tile, diagonal = tile.double().cpu(), torch.equal(rows, columns)
        one, other = self._member[rows], self._member[columns]
        sums, pairs = one.T @ tile @ other, torch.outer(one.sum(0), other.sum(0))
        if diagonal:
            pairs = pairs - one.sum(0).diag()
        else:
            sums, pairs = sums + sums.mT, pairs + pairs.T
        self._found["sums"] += sums
        self._found["pairs"] += pairs
        self._parts.add(int(self._group[rows[0]]), _by_kind(sums), _by_kind(pairs))
        if len(self._shuffles) > 1:
            self._add_shuffles(tile, rows, columns, diagonal)

    def _add_shuffles(self, tile: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, diagonal: bool) -> None:
        grid = torch.ones(len(rows), len(columns), dtype=torch.bool)
        row, column = torch.nonzero(grid.triu(1) if diagonal else grid, as_tuple=True)
        met = tile[..., row, column]
        step = max(1, MASK_ELEMENTS // max(1, len(row)))
        for start in range(0, len(self._shuffles), step):
            some = self._shuffles[start : start + step]
            same = (some[:, rows[row]] == some[:, columns[column]]).double()
            self._found["inner"][..., start : start + step] += met @ same.T
            self._found["inner_pairs"][start : start + step] += same.sum(1)

    def scores(self) -> Scores:
        """Scores and 90 % intervals [...]; the interval resamples whole clusters, and knows what was not looked at.

        Two clusters can be drawn in one way only, which tells nothing: bounds are then NaN.
        """
        sums, pairs = self._found["sums"], self._found["pairs"]
        resampled = _ratios(sums, pairs, _resampled_clusters(len(pairs), self._seed))
        tail = (1 - INTERVAL) / 2
        low, high = torch.nanquantile(resampled, torch.tensor([tail, 1 - tail], dtype=torch.float64), -1)
        score = _ratios(sums, pairs, torch.ones(1, len(pairs), dtype=torch.float64))[..., 0]
        if len(pairs) == 2:
            return Scores(score, *(torch.full_like(score, torch.nan) for _ in range(2)))
        found = Scores(score, torch.fmin(low, score), torch.fmax(high, score))
        return widened(found, self._parts.variance(INNER, OUTER))

    def shuffled(self) -> torch.Tensor:
        """ln of the score for the true labels, which come first, and for shuffled ones: [..., 1 + shuffles]."""
        inner, inner_pairs = self._found["inner"], self._found["inner_pairs"]
        total, pairs = self._found["sums"].sum((-1, -2))[..., None] / 2, self._found["pairs"].sum() / 2
        return log_of(ratio(inner / inner_pairs, (total - inner) / (pairs - inner_pairs)))


def scores_of(distances: torch.Tensor, labels: Sequence[int], seed: int) -> Scores:
    """Scores [...] from distances [..., images, images], zero on the diagonal, and each image's cluster from 0 up."""
    return _summed(distances, labels, seed, shuffles=False).scores()


def separation_of(distances: torch.Tensor, labels: Sequence[int], seed: int) -> Separation:
    """`separation` of distances [..., images, images]."""
    return separation(_summed(distances, labels, seed, shuffles=True).shuffled())


def separation(log_scores: torch.Tensor) -> Separation:
    """Permutation test from ln scores [..., 1 + shuffles]: the share of labels that score as low as the true ones.

    The true ones, first, are counted. One shuffle serves all layers, so the overall p needs no correction for their
    number.
    """
    as_low = (log_scores <= log_scores[..., :1] + 1e-12).double()
    mean = log_scores.reshape(-1, log_scores.shape[-1]).mean(0)
    return Separation(float((mean <= mean[0] + 1e-12).double().mean()), as_low.mean(-1))


def _summed(distances: torch.Tensor, labels: Sequence[int], seed: int, shuffles: bool) -> PlainSums:
    found = PlainSums(labels, distances.shape[:-2], seed, shuffles=shuffles)
    images = torch.arange(len(found._labels))
    found.add(distances, images, images)
    return found


def _by_kind(blocks: torch.Tensor) -> torch.Tensor:
    """Pairs inside clusters and across them [..., 2], from [..., clusters, clusters]."""
    inner = blocks.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.stack([inner, blocks.sum((-1, -2)) - inner], -1)


def _ratios(sums: torch.Tensor, pairs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Scores [..., draws] with cluster c drawn weights[draw, c] times; copies of a cluster never meet each other."""
    inner, inner_pairs = (part.diagonal(dim1=-2, dim2=-1) @ weights.T for part in (sums, pairs))
    across = _off_diagonal(weights[:, :, None] * weights[:, None, :]).flatten(1)
    outer, outer_pairs = (part.flatten(-2) @ across.T for part in (sums, pairs))
    return ratio(inner / inner_pairs, outer / outer_pairs)


def _off_diagonal(matrix: torch.Tensor) -> torch.Tensor:
    return matrix - torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1))


def _resampled_clusters(clusters: int, seed: int) -> torch.Tensor:
    """How often each cluster is drawn, [draws, clusters]; draws of one cluster alone say nothing and are left out."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(clusters, (BOOTSTRAPS, clusters), generator=generator)
    counts = torch.nn.functional.one_hot(drawn, clusters).sum(1).double()
    return counts[(counts > 0).sum(1) > 1]


def _shuffled(labels: torch.Tensor, group: torch.Tensor, seed: int) -> torch.Tensor:
    keys = torch.rand(PERMUTATIONS, len(labels), generator=torch.Generator().manual_seed(seed))
    return shuffled_inside(labels, group, keys)
