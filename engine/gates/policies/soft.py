"""Per-step with a soft edge."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...profile import SensitivityProfile
from .base import Policy, lowest, parameter, register

NEGLIGIBLE = 0.01
"""A soft weight this near to 0 or 1 is taken as 0 or 1, so that layers far from the edge cost nothing extra."""


@register
@dataclass(frozen=True)
class Soft(Policy):
    """Weights that fall over an edge `softness` standard deviations of the scores wide."""

    name = "soft"
    about = "per-step with a soft edge"
    softness: float = parameter(
        default=0.1,
        low=0.0,
        high=1.0,
        step=0.01,
        about="Width of the edge of the soft policy, in standard deviations of the scores. 0.1 is good; 0 is per-step. "
        "Wider edges open more layers and cost more time.",
    )

    def choose(self, profile: SensitivityProfile, sigma: float, feature: str, count: int) -> torch.Tensor:
        return soft_weights(profile.at(sigma, feature), count, self.softness)


def soft_weights(scores: torch.Tensor, count: int, softness: float) -> torch.Tensor:
    """w = sigmoid((theta - score) / tau), theta between the last layer kept and the first one dropped.

    tau is `softness` standard deviations of the scores; as it falls to 0 this becomes `lowest`.
    """
    tau = softness * float(scores.std(correction=0))
    if tau == 0 or count in (0, len(scores)):
        return lowest(scores, count)
    ordered = scores.sort().values
    theta = (ordered[count - 1] + ordered[count]) / 2
    weights = torch.sigmoid((theta - scores) / tau)
    weights[weights < NEGLIGIBLE] = 0.0
    weights[weights > 1 - NEGLIGIBLE] = 1.0
    return weights
