"""One list for all noise levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...profile import SensitivityProfile
from .base import Policy, lowest, register, scores_of, time_weights


@register
@dataclass(frozen=True)
class Static(Policy):
    """The K lowest scores of the mean over noise levels."""

    name = "static"
    about = "one list for all noise levels"

    def choose(self, profile: SensitivityProfile, sigma: float, feature: str, count: int) -> torch.Tensor:
        return lowest(time_mean(profile, feature), count)


def time_mean(profile: SensitivityProfile, feature: str) -> torch.Tensor:
    """Scores [L] averaged over the noise levels of a profile."""
    return time_weights(profile.sigmas, profile.noise) @ scores_of(profile, feature)
