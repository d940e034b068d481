"""The paper's policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...profile import SensitivityProfile
from .base import Policy, lowest, register


@register
@dataclass(frozen=True)
class PerStep(Policy):
    """The K lowest scores at this noise level, for queries and keys apart (arXiv 2412.19853)."""

    name = "per-step"
    about = "the most sensitive layers at each noise level, as in the paper"

    def choose(self, profile: SensitivityProfile, sigma: float, feature: str, count: int) -> torch.Tensor:
        return lowest(profile.at(sigma, feature), count)
