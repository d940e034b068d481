"""One threshold for all noise levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...profile import SensitivityProfile
from .base import Policy, register, scores_of, time_weights


@register
@dataclass(frozen=True)
class Budget(Policy):
    """Every layer below the score that opens K layers on average over the noise levels."""

    name = "budget"
    about = "one threshold, so few layers early and many late"

    def choose(self, profile: SensitivityProfile, sigma: float, feature: str, count: int) -> torch.Tensor:
        return (profile.at(sigma, feature) <= budget_threshold(profile, feature, count)).double()


def budget_threshold(profile: SensitivityProfile, feature: str, count: int) -> float:
    """The one score that opens `count` layers on average over the noise levels."""
    if count == 0:
        return -torch.inf
    scores = scores_of(profile, feature)
    parts = time_weights(profile.sigmas, profile.noise)[:, None].expand_as(scores).flatten()
    ordered, order = scores.flatten().sort(stable=True)
    reached = parts[order].cumsum(0)
    last = int(torch.searchsorted(reached, torch.tensor(count - 1e-9, dtype=torch.float64)))
    return float(ordered[min(last, len(ordered) - 1)])
