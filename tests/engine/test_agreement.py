"""Agreement of rankings against the textbook's rank correlation, ties and all."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine.agreement import spearman


def ranks(values: list[float]) -> list[float]:
    """Ranks from 1; equal values share the mean of theirs."""
    return [sum(other < each for other in values) + (sum(other == each for other in values) + 1) / 2 for each in values]


def pearson(one: list[float], other: list[float]) -> float:
    centred = [[each - sum(side) / len(side) for each in side] for side in (one, other)]
    return sum(map(math.prod, zip(*centred, strict=True))) / math.sqrt(
        math.prod(sum(each**2 for each in side) for side in centred)
    )


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=12))
def test_ties_share_their_mean_rank(pairs: list[tuple[int, int]]) -> None:
    one, other = ([float(each) for each in side] for side in zip(*pairs, strict=True))
    found = spearman(torch.tensor(one), torch.tensor(other))
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert found == 0
    else:
        assert found == pytest.approx(pearson(ranks(one), ranks(other)), abs=1e-9)


def test_two_of_three_tied() -> None:
    assert spearman(torch.tensor([1.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])) == pytest.approx(math.sqrt(3) / 2)


def test_one_layer_ranks_nothing() -> None:
    assert spearman(torch.tensor([1.0]), torch.tensor([2.0])) == 0
