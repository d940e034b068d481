"""Baseline policies, to compare a ranking with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...layers import in_forward_order
from ...profile import SensitivityProfile
from .base import Policy, lowest, parameter, register


@register
@dataclass(frozen=True)
class Random(Policy):
    """The same K layers for every feature and noise level, drawn from the seed."""

    name = "random"
    about = "layers drawn by the seed, for comparison only"
    random_seed: int = parameter(
        default=0, low=0, high=2**64 - 1, step=1, about="Draws the layers of the random policy."
    )  # not "seed", which front ends change by themselves after every run

    def choose(self, profile: SensitivityProfile, sigma: float, feature: str, count: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.random_seed)
        return lowest(torch.rand(len(profile.layers), generator=generator), count)


@register
@dataclass(frozen=True)
class EvenlySpaced(Policy):
    """Every n-th layer of the forward pass."""

    name = "evenly spaced"
    about = "every n-th layer, for comparison only"

    def choose(self, profile: SensitivityProfile, sigma: float, feature: str, count: int) -> torch.Tensor:
        forward = in_forward_order(profile.layers)
        weights = dict(zip(forward, evenly_spaced(len(forward), count).tolist(), strict=True))
        return torch.tensor([weights[layer] for layer in profile.layers], dtype=torch.float64)


@register
@dataclass(frozen=True)
class Reversed(Policy):
    """The K least sensitive layers at this noise level."""

    name = "reversed"
    about = "the least sensitive layers, for comparison only"

    def choose(self, profile: SensitivityProfile, sigma: float, feature: str, count: int) -> torch.Tensor:
        return lowest(-profile.at(sigma, feature), count)


def evenly_spaced(layers: int, count: int) -> torch.Tensor:
    """Weights [L]: 1 for `count` layers at equal distances, in the middles of `count` equal stretches."""
    weights = torch.zeros(layers, dtype=torch.float64)
    weights[((torch.arange(count) + 0.5) * layers / max(count, 1)).long()] = 1.0
    return weights
