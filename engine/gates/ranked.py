"""The gate that a sensitivity profile makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from ..layers import LayerId
from ..profile import FEATURES, SensitivityProfile
from .base import LayerGate, ToSigma
from .policies import PerStep, Policy


class ScoresNotFinite(ValueError):
    """A profile that cannot rank."""

    def __init__(self) -> None:
        super().__init__("The profile holds scores that are not finite numbers: measure it again.")


PAPER = PerStep()


@dataclass(frozen=True)
class RankedGate(LayerGate):
    """The layers that a policy keeps of a profile. A feature that was not measured is open where any measured one is.

    `amount` is lambda: the part of the layers kept, 0 to 1, or their count when above 1 (arXiv 2412.19853, lambda_S).
    Raises ScoresNotFinite, or ValueError where the policy ranks by scores that the profile does not hold.
    """

    profile: SensitivityProfile
    amount: float
    policy: Policy = PAPER

    def __post_init__(self) -> None:
        if not self.profile.scores.isfinite().all():
            raise ScoresNotFinite
        self.ranking  # noqa: B018 - raises where the policy has nothing to rank by

    @cached_property
    def ranking(self) -> SensitivityProfile:
        """What the policy ranks by."""
        return self.policy.ranking(self.profile)

    @property
    def count(self) -> int:
        """Layers kept, K."""
        return layer_count(self.amount, len(self.profile.layers))

    def weights(self, sigma: float, layers: Sequence[LayerId], to_sigma: ToSigma) -> torch.Tensor:
        order = self.profile.aligned(layers)
        if not self.count:
            return torch.zeros(len(FEATURES), len(order), dtype=torch.float64)
        choose, ranking = self.policy.choose, self.ranking
        measured = {feature: choose(ranking, sigma, feature, self.count)[order] for feature in ranking.features}
        any_measured = torch.stack(list(measured.values())).amax(0)
        return torch.stack([measured.get(feature, any_measured) for feature in FEATURES])


def layer_count(amount: float, layers: int) -> int:
    """K = int(amount * layers), or int(amount) when it is above 1; the paper's truncation, safe from rounding."""
    count = amount if amount > 1 else amount * layers
    return min(int(count + 1e-9), layers)
