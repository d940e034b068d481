"""Comparing two rankings: closed forms, and what both profiles must have in common."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_profile import profile

from conditional_balance.engine.comparing import compare, kendall, overlap
from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.profile import NoCommonFeature, ProfilesDiffer


def test_a_profile_agrees_with_itself_and_is_the_reverse_of_its_reverse():
    measured = profile()
    same, reverse = compare(measured, measured, 1), compare(measured, replace(measured, scores=-measured.scores), 1)
    for name in ("spearman", "kendall", "overlap"):
        assert torch.equal(getattr(same, name), torch.ones(2, 4, dtype=torch.float64))
    assert bool((reverse.spearman == -1).all() & (reverse.kendall == -1).all() & (reverse.overlap == 0).all())
    assert same.chance == pytest.approx(1 / 3) and same.features == ("q", "k")


def test_closed_forms():
    one, other = torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 2, 4, 3])
    assert kendall(one, other) == pytest.approx(4 / 6)  # five pairs agree, one does not
    assert overlap(one, other, 3) == pytest.approx(2 / 3) and overlap(one, other, 2) == 1
    assert kendall(one, torch.ones(4)) == 0


def test_layers_are_matched_by_name_and_levels_by_interpolation():
    measured = profile()
    order = [2, 0, 1]
    turned = replace(
        measured,
        layers=tuple(measured.layers[i] for i in order),
        scores=measured.scores[..., order],
        features=("q", "k"),
    )
    assert bool((compare(measured, turned, 2).spearman == 1).all())
    finer = replace(measured, sigmas=torch.tensor([10.0, 5, 1, 0.1]), scores=measured.scores)
    assert compare(measured, finer, 2).spearman.shape == (2, 4)
    keys = replace(measured, features=("k",), scores=measured.scores[1:])
    assert compare(measured, keys, 2).features == ("k",)


def test_other_layers_or_features_are_refused():
    measured = profile()
    with pytest.raises(NoCommonFeature, match=r"no feature in common \(q; v\)"):
        compare(replace(measured, features=("q",), scores=measured.scores[:1]),
                replace(measured, features=("v",), scores=measured.scores[:1]), 1)  # fmt: skip
    with pytest.raises(ProfilesDiffer, match="Profile 2 was measured on 3 layers and profile 1 on 3 of another"):
        compare(measured, replace(measured, layers=(*measured.layers[:2], LayerId("output", 9, 0))), 1)
