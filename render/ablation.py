"""Puts a slot ablation into a table."""

from __future__ import annotations

import torch

from ..engine.ablation import SlotAblation


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
