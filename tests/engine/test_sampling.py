"""Sums from tiles, and from a sample of the pairs, against all pairs at once."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine.crossed import CrossedSums, is_crossed
from conditional_balance.engine.crossed import separation as crossed_separation
from conditional_balance.engine.divergence import between, pairwise
from conditional_balance.engine.moments import Moments
from conditional_balance.engine.plain import PlainSums, scores_of, separation, separation_of
from conditional_balance.engine.sampling import PartSums, groups_of, pairs_in, portions_of, tiles, widened
from conditional_balance.engine.scoring import Scores, sureness
from conditional_balance.engine.series import BASE, STYLE, Series

LAYERS, CHANNELS = 12, 16


def moments(styles: torch.Tensor, subjects: torch.Tensor, amount: torch.Tensor, seed: int = 0) -> Moments:
    """Of pictures of these styles and subjects, in layers [LAYERS] that hold an `amount` of the style."""
    dice = torch.Generator().manual_seed(seed)

    def drawn(count: int) -> torch.Tensor:
        return torch.randn(count, LAYERS, CHANNELS, generator=dice)

    mean = drawn(int(styles.max()) + 1)[styles] * amount[:, None].sqrt() + drawn(int(subjects.max()) + 1)[subjects]
    return Moments(mean + drawn(len(styles)), torch.ones(len(styles), LAYERS, CHANNELS))


def crossing(styles: int, subjects: int) -> Series:
    cells = torch.cartesian_prod(torch.arange(styles), torch.arange(subjects))
    return Series(*cells.T)


AMOUNT = torch.linspace(0.0, 2.0, LAYERS)


def added(sums, series: Series, found: Moments, groups, block: int):
    """The sums after every tile of every group."""
    for group in groups:
        for rows, columns in tiles(len(group), block):
            sides = [Moments(*(part[group[side]] for part in found)) for side in (rows, columns)]
            tile = pairwise(sides[0], "bhattacharyya") if rows is columns else between(*sides, "bhattacharyya")
            sums.add(tile, group[rows], group[columns])
    return sums


def test_distances_between_two_sets_are_those_of_all_pairs():
    series = crossing(4, 5)
    found = moments(*series, AMOUNT)
    whole = pairwise(found, "jensen_shannon")
    for rows, columns in tiles(20, 7):
        sides = [Moments(*(part[side] for part in found)) for side in (rows, columns)]
        if rows is not columns:
            tile = between(*sides, "jensen_shannon")
            torch.testing.assert_close(tile, whole[:, rows[:, None], columns], rtol=1e-7, atol=0)


@given(st.integers(1, 40), st.integers(1, 15))
def test_tiles_hold_every_pair_once(count: int, block: int):
    met = [
        frozenset((one, other))
        for rows, columns in tiles(count, block)
        for one, other in itertools.product(rows.tolist(), columns.tolist())
        if one < other
    ]
    assert len(met) == len(set(met)) == count * (count - 1) // 2


@pytest.mark.parametrize("block", [3, 8, 100])
def test_any_tiles_give_the_scores_and_tests_of_all_pairs(block: int):
    series = crossing(5, 4)
    found, everything = moments(*series, AMOUNT), [torch.arange(20)]
    matrix, labels = pairwise(found, "bhattacharyya"), series.styles.tolist()
    plain = added(PlainSums(labels, (LAYERS,), 3), series, found, everything, block)
    for one, other in zip(plain.scores(), scores_of(matrix, labels, 3), strict=True):
        torch.testing.assert_close(one, other)
    whole = separation_of(matrix, labels, 3)
    assert separation(plain.shuffled()).overall == whole.overall
    assert torch.equal(separation(plain.shuffled()).each, whole.each)
    crossed = added(CrossedSums(series, (LAYERS,), 3), series, found, everything, block)
    expected = added(CrossedSums(series, (LAYERS,), 3), series, found, everything, 1000)
    for one, other in zip(crossed.scores(), expected.scores(), strict=True):
        for part, same in zip(one, other, strict=True):
            torch.testing.assert_close(part, same)
    assert crossed_separation(crossed.shuffled())[0].overall == crossed_separation(expected.shuffled())[0].overall


def test_few_pictures_are_all_compared():
    (group,) = groups_of(crossing(8, 6), 2000, 0)
    assert torch.equal(group, torch.arange(48))


SHAPES = [(10, 400, 30_000), (60, 12, 20_000), (4, 1000, 10_000), (2, 2000, 5_000)]


@pytest.mark.parametrize(("styles", "each", "most"), SHAPES)
@pytest.mark.parametrize("named", [False, True])
def test_groups_deal_all_pictures_and_keep_to_the_cap(styles: int, each: int, most: int, named: bool):
    series = crossing(styles, each)
    if not named:
        series = Series.of(series.styles.tolist(), [None] * (styles * each))
    groups = groups_of(series, most, 0)
    assert torch.equal(torch.cat(groups).sort().values, torch.arange(styles * each))
    assert all(bool((group.diff() > 0).all()) for group in groups)
    assert max(most, 8 * styles * each) * 0.3 < pairs_in(groups) < 2 * max(most, 8 * styles * each)
    assert is_crossed(series, groups) == named
    inner = sum(int((series.styles[group][:, None] == series.styles[group]).triu(1).sum()) for group in groups)
    assert inner > 0.02 * pairs_in(groups)


@pytest.mark.parametrize("named", [False, True])
def test_the_interval_of_a_sample_holds_the_score_of_all_pairs(named: bool):
    """In nine layers of ten or more, and without leaning to one side."""
    held, above = [], []
    for seed in range(8):
        series = crossing(8, 40)
        found = moments(*series, AMOUNT, seed)
        if not named:
            series = Series.of(series.styles.tolist(), [None] * 320)
        every, groups = [torch.arange(320)], groups_of(series, 6000, seed)
        assert len(groups) > 4
        if named:
            whole, some = (
                added(CrossedSums(series, (LAYERS,), 0, sampled), series, found, each, 256).scores().style
                for sampled, each in (((), every), (groups, groups))
            )
        else:
            whole, some = (
                added(
                    PlainSums(series.styles.tolist(), (LAYERS,), 0, sampled, shuffles=False), series, found, each, 256,
                ).scores()
                for sampled, each in (((), every), (groups, groups))
            )  # fmt: skip
        held.append(((some.low <= whole.score) & (whole.score <= some.high)).double().mean())
        above.append((some.score > whole.score).double().mean())
        assert bool((some.low < some.score).all() & (some.score < some.high).all())
    assert torch.stack(held).mean() > 0.9
    assert 0.2 < torch.stack(above).mean() < 0.8


def test_a_sample_raises_no_more_false_alarms():
    """Styles that do not differ, in 40 layers of their own, are told apart in about one of twenty."""
    alarms = []
    for seed in range(5):
        series = Series.of([number % 6 for number in range(180)], [None] * 180)
        found = moments(series.styles, series.subjects, torch.zeros(LAYERS), seed)
        groups = groups_of(series, 3000, seed)
        sums = added(PlainSums(series.styles.tolist(), (LAYERS,), seed, groups), series, found, groups, 256)
        alarms.append((separation(sums.shuffled()).each <= 0.05).double().mean())
    assert torch.stack(alarms).mean() < 0.15


def test_sums_of_two_halves_add_up():
    series = crossing(6, 30)
    found, groups = moments(*series, AMOUNT), groups_of(series, 3000, 0)
    whole = added(CrossedSums(series, (LAYERS,), 0, groups), series, found, groups, 256)
    halves = [
        added(CrossedSums(series, (LAYERS,), 0, groups), series, found, half, 256)
        for half in (groups[::2], groups[1::2])
    ]
    for name, part in whole.tensors.items():
        torch.testing.assert_close(sum(half.tensors[name] for half in halves), part)


def test_portions_are_small_series_of_their_own():
    series = crossing(5, 12)
    portions = portions_of(series, 15, 0)
    assert len(portions) > 2
    assert torch.equal(torch.cat(portions).sort().values, torch.arange(60))
    assert all(len(series.styles[portion].unique()) >= 2 for portion in portions)


@pytest.mark.parametrize("seen", [1, 2, 3])
def test_portions_that_never_came_leave_no_trace(seen):
    """Measuring that ends early knows what it has seen: intervals are those of a series that ends there."""
    series = crossing(5, 12)
    found, portions = moments(*series, AMOUNT), portions_of(series, 15, 0)
    sums = CrossedSums(series, (LAYERS,), 0, portions)
    early = added(sums, series, found, portions[:seen], 256)
    variance = early._parts.variance(STYLE, BASE)
    assert early._parts.parts == len(portions) > seen
    if seen == 1:
        assert not variance.any()
        return
    alone = PartSums((LAYERS,), 3, seen)
    alone.sums, alone.pairs = early._parts.sums[:seen], early._parts.pairs[:seen]
    assert bool((variance > 0).all()) and torch.equal(variance, alone.variance(STYLE, BASE))


def test_two_clusters_are_never_sure():
    """They can be resampled in one way only, so an interval of no width said that noise was certain."""
    dice = torch.Generator().manual_seed(0)
    noise = 0.5 + torch.rand(LAYERS, 8, 8, generator=dice, dtype=torch.float64)
    scores = scores_of(noise + noise.mT, [0] * 4 + [1] * 4, 0)
    assert bool(scores.score.isfinite().all()) and scores.interval == (None, None)
    assert sureness(scores) == 0
    more = scores_of(noise + noise.mT, [0, 0, 1, 1, 2, 2, 2, 2], 0)
    assert bool((more.low < more.high).all()) and more.interval == (more.low, more.high)


def test_a_score_of_zero_has_a_sureness_and_an_interval():
    """Pictures that are all alike inside their clusters, as copies are."""
    scores = Scores(*(torch.tensor([0.0, 0.5, 0.6], dtype=torch.float64) * part for part in (1, 0.9, 1.1)))
    assert 0 <= sureness(scores) <= 1
    wider = widened(scores, torch.full((3,), 0.1, dtype=torch.float64))
    assert bool((wider.low <= wider.high).all()) and float(wider.low[0]) < 1e-300
    assert bool((wider.low[1:] < scores.low[1:]).all()) and bool((wider.high[1:] > scores.high[1:]).all())


def test_sureness_is_the_correlation_with_the_truth():
    dice = torch.Generator().manual_seed(0)
    truth = 0.3 * torch.randn(2000, generator=dice, dtype=torch.float64)
    for spread in (0.05, 0.3, 1.0):
        seen = truth + spread * torch.randn(2000, generator=dice, dtype=torch.float64)
        scores = Scores(seen.exp(), (seen - 1.645 * spread).exp(), (seen + 1.645 * spread).exp())
        expected = float(torch.corrcoef(torch.stack([truth, seen]))[0, 1])
        assert sureness(scores) == pytest.approx(expected, abs=0.05)
