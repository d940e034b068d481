"""What a selection policy is, and the register that widgets, tooltips, checks and the layer map read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch

from ...noise import LOG, variable
from ...profile import SensitivityProfile


@dataclass(frozen=True)
class Parameter:
    """A number that belongs to one policy; `about` says in one or two sentences what it does and a good value."""

    name: str
    default: float
    low: float
    high: float
    step: float
    about: str


@dataclass(frozen=True)
class Policy(ABC):
    """One way to choose layers. A new one is a frozen dataclass under `@register`, in a file of this folder.

    `name` is what the widget offers and `about` what its tooltip says of it. Its fields, made by `parameter`, become
    widgets of their names.
    """

    name: ClassVar[str]
    about: ClassVar[str]

    def ranking(self, profile: SensitivityProfile) -> SensitivityProfile:
        """The profile whose scores this policy ranks by. Raises ValueError where there are none."""
        return profile

    @abstractmethod
    def choose(self, profile: SensitivityProfile, sigma: float, feature: str, count: int) -> torch.Tensor:
        """Weights [L] in [0, 1] along the layers of a `ranking`, in float64, of which about `count` are to be open."""


class UnknownPolicy(ValueError):
    """A name that no policy has."""

    def __init__(self, name: str) -> None:
        super().__init__(f"There is no selection policy '{name}': choose one of {', '.join(POLICIES)}.")
        self.name = name


POLICIES: dict[str, type[Policy]] = {}
"""Every policy by its name, in the order of the widget."""


def register(policy: type[Policy]) -> type[Policy]:
    """Offer a policy everywhere. Raises ValueError when another one has its name."""
    if policy.name in POLICIES:
        raise ValueError(f"Two selection policies are called '{policy.name}'.")
    POLICIES[policy.name] = policy
    return policy


def parameter(default: float, low: float, high: float, step: float, about: str) -> Any:
    """A field of a policy that becomes a widget: a whole number where `default` is one."""
    return field(default=default, metadata={"low": low, "high": high, "step": step, "about": about})


def parameters(policy: type[Policy]) -> tuple[Parameter, ...]:
    """A policy's own parameters."""
    return tuple(Parameter(each.name, getattr(policy, each.name), **each.metadata) for each in fields(policy))


def policy_of(name: str, values: Mapping[str, Any]) -> Policy:
    """The policy of that name with its parameters out of `values`, which may hold others; missing ones keep defaults.

    Raises UnknownPolicy.
    """
    if name not in POLICIES:
        raise UnknownPolicy(name)
    kind = POLICIES[name]
    return kind(**{each.name: values[each.name] for each in parameters(kind) if each.name in values})


def lowest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Weights [L]: 1 for the `count` lowest scores (the earlier layer in a tie), else 0."""
    weights = torch.zeros(len(scores), dtype=torch.float64)
    weights[torch.argsort(scores, stable=True)[:count]] = 1.0
    return weights


def scores_of(profile: SensitivityProfile, feature: str) -> torch.Tensor:
    """Scores [T, L] of one feature in float64."""
    return profile.scores[profile.features.index(feature)].double()


def time_weights(sigmas: torch.Tensor, noise: str = LOG) -> torch.Tensor:
    """Part [T] of each stored noise level in the whole: the trapezoid rule in the variable `noise`, summing to 1.

    A profile is read by interpolation in that variable, so a mean over it does not depend on where it was measured.
    """
    if len(sigmas) == 1:
        return torch.ones(1, dtype=torch.float64)
    widths = variable(sigmas, noise).diff().abs()
    weights = torch.zeros(len(sigmas), dtype=torch.float64)
    weights[:-1] += widths
    weights[1:] += widths
    return weights / weights.sum()
