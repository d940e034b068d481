"""From map to mask: thresholds against their definitions, shapes against geometry."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from conditional_balance.engine.masks import (
    RULES,
    MapNotFinite,
    MaskSettings,
    NoShare,
    UnknownRule,
    blurred,
    dilated,
    feathered,
    mask_of,
    mean_plus,
    otsu,
    smoothed,
    top_share,
)
from conditional_balance.render.overlay import heat, overlay

PLAIN = MaskSettings(blur=0, rule="otsu", dilate=0, feather=0)
values = st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=24)


def two_levels(size: int = 12) -> torch.Tensor:
    """[1, 1, size, size]: a bright square on a dark ground."""
    maps = torch.zeros(1, 1, size, size)
    maps[..., 3:7, 4:9] = 5
    return maps


@given(values)
def test_otsu_is_the_best_of_all_splits(numbers: list[float]) -> None:
    maps = torch.tensor(numbers)[None, None]
    found = float(otsu(maps))

    def spread(threshold: float) -> float:
        low, high = maps[maps <= threshold].double(), maps[maps > threshold].double()
        return float(len(low) * len(high) * (low.mean() - high.mean()) ** 2) if len(low) and len(high) else 0.0

    best = max(spread(float(number)) for number in numbers)
    assert spread(found) == pytest.approx(best, rel=1e-9, abs=1e-6)


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=30, unique=True), st.floats(0, 1))
def test_top_share_keeps_that_share(numbers: list[int], share: float) -> None:
    maps = torch.tensor(numbers, dtype=torch.float32)[None, None]
    assert int((maps > top_share(maps, share)).sum()) == round(share * len(numbers))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_takes_a_map_of_one_cell(rule: str) -> None:
    maps = torch.full((2, 1, 1, 1), 3.0)
    assert mask_of(maps, MaskSettings(blur=0.7, rule=rule, amount=0.0)).tolist() == [[[0.0]]]


@given(st.floats(0, 1), st.floats(1e-30, 1e30))
def test_a_share_does_not_depend_on_the_unit_of_a_map(share: float, unit: float) -> None:
    maps = unit * (1 + torch.arange(12.0).view(1, 3, 4))
    assert int((maps > top_share(maps, share)).sum()) == round(share * 12)


def test_the_papers_rule_is_mean_plus_half_a_deviation() -> None:
    maps = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = [float(part.mean() + 0.5 * part.std(correction=0)) for part in maps]
    assert mean_plus(maps, 0.5).flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_finds_a_clear_subject(rule: str) -> None:
    maps = two_levels()
    settings = MaskSettings(blur=0, rule=rule, amount=20 / 144 if rule == "top share" else 0.5, dilate=0)
    assert torch.equal(mask_of(maps, settings), (maps[0] > 0).float())


def test_subjects_are_united_each_under_its_own_threshold() -> None:
    weak = torch.zeros(1, 1, 12, 12)
    weak[..., 9:, :2] = 0.01
    found = mask_of(torch.cat((two_levels(), weak)), PLAIN)
    assert torch.equal(found, ((two_levels() + weak)[0] > 0).float())


def test_invert_swaps_inside_and_outside() -> None:
    found = mask_of(two_levels(), MaskSettings(blur=0, rule="otsu", dilate=0, invert=True))
    assert torch.equal(found, 1 - mask_of(two_levels(), PLAIN))


@given(st.integers(0, 9), st.integers(0, 9), st.floats(0.1, 6))
def test_dilation_takes_every_cell_in_reach(y: int, x: int, radius: float) -> None:
    inside = torch.zeros(1, 10, 10, dtype=torch.bool)
    inside[0, y, x] = True
    rows, columns = torch.meshgrid(torch.arange(10.0), torch.arange(10.0), indexing="ij")
    assert torch.equal(dilated(inside, radius)[0], ((rows - y) ** 2 + (columns - x) ** 2).sqrt() <= radius)


def test_feather_keeps_the_subject_whole_and_falls_evenly() -> None:
    inside = torch.zeros(1, 1, 9, dtype=torch.bool)
    inside[..., :2] = True
    assert feathered(inside, 4)[0, 0].tolist() == [1, 1, 0.75, 0.5, 0.25, 0, 0, 0, 0]


def test_an_empty_mask_stays_empty() -> None:
    found = mask_of(torch.ones(1, 1, 6, 6), MaskSettings(dilate=3, feather=2))
    assert not found.any()


def test_a_larger_map_with_its_scale_gives_the_same_mask() -> None:
    """Lengths are in cells, so a map drawn eight times as large is treated alike."""
    settings = MaskSettings(blur=1.0, rule="otsu", dilate=1.0)
    small = mask_of(two_levels(), settings)
    large = mask_of(two_levels().repeat_interleave(8, -1).repeat_interleave(8, -2), settings, 8.0)
    shared = torch.nn.functional.avg_pool2d(large[None], 8)[0]
    assert float((shared - small).abs().mean()) < 0.08


def test_every_length_is_so_many_times_longer_at_a_scale() -> None:
    cells, pixels = MaskSettings(blur=0.25, dilate=0.5, feather=0.5), MaskSettings(blur=1.0, dilate=2.0, feather=2.0)
    assert torch.equal(mask_of(two_levels(24), cells, 4.0), mask_of(two_levels(24), pixels))


@pytest.mark.parametrize("rule", RULES)
def test_every_picture_of_a_batch_has_a_threshold_of_its_own(rule: str) -> None:
    one = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    settings = MaskSettings(rule=rule, amount=0.3)
    both = mask_of(torch.cat((one, 100 + 0.1 * one.flip(-1)), 1), settings)
    assert torch.equal(both, torch.cat((mask_of(one, settings), mask_of(one.flip(-1), settings))))
    assert 0 < float(both.mean()) < 1


def test_a_blur_of_few_cells_reaches_as_far_as_they_do() -> None:
    maps = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(5))
    expected = torch.from_numpy(ndimage.gaussian_filter(maps.numpy(), (0, 1, 1), radius=(0, 3, 3), mode="mirror"))
    torch.testing.assert_close(blurred(maps, 1.0), expected)


def test_without_kornia_a_blur_names_the_cure_and_no_blur_needs_none(monkeypatch) -> None:
    for module in ("kornia", "kornia.filters"):
        monkeypatch.setitem(sys.modules, module, None)
    assert torch.equal(blurred(torch.ones(1, 8, 8), 0.0), torch.ones(1, 8, 8))
    with pytest.raises(ImportError, match=r"A blur needs the package kornia.*pip install kornia.*set the blur to 0"):
        blurred(torch.ones(1, 8, 8), 1.0)


def test_blur_keeps_the_sum_inside_and_zero_changes_nothing() -> None:
    maps = two_levels(32)[0].roll((8, 8), (-1, -2))  # away from the border
    assert blurred(maps, 0.0) is maps
    assert float(blurred(maps, 1.0).sum()) == pytest.approx(float(maps.sum()), rel=1e-4)
    assert blurred(maps[:, :2, :2], 5.0).shape == (1, 2, 2)


def test_smoothing_mixes_with_what_was() -> None:
    now, before = torch.full((2,), 1.0), torch.full((2,), 3.0)
    assert smoothed(now, None, 0.5) is now
    assert smoothed(now, before, 0.25).tolist() == [1.5, 1.5]


def test_bad_settings_are_named() -> None:
    with pytest.raises(UnknownRule, match="There is no rule 'best' for the threshold: choose one of mean") as unknown:
        MaskSettings(rule="best")
    assert unknown.value.rule == "best"
    with pytest.raises(NoShare, match="lies between 0 and 1, and this one is 2") as outside:
        MaskSettings(rule="top share", amount=2)
    assert outside.value.amount == 2
    assert MaskSettings(rule="mean + c std", amount=-2).amount == -2  # no share
    with pytest.raises(MapNotFinite, match="not finite"):
        mask_of(torch.full((1, 1, 3, 3), torch.nan), PLAIN)


def test_pictures_for_people_stay_in_range() -> None:
    maps = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(1))
    shown = heat(maps)
    assert shown.shape == (2, 6, 6, 3) and shown.amin() == 0 and shown.amax() == 1
    assert heat(torch.ones(1, 3, 3)).isfinite().all()
    picture, mask = torch.rand(1, 4, 4, 3), torch.zeros(1, 4, 4)
    mask[:, :2] = 1
    laid = overlay(picture, mask)
    assert torch.equal(laid[:, :2], picture[:, :2])
    assert (laid[:, 2:].std(-1) < 1e-6).all() and (laid[:, 2:] < 0.36).all()
