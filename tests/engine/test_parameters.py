"""Weights of parameters from those of layers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine.parameters import parameter_weights

KNOWN = {"in.4.1.tb.0.q": 1.0, "in.4.1.tb.1.q": 0.0, "in.5.1.tb.0.q": 0.5, "out.0.1.tb.0.q": 0.25}


def test_known_names_keep_their_weights_and_others_follow_their_nearest_relatives() -> None:
    asked = [*KNOWN, "in.4.1.tb.0.ff", "in.4.0.conv", "in.9.conv", "time.0"]
    found = parameter_weights(asked, KNOWN)
    assert {name: found[name] for name in KNOWN} == KNOWN
    assert found["in.4.1.tb.0.ff"] == 1.0
    assert found["in.4.0.conv"] == 0.5
    assert found["in.9.conv"] == 0.5
    assert found["time.0"] == 1.75 / 4


def test_of_no_layers_nothing_acts() -> None:
    assert parameter_weights(["a.b"], {}) == {"a.b": 0.0}


@given(st.sampled_from([0.0, 1.0]), st.lists(st.text("ab.", min_size=1, max_size=8)))
def test_one_weight_for_all_stays_exactly_that(weight: float, names: list[str]) -> None:
    assert set(parameter_weights(names, dict.fromkeys(KNOWN, weight)).values()) <= {weight}
