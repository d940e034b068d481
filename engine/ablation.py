"""Slot ablation: what each ControlNet residual changes in the prediction, and whether a ranking foresees it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .profile import SensitivityProfile
from .report import spearman
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
    effect = float((full - none).double().norm())
    return float((full - without).double().norm()) / effect if effect > 0 else 0.0


def agreement(ablation: SlotAblation, profile: SensitivityProfile, layout: SlotLayout) -> torch.Tensor:
    """Spearman [T] between the profile's slot sensitivity (minus its score) and the change each skip slot makes.

    1: the slots that the profile calls most sensitive move the prediction most; -1: least.
    """
    levels = zip(ablation.sigmas.tolist(), ablation.change[:, :-1], strict=True)
    found = [spearman(-slot_scores(profile, sigma, layout), change) for sigma, change in levels]
    return torch.tensor(found, dtype=torch.float64)


def ablation_report(ablation: SlotAblation, agreed: torch.Tensor | None = None) -> str:
    """A table of the change in percent, slots across and noise levels down, and the agreement with a ranking."""
    slots = ablation.change.shape[1] - 1
    names = [*(str(slot) for slot in range(slots)), "mid"]
    lines = ["Change of the prediction without one residual, % of the change without any:"]
    lines.append("   sigma " + "".join(f"{name:>6}" for name in names))
    for sigma, row in zip(ablation.sigmas.tolist(), ablation.change.tolist(), strict=True):
        lines.append(f"{sigma:8.2f} " + "".join(f"{100 * change:6.1f}" for change in row))
    if agreed is not None:
        each = ", ".join(f"{value:.2f}" for value in agreed.tolist())
        lines.append(f"Agreement with the profile's ranking of slots (Spearman): {agreed.mean():.2f}; by level {each}.")
    return "\n".join(lines)
