"""Two predictions as one: closed forms, and what is left out where they oppose."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine.blending import blended, opposing, weights_of

FULL, NONE = torch.ones(3, 4), torch.zeros(3, 4)


def drawn(seed: int) -> torch.Tensor:
    return torch.randn(2, 4, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_one_prompt_alone_is_its_own_prediction_bit_for_bit() -> None:
    own, other, without = drawn(1), drawn(2), drawn(3)
    assert torch.equal(blended(own, other, without, NONE, FULL), other)
    assert torch.equal(blended(own, other, without, FULL, NONE), own)


def test_directions_that_agree_are_added_and_opposite_ones_take_each_other_out() -> None:
    without, direction = drawn(1), drawn(2)
    agreeing = blended(without + direction, without + 2 * direction, without, FULL, FULL)
    torch.testing.assert_close(agreeing, without + 3 * direction)
    opposed = blended(without + direction, without - 2 * direction, without, FULL, FULL)
    torch.testing.assert_close(opposed, without)


def test_more_than_the_whole_of_both_takes_no_more_out() -> None:
    without, direction = drawn(1), drawn(2)
    torch.testing.assert_close(
        blended(without + direction, without - 2 * direction, without, 2 * FULL, 2 * FULL), without
    )


def test_where_one_prompt_is_alone_nothing_of_it_is_left_out() -> None:
    without, direction = drawn(1), drawn(2)
    part = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(3, 4)
    own, other = without + direction, without - 2 * direction
    assert torch.equal(blended(own, other, without, FULL, part)[..., 2:], own[..., 2:])
    assert torch.equal(blended(own, other, without, part, FULL)[..., 2:], other[..., 2:])


@given(st.integers(0, 10**6))
def test_no_direction_is_left_against_the_other_within_the_overlap(seed: int) -> None:
    first, second = drawn(seed), drawn(seed + 1)
    overlap = (torch.arange(12).view(3, 4) % 2).double()
    for one, part, along in zip((first, second), opposing(first, second, overlap), (second, first), strict=True):
        assert torch.equal(part * (1 - overlap), torch.zeros_like(part))
        before = (overlap * one * along).sum((1, 2, 3))
        after = (overlap * (one - part) * along).sum((1, 2, 3))
        torch.testing.assert_close(after, before.clamp(min=0), atol=1e-9, rtol=0)


def test_pictures_do_not_decide_for_each_other() -> None:
    first = drawn(1)
    second = torch.stack((first[0], -first[1]))
    parts = opposing(first, second, FULL)
    assert not parts[0][0].any() and torch.allclose(parts[0][1], first[1])


@pytest.mark.parametrize("stays", [True, False])
def test_weights_by_place(stays: bool) -> None:
    mask = torch.tensor([[0.0, 0.25, 1.0]])
    own, other = weights_of(mask, 2.0, stays)
    assert torch.equal(other, 2 * mask)
    assert torch.equal(own, torch.ones(1, 3) if stays else torch.tensor([[1.0, 0.5, 0.0]]))
