"""Gates made of gates hand on the noise level and the model's own schedule, and stay within 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from conditional_balance.engine.gates import CombinedGate, LayerGate, ScaledGate, ToSigma, WindowedGate, windowed
from conditional_balance.engine.layers import LayerId

LAYERS = (LayerId("output", 0, 0), LayerId("output", 1, 0))


@dataclass(frozen=True)
class Half(LayerGate):
    """Half open below the middle of the schedule that it is given."""

    def weights(self, sigma: float, layers: Sequence[LayerId], to_sigma: ToSigma) -> torch.Tensor:
        return torch.full((3, len(layers)), 0.5 if sigma < to_sigma(0.5) else 0.0, dtype=torch.float64)


def linear(percent: float) -> float:
    return 10.0 * (1 - percent)


@pytest.mark.parametrize(
    ("gate", "weight"),
    [
        (Half(), 0.5),
        (ScaledGate(Half(), 0.5), 0.25),
        (ScaledGate(Half(), 3.0), 1.0),
        (CombinedGate(Half(), Half(), "and"), 0.5),
        (CombinedGate(Half(), Half(), "minus"), 0.25),
        (WindowedGate(Half(), 0.2, 1.0), 0.5),
        (WindowedGate(ScaledGate(CombinedGate(Half(), Half(), "or"), 0.5), 0.0, 1.0), 0.25),
    ],
)
def test_noise_level_and_schedule_reach_the_gate_inside(gate: LayerGate, weight: float) -> None:
    assert gate.weights(4.9, LAYERS, linear).unique().tolist() == [weight]
    assert gate.weights(5.1, LAYERS, linear).unique().tolist() == [0.0]


def test_a_factor_below_zero_closes() -> None:
    assert not ScaledGate(Half(), -1.0).weights(1.0, LAYERS, linear).any()


def test_a_window_of_one_moment_is_a_window() -> None:
    gate = windowed(Half(), 0.6, 0.6)
    assert gate.weights(linear(0.6), LAYERS, linear).all() and not gate.weights(4.1, LAYERS, linear).any()
