"""A gate for conditions that cannot change during a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..layers import LayerId
from .base import LayerGate, ToSigma

LEVELS = 50
"""Noise levels at which a gate is read, at equal distances in percent."""


def mean_weights(gate: LayerGate, layers: Sequence[LayerId], to_sigma: ToSigma) -> torch.Tensor:
    """The gate's weights [3, L] in float64, averaged over a run."""
    return over_run(gate, layers, to_sigma).mean(0)


def changes(gate: LayerGate, layers: Sequence[LayerId], to_sigma: ToSigma) -> bool:
    """Whether a gate's weights differ between noise levels of a run."""
    levels = over_run(gate, layers, to_sigma)
    return bool((levels != levels[0]).any())


def over_run(gate: LayerGate, layers: Sequence[LayerId], to_sigma: ToSigma) -> torch.Tensor:
    """The gate's weights [LEVELS, 3, L] from the start of a run to its end."""
    sigmas = (to_sigma((level + 0.5) / LEVELS) for level in range(LEVELS))
    return torch.stack([gate.weights(sigma, layers, to_sigma) for sigma in sigmas])
