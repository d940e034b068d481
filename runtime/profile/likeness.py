"""How alike a model finds pictures in style: the distance of what its attention layers project of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from comfy.model_patcher import ModelPatcher

from ...engine.layers import LayerId
from ...engine.profile import SensitivityProfile
from ..runs.loaded import sampling_of
from ..runs.probe import Conditioning
from .capture import Level, capture, distances_of

PERCENTS = (0.6, 0.85)
"""Where in the schedule is looked: layout is fixed there, strokes and colours are not."""
FEATURES = ("q", "k")
DISTANCE = "jensen_shannon"
SHARE = 3
"""One layer in so many is looked at, those most sensitive to style."""


def style_layers(profile: SensitivityProfile) -> list[LayerId]:
    """The third of a profile's layers that is most sensitive, over all noise levels and features."""
    order = profile.scores.mean((0, 1)).argsort().tolist()
    return [profile.layers[place] for place in order[: max(1, len(order) // SHARE)]]


def style_distances(
    model: ModelPatcher,
    positive: Conditioning,
    reference: torch.Tensor,
    pictures: torch.Tensor,
    layers: Sequence[LayerId],
) -> torch.Tensor:
    """Distance [B] of pictures [B, C, (1,) h, w] to a reference's latent [1, C, (1,) h', w'], a mean over `layers`.

    Two model calls a picture. Raises ValueError where the model cannot be looked into (`capture.capture`).
    """
    sigmas = torch.tensor([float(sampling_of(model).percent_to_sigma(percent)) for percent in PERCENTS])
    one, many = (_levels(model, positive, latents, sigmas) for latents in (reference, pictures))
    found = [
        distances_of([rows, columns], layers, FEATURES, DISTANCE, float(sigma)).mean((0, 1))[0]
        for rows, columns, sigma in zip(one, many, sigmas, strict=True)
    ]
    return torch.stack(found).mean(0)


def _levels(model: ModelPatcher, positive: Conditioning, latents: torch.Tensor, sigmas: torch.Tensor) -> list[Level]:
    levels: list[Level] = []
    capture(
        model, latents, positive, None, sigmas, FEATURES, 0, lambda count: None, lambda _, level: levels.append(level)
    )
    return levels
