"""Which style amount is suggested."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine.suggesting import Tries, suggested

AMOUNTS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.8)
numbers = st.lists(st.floats(-0.2, 1.2), min_size=6, max_size=6)


def test_style_that_grows_while_content_falls_at_one_rate_meets_in_the_middle() -> None:
    """sqrt(a (1 - a)) is largest at 1/2."""
    assert suggested(Tries((0.0, 1.0), (0.0, 1.0), (1.0, 0.0))) == pytest.approx(0.5)


def test_free_style_is_taken_where_it_is_the_most() -> None:
    assert suggested(Tries(AMOUNTS, (0, 0.1, 0.4, 0.7, 0.8, 0.9), (1,) * 6)) == 0.8


def test_beyond_the_reference_and_the_plain_picture_nothing_more_is_gained() -> None:
    assert suggested(Tries(AMOUNTS, (0, 0.5, 1.0, 1.2, 1.2, 1.2), (1, 1, 1, 0.9, 0.9, 0.9))) == 0.3
    assert suggested(Tries(AMOUNTS, (0, 0.5, 0.8, 0.7, 0.7, 0.7), (1, 1, 1, 1.2, 1.2, 1.2))) == 0.3


def kept(tries: Tries, amount: float) -> float:
    """Style times content at an amount, by hand: straight lines between the tries, nothing below 0 or above 1."""
    after = next(place for place, tried in enumerate(AMOUNTS) if tried >= amount - 1e-9 and place)
    part = (amount - AMOUNTS[after - 1]) / (AMOUNTS[after] - AMOUNTS[after - 1])
    sides = [[min(max(side[place], 0.0), 1.0) for place in (after - 1, after)] for side in tries[1:]]
    return math.prod(first + part * (second - first) for first, second in sides)


@given(style=numbers, content=numbers)
def test_it_is_the_best_of_what_lies_between_the_tries(style: list[float], content: list[float]) -> None:
    tries = Tries(AMOUNTS, style, content)
    found = suggested(tries)
    assert 0 <= found <= 0.8
    assert kept(tries, found) == pytest.approx(max(kept(tries, number / 100) for number in range(81)), abs=1e-9)
