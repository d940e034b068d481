"""The layer map in plain JSON types: what a front end draws, so that it need not know how layers are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..engine.gates import LayerGate
from ..engine.grammar import Selection
from ..engine.layers import in_forward_order
from ..engine.profile import FEATURES, SensitivityProfile
from .gate_map import sampled, schedule_of
from .heatmap import palette, score_range, shades

DIGITS = 4


def profile_map(profile: SensitivityProfile) -> dict[str, Any]:
    """A profile for drawing: `layers` in forward order, `features`, `sigmas`, and three tables [F][T][L] along them.

    `scores` (lower = more sensitive), `ranks` (1 = most sensitive of its row; ties as a gate breaks them), and `shades`
    (0 to 255), the place in `palette`, 256 colours `#rrggbb` that are those of the heat map picture.
    """
    order = profile.aligned(in_forward_order(profile.layers))
    coloured = shades(profile.scores, score_range(profile.scores))
    return {
        "layers": [str(profile.layers[index]) for index in order],
        "features": list(profile.features),
        "sigmas": profile.sigmas.tolist(),
        "scores": _rounded(profile.scores[..., order]),
        "ranks": ranks(profile.scores)[..., order].tolist(),
        "shades": coloured[..., order].tolist(),
        "palette": ["#" + bytes(colour).hex() for colour in palette().tolist()],
    }


def selection_map(
    gate: LayerGate, profile: SensitivityProfile, pins: Selection, exclusions: Selection
) -> dict[str, Any]:
    """A gate for drawing over `profile_map`: `weights` by feature, each [T][L].

    Besides, [L], whether a layer was `pinned` or `excluded` by hand. The gate is read at the profile's own noise
    levels, on the schedule that it was measured on.
    """
    layers = in_forward_order(profile.layers)
    weights = sampled(gate, layers, profile.sigmas.tolist(), schedule_of(profile))
    by_feature: Mapping[str, Any] = {
        feature: _rounded(weights[:, FEATURES.index(feature)]) for feature in profile.features
    }
    return {
        "weights": by_feature,
        "pinned": pins.weights(layers).any(0).tolist(),
        "excluded": exclusions.weights(layers).any(0).tolist(),
    }


def ranks(scores: torch.Tensor) -> torch.Tensor:
    """Places [..., L] of scores within their row, 1 for the lowest; of equal scores the earlier layer comes first."""
    return scores.argsort(dim=-1, stable=True).argsort(dim=-1, stable=True) + 1


def _rounded(values: torch.Tensor) -> list[Any]:
    return torch.round(values.double(), decimals=DIGITS).tolist()
