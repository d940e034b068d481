"""The report says what the numbers say."""

from __future__ import annotations

from dataclasses import replace

import torch

from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.render.report import report

LAYERS = tuple(LayerId("output", number, 0) for number in range(6))
FACTS = {
    "clusters": {"ink": 3, "oil": 4},
    "estimator": "jensen_shannon",
    "separation": {"p": 0.002, "share": 0.9},
    "cost": {"forward_passes": 84, "seconds": 12.34},
}


def profile(**changes) -> SensitivityProfile:
    scores = torch.linspace(0.2, 0.7, 6, dtype=torch.float64).repeat(2, 3, 1)
    bounds = {"low": scores - 0.1, "high": scores + 0.1}
    made = SensitivityProfile(LAYERS, ("q", "k"), torch.tensor([9.0, 1.0, 0.1]), scores, provenance=FACTS, **bounds)
    return replace(made, **changes)


def test_it_names_top_and_bottom_layers_with_their_interval():
    text = report(profile())
    assert "most sensitive:  o0.0 0.200 [0.100, 0.300]" in text
    assert "least sensitive: o5.0 0.700 [0.600, 0.800]" in text
    assert "7 images in 2 clusters: ink (3), oil (4)" in text
    assert "84 image passes through the model, 12.3 s" in text


def test_one_ranking_at_all_levels_is_perfectly_stable_and_a_reversed_one_is_found():
    assert "neighbours agree at 1.00" in report(profile()) and "q and k 1.00" in report(profile())
    scores = profile().scores.clone()
    scores[:, 2] = scores[:, 2].flip(-1)
    assert "least at sigma 0.10 (-1.00)" in report(profile(scores=scores))


def test_a_ranking_of_style_on_a_transformer_says_what_is_known_of_such():
    warned = "compare it with Measure Layers"
    joint = tuple(LayerId("joint", number, 0) for number in range(6))
    of_style = FACTS | {"what": "style"}
    assert warned in report(profile(layers=joint, provenance=of_style))
    assert warned not in report(profile(provenance=of_style))
    assert warned not in report(profile(layers=joint, provenance=FACTS | {"what": "geometry"}))
    assert warned not in report(profile(layers=joint, provenance={"what": "style", "source": "published"}))


def test_clusters_that_do_not_separate_are_called_out():
    assert "The clusters separate: p = 0.002" in report(profile())
    facts = FACTS | {"separation": {"p": 0.4, "share": 0.05}}
    assert "do NOT clearly separate" in report(profile(provenance=facts))


def test_published_ranks_and_a_single_level_can_be_reported():
    bare = profile(low=None, high=None, provenance={}, sigmas=torch.tensor([1.0]), scores=profile().scores[:, :1])
    assert "o0.0 0.200," in report(bare) and "one noise level only" in report(bare) and "Cost" not in report(bare)
