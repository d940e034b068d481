"""The layer map in JSON types: layers in forward order, ranks as a gate takes them, colours of the heat map."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine.gates import RankedGate, pinned, windowed
from conditional_balance.engine.gates.policies import lowest
from conditional_balance.engine.grammar import GrammarError, edited, parse
from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.engine.profile_file import digest
from conditional_balance.render.layer_map import profile_map, ranks, selection_map

LAYERS = tuple(LayerId.parse(name) for name in ("o0.0", "o0.1", "i4.0", "i4.1", "m0.0"))
FORWARD = ["i4.0", "i4.1", "m0.0", "o0.0", "o0.1"]


def profile_of(seed: int = 0, features: tuple[str, ...] = ("q", "k")) -> SensitivityProfile:
    scores = torch.rand(len(features), 3, len(LAYERS), generator=torch.Generator().manual_seed(seed)).double()
    return SensitivityProfile(LAYERS, features, torch.tensor([10.0, 1.0, 0.1]), scores)


def test_a_profile_is_drawn_in_forward_order() -> None:
    profile = profile_of()
    shown = json.loads(json.dumps(profile_map(profile)))
    assert shown["layers"] == FORWARD and shown["features"] == ["q", "k"] and len(shown["sigmas"]) == 3
    for place, name in enumerate(FORWARD):
        index = LAYERS.index(LayerId.parse(name))
        assert shown["scores"][1][2][place] == pytest.approx(float(profile.scores[1, 2, index]), abs=1e-4)


def test_the_most_sensitive_layer_is_the_brightest_and_ranks_first() -> None:
    shown = profile_map(profile_of())
    cells = [(shown["scores"][f][t][c], shown["shades"][f][t][c]) for f in range(2) for t in range(3) for c in range(5)]
    assert min(cells)[1] == 255 and max(cells)[1] == 0
    assert shown["palette"][0] == "#161a3a" and shown["palette"][-1] == "#fffbe0" and len(shown["palette"]) == 256
    for row, scores in zip(shown["ranks"][0], shown["scores"][0], strict=True):
        assert scores[row.index(1)] == min(scores) and sorted(row) == [1, 2, 3, 4, 5]


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=1, max_size=12), st.integers(0, 12))
def test_a_gate_keeps_the_layers_that_rank_first_also_among_equals(scores: list[float], count: int) -> None:
    values = torch.tensor(scores)
    assert torch.equal(lowest(values, count) > 0, ranks(values) <= count)


def test_a_selection_is_drawn_with_its_hands_and_its_window() -> None:
    profile = profile_of()
    pins, exclusions = parse("o0.1"), parse("i4")
    gate = windowed(pinned(RankedGate(profile, 1.0), pins, exclusions), 0.3, 1.0)
    shown = selection_map(gate, profile, pins, exclusions)
    assert shown["pinned"] == [False, False, False, False, True]
    assert shown["excluded"] == [True, True, False, False, False]
    assert shown["weights"]["q"] == [[0.0] * 5, [0.0, 0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0, 1.0]]


def test_only_measured_features_are_drawn() -> None:
    profile = profile_of(features=("k",))
    shown = selection_map(RankedGate(profile, 0.4), profile, parse(""), parse(""))
    assert list(shown["weights"]) == ["k"] and profile_map(profile)["features"] == ["k"]


def test_equal_profiles_have_one_name_and_others_another() -> None:
    assert digest(profile_of(1)) == digest(profile_of(1)) != digest(profile_of(2))


ENTRIES = st.sampled_from(["o0.1", "-o0.1", "i4", "-m0", "all", "q:o0", "o0.1:0.5", "-k:o0.1", "m"])


@given(st.lists(ENTRIES, max_size=5).map(", ".join), st.sampled_from(LAYERS), st.booleans())
def test_a_click_changes_one_layer_and_nothing_else(text: str, layer: LayerId, chosen: bool) -> None:
    before, after = parse(text).weights(LAYERS), parse(edited(text, layer, LAYERS, chosen)).weights(LAYERS)
    index = LAYERS.index(layer)
    assert after[:, index].tolist() == [float(chosen)] * 3
    before[:, index] = after[:, index]
    assert torch.equal(after, before)


@pytest.mark.parametrize(
    ("text", "picked"), [("", "o0.1"), ("i4", "i4, o0.1"), ("-m0", "-m0"), ("-o0.1", "-o0.1, o0.1")]
)
def test_a_layer_picked_and_dropped_leaves_the_text_as_it_was(text: str, picked: str) -> None:
    layer = LayerId.parse("o0.1")
    assert edited(text, layer, LAYERS, True) == picked
    if not parse(text).weights(LAYERS)[:, LAYERS.index(layer)].any():
        assert parse(edited(picked, layer, LAYERS, False)) == parse(text)


def test_a_text_that_does_not_read_is_not_edited() -> None:
    with pytest.raises(GrammarError, match="Expected a layer"):
        edited("nonsense", LAYERS[0], LAYERS, True)
