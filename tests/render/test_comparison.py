"""The comparison's chart and words say what was found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from conditional_balance.engine.comparing import compare
from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.render.comparison import HEIGHT, MEASURES, WIDTH, comparison_chart, comparison_report


def profile(levels: int, features: tuple[str, ...] = ("q", "k"), seed: int = 0) -> SensitivityProfile:
    scores = torch.rand(len(features), levels, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    layers = tuple(LayerId("output", number, 0) for number in range(10))
    return SensitivityProfile(layers, features, torch.logspace(1, -1, levels, dtype=torch.float64), scores)


def test_the_verdict_follows_the_agreement():
    one = profile(5)
    near = replace(one, scores=one.scores + 0.02 * profile(5, seed=1).scores)
    assert "the same layers come first" in comparison_report(compare(one, near, 4), ("a", "b"))
    words = comparison_report(compare(one, profile(5, seed=2), 4), ("a", "b"))
    assert "they differ" in words and "of the first 4 layers in common (by chance 40%)" in words
    assert words.count("\n") == 2


@pytest.mark.parametrize("levels", [1, 2, 50])
@pytest.mark.parametrize("features", [("q",), ("q", "k", "v")])
def test_the_chart_draws_every_measure_at_any_size(levels, features):
    found = compare(profile(levels, features), profile(levels, features, 1), 4)
    pixels = np.asarray(comparison_chart(found, ("one", "other")))
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    below_the_key = pixels[90:].reshape(-1, 3)
    for _, colour in MEASURES.values():
        assert (below_the_key == colour).all(-1).any()


def test_a_higher_agreement_is_drawn_higher():
    one = profile(1, ("q",))
    found = compare(one, one, 4)
    low = replace(found, spearman=found.spearman * 0, kendall=found.kendall * 0, overlap=found.overlap * 0)
    rows = [
        np.nonzero((np.asarray(comparison_chart(each, ("a", "b")))[90:] == MEASURES["overlap"][1]).all(-1))[0].mean()
        for each in (found, low)
    ]
    assert rows[0] < rows[1]
