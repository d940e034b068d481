"""The sensitivity profile: scores by feature, noise level and layer, read at any sigma. `profile_file` keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch

from .layers import LayerId, spelled
from .noise import LOG, variable
from .scoring import Scores

FEATURES = ("q", "k", "v")
CROSSED, PLAIN, NAMES_UNUSED, LOOKS_CROSSED = "crossed", "plain", "plain, names unused", "plain, looks crossed"
"""How a series was read, the fact `series` of a provenance; `subjects` then counts the pictures of each."""


class LayersDiffer(ValueError):
    """A profile's layers, `mine`, are not those of a model or of another profile, `theirs`."""

    def __init__(self, mine: Iterable[LayerId], theirs: Iterable[LayerId]) -> None:
        self.mine, self.theirs = frozenset(mine), frozenset(theirs)
        super().__init__(
            f"The profile was measured on {len(self.mine)} attention layers and the model has {len(self.theirs)} "
            f"({spelled(self.mine)} and {spelled(self.theirs)}): pick a profile of this architecture, or measure one "
            "with Profile Sensitivity."
        )


class ProfilesDiffer(ValueError):
    """Of several profiles, number `number` (from 1) ranks other layers, `mine`, than the first, `theirs`."""

    def __init__(self, number: int, mine: Iterable[LayerId], theirs: Iterable[LayerId]) -> None:
        self.number, self.mine, self.theirs = number, frozenset(mine), frozenset(theirs)
        super().__init__(
            f"Profile {number} was measured on {len(self.mine)} layers and profile 1 on {len(self.theirs)} of another "
            "architecture: only profiles of one architecture can be compared."
        )


class NoCommonFeature(ValueError):
    """Profiles that have no feature in common; `features` are those of each."""

    def __init__(self, features: Iterable[Sequence[str]]) -> None:
        self.features = tuple(map(tuple, features))
        self.listed = "; ".join(" and ".join(each) for each in self.features)
        super().__init__(f"The profiles have no feature in common ({self.listed}): measure the same ones for all.")


class NoContentScores(ValueError):
    """A profile that was measured on a series without subjects."""

    def __init__(self) -> None:
        super().__init__(
            "The profile holds no content scores: measure it on a crossed series, the same subjects in every style."
        )


@dataclass(frozen=True)
class SensitivityProfile:
    """Scores of a model's self-attention layers. **Lower = more sensitive.**

    `sigmas` is [T], descending; `scores` is [F, T, L] in float64 with F along `features` and L along `layers`.
    `low` and `high` are the bootstrap interval of `scores`, same shape, or None for published ranks.
    `provenance` holds what the file's header says, in JSON types: model fingerprint, clusters, estimator, seed, time.
    `content` holds how sensitive layers are to the subjects of a crossed series, same shapes, or None.
    `noise` is the variable of the model's schedule, in which the scores are interpolated (`engine.noise`).
    """

    layers: tuple[LayerId, ...]
    features: tuple[str, ...]
    sigmas: torch.Tensor
    scores: torch.Tensor
    low: torch.Tensor | None = None
    high: torch.Tensor | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    content: Scores | None = None
    noise: str = LOG

    def at(self, sigma: float, feature: str) -> torch.Tensor:
        """Scores [L] of one feature at one noise level: linear in `noise` between knots, clamped outside."""
        scores = self.scores[self.features.index(feature)]
        if len(self.sigmas) == 1 or sigma >= self.sigmas[0]:
            return scores[0]
        if sigma <= self.sigmas[-1]:
            return scores[-1]
        below = int((self.sigmas > sigma).sum())
        upper, lower = variable(self.sigmas[below - 1 : below + 1], self.noise)
        share = (upper - variable(sigma, self.noise)) / (upper - lower)
        return torch.lerp(scores[below - 1], scores[below], share)

    def aligned(self, layers: Sequence[LayerId]) -> list[int]:
        """Where each of a model's layers stands among the profile's own, as an index into the last axis of `scores`.

        Raises LayersDiffer when they are not the same layers: the profile was measured on another architecture.
        """
        known = {layer: index for index, layer in enumerate(self.layers)}
        if known.keys() != set(layers):
            raise LayersDiffer(self.layers, layers)
        return [known[layer] for layer in layers]


def common_features(profiles: Sequence[SensitivityProfile]) -> tuple[str, ...]:
    """The features that all of some profiles of one architecture hold, in the first one's order.

    Raises ProfilesDiffer or NoCommonFeature where they cannot be held against each other.
    """
    first = profiles[0]
    for number, other in enumerate(profiles[1:], 2):
        if set(other.layers) != set(first.layers):
            raise ProfilesDiffer(number, other.layers, first.layers)
    shared = reduce(set.intersection, (set(profile.features) for profile in profiles))
    if not shared:
        raise NoCommonFeature(profile.features for profile in profiles)
    return tuple(feature for feature in first.features if feature in shared)


def by_content(profile: SensitivityProfile) -> SensitivityProfile:
    """The profile with its content scores in the place of the scores.

    Raises NoContentScores where it was measured on a series without subjects.
    """
    if profile.content is None:
        raise NoContentScores
    facts = {**profile.provenance, "what": "content"} | _content_separation(profile.provenance)
    score, low, high = profile.content
    return replace(profile, scores=score, low=low, high=high, content=None, provenance=facts)


def _content_separation(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"separation": facts["content_separation"]} if "content_separation" in facts else {}


def note_on_model(profile: SensitivityProfile, fingerprint: Mapping[str, Any]) -> str:
    """A sentence when a profile that fits was measured on other weights or at other widths, else nothing."""
    measured = profile.provenance.get("model") or {}
    if "weights" not in measured:
        return f"Measured on {measured.get('name', 'a model that it does not name')}; no fingerprint to compare."
    if measured["weights"] == fingerprint["weights"]:
        return ""
    return (
        "Measured on another finetune of this architecture, or on this one quantised otherwise: rankings usually carry "
        "over, measure again to be sure."
    )
