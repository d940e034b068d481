"""Gates: which attention layers take part, how strongly, at which noise level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch

from .combining import low_content
from .grammar import Selection
from .layers import LayerId, in_forward_order
from .noise import LOG, variable
from .profile import FEATURES, SensitivityProfile, by_content, check_layers

ToSigma = Callable[[float], float]
"""Percent of the schedule (0 start, 1 end) to sigma, as the model's sampling object converts it."""

NEGLIGIBLE = 0.01
"""A soft weight this near to 0 or 1 is taken as 0 or 1, so that layers far from the edge cost nothing extra."""


class LayerGate(ABC):
    """Weights in [0, 1] by feature, layer and noise level. Immutable, so that branches of a graph can share one."""

    @abstractmethod
    def weights(self, sigma: float, layers: Sequence[LayerId], to_sigma: ToSigma) -> torch.Tensor:
        """Weights [3, L] in float64, along FEATURES (q, k, v) and `layers`, the model's attention layers.

        Raises ValueError when the gate was made for a model with other layers.
        """


@dataclass(frozen=True)
class WrittenGate(LayerGate):
    """A selection by hand, the same at every noise level."""

    selection: Selection

    def weights(self, sigma: float, layers: Sequence[LayerId], to_sigma: ToSigma) -> torch.Tensor:
        return self.selection.weights(layers)


@dataclass(frozen=True)
class RankedGate(LayerGate):
    """The layers a profile ranks first. A feature that was not measured is open where any measured one is.

    `share` is lambda: the share of layers kept, or their count when above 1 (conditional-balance paper, lambda_S).
    `softness` is the width of the soft edge in standard deviations of the scores; `seed` draws the random policy.
    """

    profile: SensitivityProfile
    share: float
    policy: str = "per-step"
    softness: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.profile.scores.isfinite().all():
            raise ValueError("'profile' holds scores that are not finite numbers: measure it again.")
        if self.policy not in POLICIES:
            raise ValueError(f"'policy' is '{self.policy}'; choose one of {', '.join(POLICIES)}.")
        if self.policy in OF_CONTENT:
            by_content(self.profile)  # raises where there is none

    @property
    def count(self) -> int:
        """Layers kept, K."""
        return layer_count(self.share, len(self.profile.layers))

    def weights(self, sigma: float, layers: Sequence[LayerId], to_sigma: ToSigma) -> torch.Tensor:
        order = self._order(layers)
        choose = POLICIES[self.policy]
        measured = {feature: choose(self, sigma, feature)[order] for feature in self.profile.features}
        any_measured = torch.stack(list(measured.values())).amax(0)
        return torch.stack([measured.get(feature, any_measured) for feature in FEATURES])

    def _order(self, layers: Sequence[LayerId]) -> list[int]:
        check_layers(self.profile, layers)
        known = {layer: index for index, layer in enumerate(self.profile.layers)}
        return [known[layer] for layer in layers]


@dataclass(frozen=True)
class WindowedGate(LayerGate):
    """A gate that is closed outside a window of percent: `start` <= percent <= `end`."""

    gate: LayerGate
    start: float = 0.0
    end: float = 1.0

    def weights(self, sigma: float, layers: Sequence[LayerId], to_sigma: ToSigma) -> torch.Tensor:
        weights = self.gate.weights(sigma, layers, to_sigma)
        return weights if inside(sigma, self.start, self.end, to_sigma) else torch.zeros_like(weights)


@dataclass(frozen=True)
class CombinedGate(LayerGate):
    """Two gates under one of OPERATIONS, weight by weight."""

    first: LayerGate
    second: LayerGate
    operation: str

    def weights(self, sigma: float, layers: Sequence[LayerId], to_sigma: ToSigma) -> torch.Tensor:
        combine = OPERATIONS[self.operation]
        return combine(self.first.weights(sigma, layers, to_sigma), self.second.weights(sigma, layers, to_sigma))


@dataclass(frozen=True)
class ScaledGate(LayerGate):
    """A gate whose weights are multiplied by `factor`, at most 1 in the end."""

    gate: LayerGate
    factor: float

    def weights(self, sigma: float, layers: Sequence[LayerId], to_sigma: ToSigma) -> torch.Tensor:
        return (self.gate.weights(sigma, layers, to_sigma) * self.factor).clamp(0.0, 1.0)


OPERATIONS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = MappingProxyType(
    {"and": torch.minimum, "or": torch.maximum, "minus": lambda first, second: first * (1 - second)}
)


def pinned(gate: LayerGate, pins: Selection, exclusions: Selection) -> LayerGate:
    """`gate` with layers added and taken away by hand; where both name a layer, the exclusion wins."""
    if pins.terms:
        gate = CombinedGate(gate, WrittenGate(pins), "or")
    if exclusions.terms:
        gate = CombinedGate(gate, WrittenGate(exclusions), "minus")
    return gate


def windowed(gate: LayerGate, start: float, end: float) -> LayerGate:
    """`gate` inside a window of percent; the full window changes nothing.

    Raises ValueError when the window ends before it starts.
    """
    if end < start:
        raise ValueError(f"'end_percent' ({end:g}) lies before 'start_percent' ({start:g}): swap them.")
    return gate if (start, end) == (0.0, 1.0) else WindowedGate(gate, start, end)


