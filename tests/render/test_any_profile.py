"""Every profile that the door lets in can be drawn, reported and sent to the front end."""

from __future__ import annotations

import json

import pytest
import torch

from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.engine.profile_file import LARGEST_SCORE, MOST_LAYERS, MOST_LEVELS, load, save
from conditional_balance.render.heatmap import draw
from conditional_balance.render.layer_map import profile_map
from conditional_balance.render.report import in_short, report

FACTS = {"what": "a\nb" * 300, "clusters": {"ink\n": 3}, "separation": {"p": -1e14, "share": 1e14}}
SHAPES = {"one": (1, 1), "many layers": (MOST_LAYERS, 2), "many levels": (2, MOST_LEVELS)}


@pytest.mark.parametrize("what", ["one per block", "all in one block"])
@pytest.mark.parametrize(("layers", "levels"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("value", [0.0, LARGEST_SCORE, None])
def test_a_profile_at_the_bounds_is_drawn_and_told(tmp_path, layers, levels, value, what):
    ids = [LayerId("output", *((number, 0) if what == "one per block" else (0, number))) for number in range(layers)]
    sigmas = torch.logspace(8, -8, levels, dtype=torch.float64)
    scores = torch.rand(1, levels, layers, dtype=torch.float64) * LARGEST_SCORE
    scores = scores if value is None else torch.full_like(scores, value)
    save(SensitivityProfile(tuple(ids), ("k",), sigmas, scores, provenance=FACTS), tmp_path / "any")
    loaded = load(tmp_path / "any")
    assert draw(loaded, f"Model: sensitivity to {FACTS['what']}").width == 1024
    assert report(loaded) and in_short(loaded)
    json.dumps(profile_map(loaded), allow_nan=False)
