"""A selection policy is one file: widgets, tooltip, checks, routes and gate read the register."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from conditional_balance.engine.gates.policies import POLICIES, Policy, lowest
from conditional_balance.engine.gates.policies.base import parameter
from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.nodes.gate import CBSelectLayers, chosen_layers, problem_with


@dataclass(frozen=True)
class Shifted(Policy):
    """Leaves out the first few of the ranking."""

    name = "shifted"
    about = "leaves out the very first layers"
    left_out: int = parameter(default=1, low=0, high=9, step=1, about="Layers left out.")

    def choose(self, profile: SensitivityProfile, sigma: float, feature: str, count: int) -> torch.Tensor:
        scores = profile.at(sigma, feature)
        return lowest(scores, count + self.left_out) - lowest(scores, self.left_out)


@pytest.fixture
def shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, Shifted.name, Shifted)


def widgets() -> dict[str, Any]:
    return {each.id: each for each in CBSelectLayers.define_schema().inputs}


def test_a_new_policy_and_its_parameter_come_last_in_the_schema(shifted: None) -> None:
    before, *_, last = widgets()
    assert before == "profile" and last == "left_out"
    added = widgets()["left_out"]
    assert (added.optional, added.default, added.min, added.max) == (True, 1, 0, 9)
    assert added.tooltip == "Layers left out. Other policies ignore it." and added.as_dict()["advanced"]
    policy = widgets()["policy"]
    assert policy.options[-1] == "shifted" and "shifted: leaves out the very first layers." in policy.tooltip


@pytest.mark.parametrize(("given", "expected"), [({}, [0, 1, 1, 0]), ({"left_out": 2}, [0, 0, 1, 1])])
def test_the_gate_takes_the_widgets_value_or_the_default(shifted: None, given: dict, expected: list[int]) -> None:
    layers = tuple(LayerId("output", number, 0) for number in range(4))
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).expand(1, 1, 4)
    profile = SensitivityProfile(layers, ("q",), torch.tensor([1.0]), scores)
    values = {name: each.default for name, each in widgets().items() if hasattr(each, "default")}
    values = {**values, "policy": "shifted", "lambda": 0.5, "left_out": 1} | given
    gate, _ = chosen_layers(profile, values)
    assert gate.weights(1.0, layers, float)[0].tolist() == expected


def test_values_beyond_a_parameters_range_are_refused_by_name(shifted: None) -> None:
    assert problem_with({"left_out": 10}) == "'left_out' is 10: enter a number from 0 to 9."
