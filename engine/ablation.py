"""Slot ablation: what each ControlNet residual changes in the prediction, and whether a ranking foresees it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .agreement import spearman
from .devices import double
from .profile import SensitivityProfile
from .structure import SlotLayout, slot_scores


@dataclass(frozen=True)
class SlotAblation:
    """How far the prediction moves when one residual is left out, as a share of how far it moves without any.

    `sigmas` [T], falling; `change` [T, slots + 1] in float64, the middle one last; zeros where no control acts.
    """

    sigmas: torch.Tensor
    change: torch.Tensor


def relative_change(full: torch.Tensor, without: torch.Tensor, none: torch.Tensor) -> float:
    """|full - without| / |full - none| over all pictures, of predictions [B, C, h, w]; 0 where no control acts."""
    effect = float(torch.linalg.vector_norm(double(full - none)))
    return 0.0 if effect == 0 else float(torch.linalg.vector_norm(double(full - without))) / effect


def agreement(ablation: SlotAblation, profile: SensitivityProfile, layout: SlotLayout) -> torch.Tensor:
    """Spearman [T] between the profile's slot sensitivity (minus its score) and the change each skip slot makes.

    1: the slots that the profile calls most sensitive move the prediction most; -1: least.
    """
    levels = zip(ablation.sigmas.tolist(), ablation.change[:, :-1], strict=True)
    found = [spearman(-slot_scores(profile, sigma, layout), change) for sigma, change in levels]
    return torch.tensor(found, dtype=torch.float64)
