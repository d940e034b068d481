"""Crossed scores against pair-by-pair counting, and against layers whose style and content were planted."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import planted
from conditional_balance.engine.crossed import CrossedSums, is_crossed, looks_crossed, separation
from conditional_balance.engine.plain import scores_of
from conditional_balance.engine.scoring import sureness
from conditional_balance.engine.series import Series


def distances(images: int, seed: int = 0) -> torch.Tensor:
    """[2, images, images]"""
    found = torch.rand(2, images, images, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.triu(found, 1) + torch.triu(found, 1).mT


def gathered(series: Series, matrix: torch.Tensor, cut: int | None = None, seed: int = 0) -> CrossedSums:
    sums = CrossedSums(series, matrix.shape[:-2], seed)
    pictures = torch.arange(matrix.shape[-1])
    for rows in pictures.split(cut or len(pictures)):
        for columns in pictures.split((cut or len(pictures)) + 1):
            sums.add(matrix[..., rows, :][..., columns], rows, columns)
    return sums


def by_hand(matrix: torch.Tensor, series: Series) -> tuple[float, float]:
    kinds: dict[tuple[bool, bool], list[float]] = {}
    for one, other in permutations(range(len(matrix)), 2):
        same = bool(series.styles[one] == series.styles[other]), bool(series.subjects[one] == series.subjects[other])
        kinds.setdefault(same, []).append(float(matrix[one, other]))
    means = {same: sum(found) / len(found) for same, found in kinds.items()}
    return means[True, False] / means[False, False], means[False, True] / means[False, False]


UNEVEN = Series(torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2]), torch.tensor([0, 1, 1, 0, 2, 0, 1, 2, 3]))


def test_both_scores_are_what_counting_pairs_gives_with_twins_gaps_and_lone_subjects():
    matrix = distances(9)
    scores = gathered(UNEVEN, matrix).scores()
    for group in range(2):
        found = float(scores.style.score[group]), float(scores.content.score[group])
        assert found == pytest.approx(by_hand(matrix[group], UNEVEN))
    for one in scores:
        assert bool((one.low <= one.score).all() & (one.score <= one.high).all() & one.high.isfinite().all())


@settings(deadline=None, max_examples=15)
@given(cut=st.integers(1, 9))
def test_any_cut_into_tiles_gives_the_same(cut):
    whole, cut_up = (gathered(UNEVEN, distances(9), size) for size in (None, cut))
    for one, other in zip((*whole.scores(), whole.shuffled()), (*cut_up.scores(), cut_up.shuffled()), strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_the_sums_left_after_a_style_or_a_subject_are_those_of_the_pictures_left():
    matrix, series = distances(9)[:1], UNEVEN
    whole = gathered(series, matrix)
    for kind in range(3):
        total, no_style, no_subject, neither = whole._distances.left(kind)
        for style, subject in ((None, None), (1, None), (None, 1), (2, 0), (0, 3)):
            stays = torch.tensor([s != style and t != subject for s, t in zip(*series, strict=True)])
            kept = stays.nonzero()[:, 0]
            expected = (matrix[0][kept][:, kept] * series.kinds(kept, kept)[kind]).sum()
            found = {(False, False): total, (True, False): no_style, (False, True): no_subject, (True, True): neither}
            left = found[style is not None, subject is not None]
            place = tuple(number for number in (style, subject) if number is not None) or (0,)
            assert float(left[(0, *place)]) == pytest.approx(float(expected), abs=1e-9), (kind, style, subject)


def test_a_series_in_which_no_subject_recurs_is_scored_as_before():
    matrix, styles = distances(6), [0, 0, 0, 1, 1, 1]
    series = Series.of(styles, [None, "", "cat", "dog", None, None])
    assert not is_crossed(series)
    torch.testing.assert_close(gathered(series, matrix).scores().style.score, scores_of(matrix, styles, 0).score)


@pytest.mark.parametrize(
    ("styles", "subjects", "crossed"),
    [
        ([0, 0, 1, 1], ["cat", "dog", "cat", "dog"], True),
        ([0, 0, 1, 1], ["cat", "cat", "cat", "cat"], False),
        ([0, 0, 1, 1], ["cat", "dog", "owl", "fox"], False),
        ([0, 0, 1, 1], ["cat", None, "cat", None], True),
        ([0, 0, 0, 0], ["cat", "dog", "cat", "dog"], False),
        ([0, 1, 0, 1], ["cat", "cat", "dog", None], True),
    ],
)
def test_a_series_is_crossed_when_pairs_of_every_kind_are_there(styles, subjects, crossed):
    assert is_crossed(Series.of(styles, subjects)) is crossed


def test_pictures_that_do_not_differ_score_one():
    scores = gathered(UNEVEN, torch.zeros(2, 9, 9)).scores()
    for one in (*scores.style, *scores.content):
        assert one.tolist() == [1, 1]


def test_two_styles_and_two_subjects_have_scores_though_no_spread_can_be_told():
    scores = gathered(Series.of([0, 0, 1, 1], ["a", "b", "a", "b"]), distances(4)).scores()
    assert all(one.interval == (None, None) and bool(one.score.isfinite().all()) for one in scores)
    assert all(sureness(one) == 0 for one in scores)


def test_shuffles_stay_inside_the_design():
    sums = gathered(UNEVEN, distances(9))
    for labels, groups in zip(sums._labels, sums._others, strict=True):
        for group in groups.unique():
            inside = labels[:, groups == group].sort(-1).values
            assert torch.equal(inside, inside[:1].expand_as(inside))


def test_the_ranking_finds_planted_style_and_content_where_the_plain_score_does_not():
    found = planted.mean_ranked(8, 6, rounds=4)
    assert found.style >= 0.96 and found.content >= 0.96 and found.plain < 0.92


def test_intervals_hold_the_planted_truth_nine_times_in_ten():
    for share in planted.covered(8, 6, layers=600):
        assert 0.87 <= share <= 0.93


def test_content_alone_makes_no_style_significant_nor_style_content():
    found = planted.false_alarms(8, 6, layers=300)
    assert found["style"] <= 0.08 and found["content"] <= 0.08
    assert found["style_found"] == found["content_found"] == 1


def test_one_p_over_all_layers_finds_what_none_shows_alone():
    weak = torch.full((40,), 0.02, dtype=torch.float64)
    series = planted.plant(weak, 50 * weak, 5, 4, torch.Generator().manual_seed(3))
    style, _ = separation(planted.sums_of(series).shuffled())
    assert style.overall <= 0.01 and float(style.each.median()) > 0.05


def look(series: planted.Planted) -> bool:
    return looks_crossed(series.distances.mean(0), series.series.styles.tolist())


@pytest.mark.parametrize("seed", range(5))
def test_a_series_whose_subjects_recur_looks_crossed_in_any_order_and_others_do_not(seed):
    generator = torch.Generator().manual_seed(seed)
    amounts = planted.amounts(20, generator)
    crossed = planted.plant(*amounts, 5, 6, generator)
    mixed = torch.cat([6 * style + torch.randperm(6, generator=generator) for style in range(5)])
    assert looks_crossed(crossed.distances.mean(0)[mixed][:, mixed], crossed.series.styles.tolist())
    assert not look(planted.plant(amounts[0], torch.zeros_like(amounts[1]), 5, 6, generator))
    alone = planted.plant(amounts[0], amounts[1], 5, 30, generator)  # each style has six subjects of its own
    kept = torch.cat([30 * style + 6 * style + torch.arange(6) for style in range(5)])
    assert not looks_crossed(alone.distances.mean(0)[kept][:, kept], alone.series.styles[kept].tolist())


def test_two_clusters_or_two_pictures_each_are_too_few_to_look_crossed():
    generator = torch.Generator().manual_seed(0)
    for styles, subjects in ((2, 6), (6, 2)):
        assert not look(planted.plant(*planted.amounts(20, generator), styles, subjects, generator))
