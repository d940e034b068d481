"""Scores: how much closer images of one cluster are than images of different ones, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

BOOTSTRAPS = 1000
PERMUTATIONS = 999
INTERVAL = 0.9  # share of bootstrap scores between low and high


class Scores(NamedTuple):
    """Score [...] and the bounds [...] of its bootstrap interval; lower = more sensitive."""

    score: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor


class Separation(NamedTuple):
    """Whether the clusters differ at all: p of the mean log score, and p [...] of every score by itself."""

    overall: float
    each: torch.Tensor


def check_clusters(labels: Sequence[int], names: Sequence[str]) -> None:
    """Raises ValueError unless there are two clusters or more, of two images or more each."""
    if len(names) < 2:
        count = "one cluster" if names else "no cluster"
        raise ValueError(f"'clusters' holds {count}: give it two or more, so that there is something to tell apart.")
    counts = torch.bincount(torch.as_tensor(labels), minlength=len(names)).tolist()
    for name, count in zip(names, counts, strict=True):
        if count < 2:
            raise ValueError(f"'clusters': '{name}' has {count} image{'' if count == 1 else 's'}; give it two or more.")


def scores_of(distances: torch.Tensor, labels: Sequence[int], seed: int) -> Scores:
    """Scores [...] from distances [..., images, images], zero on the diagonal, and each image's cluster from 0 upward.

    score = mean distance of pairs inside a cluster / mean distance of pairs across clusters (arXiv 2412.19853,
    with the pairs that its code meant to take); 1 where nothing differs. The interval resamples whole clusters.
    """
    blocks = _cluster_sums(distances, _one_hot(labels))
    once = torch.ones(1, blocks.sums.shape[-1], dtype=torch.float64, device=distances.device)
    resampled = _ratios(blocks, _resampled_clusters(once.shape[-1], seed).to(distances.device))
    tail = (1 - INTERVAL) / 2
    low, high = torch.quantile(resampled, torch.tensor([tail, 1 - tail], dtype=torch.float64, device=once.device), -1)
    score = _ratios(blocks, once)[..., 0]
    return Scores(score, torch.minimum(low, score), torch.maximum(high, score))


def separation_of(distances: torch.Tensor, labels: Sequence[int], seed: int) -> Separation:
    """Permutation test: the share of shuffled labels that score as low as the true ones, counting the true ones.

    `distances` is [..., images, images]. One shuffle serves all layers, so the overall p needs no correction for
    their number.
    """
    shuffled = _shuffled(labels, seed).to(distances.device)
    log_scores = _log_scores_of_labels(distances, shuffled)
    as_low = (log_scores <= log_scores[..., :1] + 1e-12).double()  # the true labels come first
    mean = log_scores.flatten(0, -2).mean(0)
    overall = (mean <= mean[0] + 1e-12).double().mean()
    return Separation(float(overall), as_low.mean(-1))


class _Blocks(NamedTuple):
    """Sums of distances [..., clusters, clusters] over ordered pairs of different images, and how many pairs."""

    sums: torch.Tensor
    pairs: torch.Tensor


def _one_hot(labels: Sequence[int]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.as_tensor(labels)).double()


def _cluster_sums(distances: torch.Tensor, member: torch.Tensor) -> _Blocks:
    member = member.to(distances.device)
    sizes = member.sum(0)
    return _Blocks(member.T @ distances.double() @ member, torch.outer(sizes, sizes) - sizes.diag())


def _ratios(blocks: _Blocks, weights: torch.Tensor) -> torch.Tensor:
    """Scores [..., draws] with cluster c drawn weights[draw, c] times; copies of a cluster never meet each other."""
    inner, inner_pairs = (part.diagonal(dim1=-2, dim2=-1) @ weights.T for part in blocks)
    across = _off_diagonal(weights[:, :, None] * weights[:, None, :]).flatten(1)
    outer, outer_pairs = (part.flatten(-2) @ across.T for part in blocks)
    return _ratio(inner / inner_pairs, outer / outer_pairs)


def _off_diagonal(matrix: torch.Tensor) -> torch.Tensor:
    return matrix - torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1))


def _ratio(inner: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
    return torch.where(outer > 0, inner / outer, 1.0)  # no distance across clusters means none at all


def _resampled_clusters(clusters: int, seed: int) -> torch.Tensor:
    """How often each cluster is drawn, [draws, clusters]; draws of one cluster alone say nothing and are left out."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(clusters, (BOOTSTRAPS, clusters), generator=generator)
    counts = torch.nn.functional.one_hot(drawn, clusters).sum(1).double()
    return counts[(counts > 0).sum(1) > 1]


def _shuffled(labels: Sequence[int], seed: int) -> torch.Tensor:
    """The labels and PERMUTATIONS shuffles of them, [1 + shuffles, images]."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.as_tensor(labels)
    orders = torch.rand(PERMUTATIONS, len(true), generator=generator).argsort(-1)
    return torch.cat([true[None], true[orders]])


def _log_scores_of_labels(distances: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """ln score [..., labelings] for many labelings [labelings, images]: one matrix product with their pair masks."""
    one, other = torch.triu_indices(labels.shape[-1], labels.shape[-1], offset=1, device=labels.device)
    same = (labels[:, one] == labels[:, other]).double()
    pairs = distances[..., one, other].double()
    inner, total, inner_pairs = pairs @ same.T, pairs.sum(-1, keepdim=True), same[0].sum()
    ratio = _ratio(inner / inner_pairs, (total - inner) / (len(one) - inner_pairs))
    return ratio.clamp(min=torch.finfo(torch.float64).tiny).log()
