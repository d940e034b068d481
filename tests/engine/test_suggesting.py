"""Which style amount is suggested."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine.suggesting import Tries, balance, suggested

AMOUNTS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.8)
numbers = st.lists(st.floats(-0.2, 1.2), min_size=6, max_size=6)


def test_style_that_grows_while_content_falls_at_one_rate_meets_in_the_middle() -> None:
    """sqrt(a (1 - a)) is largest at 1/2."""
    assert suggested(Tries((0.0, 1.0), (0.0, 1.0), (1.0, 0.0))) == pytest.approx(0.5)


def test_free_style_is_taken_where_it_is_the_most() -> None:
    assert suggested(Tries(AMOUNTS, (0, 0.1, 0.4, 0.7, 0.8, 0.9), (1,) * 6)) == 0.8


@given(style=numbers, content=numbers)
def test_it_is_the_best_of_what_lies_between_the_tries(style: list[float], content: list[float]) -> None:
    tries = Tries(AMOUNTS, style, content)
    found, everywhere = suggested(tries), balance(tries, np.linspace(0, 0.8, 81))
    assert 0 <= found <= 0.8
    assert balance(tries, np.array([found]))[0] == pytest.approx(everywhere.max(), abs=1e-9)
