"""Scores and their certainty against pair-by-pair counting and planted clusters."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from conditional_balance.engine import plain, scoring
from conditional_balance.engine.plain import scores_of, separation_of
from conditional_balance.engine.scoring import TooFewClusters, TooFewImages, check_clusters


def distances(images: int, seed: int = 0) -> torch.Tensor:
    """[3, images, images]"""
    found = torch.rand(3, images, images, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.triu(found, 1) + torch.triu(found, 1).mT


def planted(clusters: int, each: int, ratio: float, seed: int = 0) -> tuple[torch.Tensor, list[int]]:
    """[1, N, N] with pairs inside a cluster `ratio` times as far as others, give or take."""
    labels = [cluster for cluster in range(clusters) for _ in range(each)]
    member = torch.tensor(labels)
    same = member[:, None] == member[None, :]
    apart = distances(len(labels), seed)[:1] * 0.1 + 1 - torch.eye(len(labels))
    return apart * torch.where(same, ratio, 1.0), labels


def by_hand(matrix: torch.Tensor, labels: list[int]) -> float:
    inner, outer = [], []
    for one, other in combinations(range(len(labels)), 2):
        (inner if labels[one] == labels[other] else outer).append(float(matrix[one, other]))
    return (sum(inner) / len(inner)) / (sum(outer) / len(outer))


@pytest.mark.parametrize("labels", [[0, 0, 1, 1], [0, 1, 0, 1, 2, 2, 2], [0] * 5 + [1] * 5 + [2] * 5])
def test_a_score_is_mean_inside_over_mean_across(labels):
    matrices = distances(len(labels))
    expected = [by_hand(matrix, labels) for matrix in matrices]
    torch.testing.assert_close(scores_of(matrices, labels, 0).score, torch.tensor(expected, dtype=torch.float64))


def test_images_that_do_not_differ_score_one():
    scores = scores_of(torch.zeros(2, 6, 6), [0, 0, 1, 1, 2, 2], 0)
    assert scores.score.tolist() == scores.low.tolist() == scores.high.tolist() == [1, 1]


def unequal(clusters: int) -> tuple[torch.Tensor, list[int]]:
    """Clusters of four that are not equally tight, as real ones are: every third is loose."""
    matrix, labels = planted(clusters, 4, 0.4)
    loose = torch.tensor([label % 3 == 0 for label in labels])
    same = torch.tensor(labels)[:, None] == torch.tensor(labels)[None, :]
    return torch.where(same & loose[:, None], 2 * matrix, matrix), labels


def test_the_interval_holds_the_score_and_widens_with_fewer_clusters():
    few, many = (scores_of(*unequal(count), seed=0) for count in (3, 12))
    for scores in (few, many):
        assert bool((scores.low <= scores.score).all() & (scores.score <= scores.high).all())
    assert float(many.high - many.low) < float(few.high - few.low)


def test_planted_clusters_separate_and_shuffled_ones_do_not():
    matrix, labels = planted(4, 4, 0.7)
    assert separation_of(matrix, labels, 0).overall == pytest.approx(0.001)
    generator = torch.Generator().manual_seed(1)
    mixed = [labels[index] for index in torch.randperm(len(labels), generator=generator)]
    assert separation_of(matrix, mixed, 0).overall > 0.1


def test_one_layer_alone_is_tested_as_among_others():
    matrix, labels = planted(3, 4, 0.7)
    assert separation_of(matrix, labels, 0).overall == separation_of(matrix[None], labels, 0).overall


def test_p_is_uniform_when_labels_mean_nothing():
    found = torch.cat([distances(8, seed) for seed in range(40)])
    each = separation_of(found, [0] * 4 + [1] * 4, 0).each
    assert 0.4 < float(each.mean()) < 0.65
    assert float((each <= 0.1).double().mean()) < 0.2


def test_one_layer_that_listens_is_found_among_those_that_do_not():
    matrix, labels = planted(4, 4, 0.3)
    deaf = torch.where(torch.eye(16, dtype=torch.bool), 0.0, 1.0 + distances(16)[1])
    scores = scores_of(torch.stack([deaf, matrix[0], deaf]), labels, 0).score
    assert int(scores.argmin()) == 1 and float(scores[1]) < 0.35 and float(scores[0]) > 0.9


def test_the_same_seed_gives_the_same_answer():
    matrix, labels = planted(3, 3, 0.8)
    for one, other in zip(scores_of(matrix, labels, 5), scores_of(matrix, labels, 5), strict=True):
        assert torch.equal(one, other)
    assert separation_of(matrix, labels, 5).overall == separation_of(matrix, labels, 5).overall


@pytest.mark.parametrize(
    ("labels", "names", "cluster", "count", "words"),
    [
        ([0, 0, 1], ["ink", "oil"], "oil", 1, "The cluster 'oil' has one image: two or more are needed"),
        ([1, 1], ["ink", "oil"], "ink", 0, "The cluster 'ink' has no image: "),
        ([0, 0], ["ink", "oil"], "oil", 0, "The cluster 'oil' has no image: "),
    ],
)
def test_a_cluster_of_too_few_images_is_named(labels, names, cluster, count, words):
    with pytest.raises(TooFewImages, match=words) as caught:
        check_clusters(labels, names)
    assert (caught.value.cluster, caught.value.count) == (cluster, count)


@pytest.mark.parametrize(("labels", "names", "words"), [([0, 0], ["ink"], "is one"), ([], [], "is no")])
def test_too_few_clusters_are_counted(labels, names, words):
    with pytest.raises(TooFewClusters, match=f"^There {words} cluster: two or more are needed") as caught:
        check_clusters(labels, names)
    assert caught.value.count == len(names)


def test_a_scores_own_p_counts_the_true_labels_and_every_shuffle_as_low():
    matrices, labels = distances(8, 3), [0] * 4 + [1] * 4
    shuffled = plain._shuffled(torch.tensor(labels), torch.zeros(len(labels), dtype=torch.long), 5).tolist()
    assert shuffled[0] == labels and len(shuffled) == 1 + scoring.PERMUTATIONS
    for matrix, p in zip(matrices, separation_of(matrices, labels, 5).each.tolist(), strict=True):
        as_low = sum(by_hand(matrix, each) <= by_hand(matrix, labels) + 1e-12 for each in shuffled)
        assert p == pytest.approx(as_low / 1000, abs=1e-12)


def test_p_is_one_where_nothing_differs_and_a_thousandth_where_all_does():
    assert separation_of(torch.zeros(2, 6, 6), [0, 0, 0, 1, 1, 1], 0).each.tolist() == [1, 1]
    matrix, labels = planted(5, 4, 0.1)
    assert separation_of(matrix, labels, 0).each.tolist() == [0.001]


def test_nine_tenths_of_the_bootstrap_scores_lie_in_the_interval():
    matrix, labels = unequal(9)
    found = scores_of(matrix, labels, 0)
    draws = []
    for weights in plain._resampled_clusters(9, 0).tolist():
        inner, outer, inner_pairs, outer_pairs = 0.0, 0.0, 0.0, 0.0
        for one, first in enumerate(sorted(set(labels))):
            rows = [index for index in range(len(labels)) if labels[index] == first]
            for other, second in enumerate(sorted(set(labels))):
                columns = [index for index in range(len(labels)) if labels[index] == second]
                block = float(matrix[0][rows][:, columns].sum())
                if one == other:
                    inner, inner_pairs = inner + weights[one] * block, inner_pairs + weights[one] * 12
                else:
                    count = weights[one] * weights[other]
                    outer, outer_pairs = outer + count * block, outer_pairs + count * 16
        draws.append((inner / inner_pairs) / (outer / outer_pairs))
    within = [float(found.low) <= draw <= float(found.high) for draw in draws]
    assert sum(within) / len(within) == pytest.approx(0.9, abs=0.003)
    assert sum(draw < float(found.low) for draw in draws) / len(draws) == pytest.approx(0.05, abs=0.003)


def test_draws_with_one_cluster_have_no_pairs_between_clusters_and_are_left_out():
    """Of two clusters every other draw is then the clusters themselves, so no interval can be known."""
    matrix, labels = unequal(2)
    assert scores_of(matrix, labels, 0).interval == (None, None)
    assert bool((plain._resampled_clusters(3, 0) > 0).sum(1).gt(1).all())