def inside(sigma: float, start: float, end: float, to_sigma: ToSigma) -> bool:
    """Whether a noise level lies in a window of percent, both ends included, as ComfyUI's ControlNets count."""
    return to_sigma(end) <= sigma <= to_sigma(start)


def layer_count(share: float, layers: int) -> int:
    """K = int(share * layers), or int(share) when share is above 1; the paper's truncation, safe from rounding."""
    count = share if share > 1 else share * layers
    return min(int(count + 1e-9), layers)


def lowest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Weights [L]: 1 for the `count` lowest scores (the earlier layer in a tie), else 0."""
    weights = torch.zeros(len(scores), dtype=torch.float64)
    weights[torch.argsort(scores, stable=True)[:count]] = 1.0
    return weights


def time_weights(sigmas: torch.Tensor, noise: str = LOG) -> torch.Tensor:
    """Share [T] of each stored noise level in the whole: the trapezoid rule in the variable `noise`, summing to 1.

    A profile is read by interpolation in that variable, so a mean over it does not depend on where it was measured.
    """
    if len(sigmas) == 1:
        return torch.ones(1, dtype=torch.float64)
    widths = variable(sigmas, noise).diff().abs()
    weights = torch.zeros(len(sigmas), dtype=torch.float64)
    weights[:-1] += widths
    weights[1:] += widths
    return weights / weights.sum()


def time_mean(profile: SensitivityProfile, feature: str) -> torch.Tensor:
    """Scores [L] averaged over the noise levels of a profile."""
    return time_weights(profile.sigmas, profile.noise) @ _scores(profile, feature)


def budget_threshold(profile: SensitivityProfile, feature: str, count: int) -> float:
    """The one score that opens `count` layers on average over the noise levels."""
    if count == 0:
        return -torch.inf
    scores = _scores(profile, feature)
    shares = time_weights(profile.sigmas, profile.noise)[:, None].expand_as(scores).flatten()
    ordered, order = scores.flatten().sort(stable=True)
    reached = shares[order].cumsum(0)
    last = int(torch.searchsorted(reached, torch.tensor(count - 1e-9, dtype=torch.float64)))
    return float(ordered[min(last, len(ordered) - 1)])


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


def evenly_spaced(layers: int, count: int) -> torch.Tensor:
    """Weights [L]: 1 for `count` layers at equal distances, in the middles of `count` equal stretches."""
    weights = torch.zeros(layers, dtype=torch.float64)
    weights[((torch.arange(count) + 0.5) * layers / max(count, 1)).long()] = 1.0
    return weights


def _scores(profile: SensitivityProfile, feature: str) -> torch.Tensor:
    return profile.scores[profile.features.index(feature)].double()


def _per_step(gate: RankedGate, sigma: float, feature: str) -> torch.Tensor:
    """The paper's choice: the K lowest scores at this noise level."""
    return lowest(gate.profile.at(sigma, feature), gate.count)


def _static(gate: RankedGate, sigma: float, feature: str) -> torch.Tensor:
    return lowest(time_mean(gate.profile, feature), gate.count)


def _budget(gate: RankedGate, sigma: float, feature: str) -> torch.Tensor:
    threshold = budget_threshold(gate.profile, feature, gate.count)
    return (gate.profile.at(sigma, feature) <= threshold).double()


def _soft(gate: RankedGate, sigma: float, feature: str) -> torch.Tensor:
    return soft_weights(gate.profile.at(sigma, feature), gate.count, gate.softness)


def _random(gate: RankedGate, sigma: float, feature: str) -> torch.Tensor:
    """A baseline: the same K layers for every feature and noise level, drawn from the seed."""
    generator = torch.Generator().manual_seed(gate.seed)
    return lowest(torch.rand(len(gate.profile.layers), generator=generator), gate.count)


def _evenly_spaced(gate: RankedGate, sigma: float, feature: str) -> torch.Tensor:
    """A baseline: every n-th layer of the forward pass."""
    layers = gate.profile.layers
    forward = {layer: place for place, layer in enumerate(in_forward_order(layers))}
    return evenly_spaced(len(layers), gate.count)[[forward[layer] for layer in layers]]


def _reversed(gate: RankedGate, sigma: float, feature: str) -> torch.Tensor:
    """A baseline: the K least sensitive layers at this noise level."""
    return lowest(-gate.profile.at(sigma, feature), gate.count)


def _content(gate: RankedGate, sigma: float, feature: str) -> torch.Tensor:
    """The K layers that follow the subject most at this noise level, of a profile of a crossed series."""
    return lowest(by_content(gate.profile).at(sigma, feature), gate.count)


def _low_content(gate: RankedGate, sigma: float, feature: str) -> torch.Tensor:
    """The K layers whose style score is lowest beside their content score: those that carry style and leave content."""
    return lowest(low_content(gate.profile).at(sigma, feature), gate.count)


STYLE_LOW_CONTENT = "style, low content"
OF_CONTENT = frozenset({"content", STYLE_LOW_CONTENT})  # policies that need a crossed series
POLICIES: Mapping[str, Callable[[RankedGate, float, str], torch.Tensor]] = MappingProxyType(
    {
        "per-step": _per_step,
        "static": _static,
        "budget": _budget,
        "soft": _soft,
        "random": _random,
        "evenly spaced": _evenly_spaced,
        "reversed": _reversed,
        "content": _content,
        STYLE_LOW_CONTENT: _low_content,
    }
)
