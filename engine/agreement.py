"""How alike two rankings are."""

from __future__ import annotations

from typing import Any

import torch
from scipy.stats import spearmanr


def spearman(one: torch.Tensor, other: torch.Tensor) -> float:
    """Rank correlation of two sets of scores [L]; 0 where one of them does not rank at all."""
    if len(one) < 2 or float(one.std()) == 0 or float(other.std()) == 0:
        return 0.0  # a ranking of equals agrees with nothing
    correlation: Any = spearmanr(one.numpy(), other.numpy())
    return float(correlation.statistic)
