"""How two rankings agree, noise level by noise level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import kendalltau

from .agreement import spearman
from .profile import SensitivityProfile, common_features


@dataclass(frozen=True)
class Comparison:
    """Agreement of two profiles at the first one's noise levels `sigmas` [T], for the `features` that both have [F, T].

    `spearman` and `kendall` are rank correlations; `overlap` is the share of the first `count` layers that are in both.
    """

    features: tuple[str, ...]
    sigmas: torch.Tensor
    count: int
    layers: int
    spearman: torch.Tensor
    kendall: torch.Tensor
    overlap: torch.Tensor

    @property
    def chance(self) -> float:
        """The overlap of two rankings that have nothing to do with each other."""
        return self.count / self.layers


def compare(one: SensitivityProfile, other: SensitivityProfile, count: int) -> Comparison:
    """The agreement of two profiles of one architecture; `count` layers are looked at for the overlap.

    Raises ProfilesDiffer for other layers, and NoCommonFeature without one.
    """
    features, order = common_features([one, other]), other.aligned(one.layers)
    pairs = [
        [(one.at(sigma, feature), other.at(sigma, feature)[order]) for sigma in one.sigmas.tolist()]
        for feature in features
    ]

    def each(measure: Callable[[torch.Tensor, torch.Tensor], float]) -> torch.Tensor:
        return torch.tensor([[measure(*pair) for pair in levels] for levels in pairs], dtype=torch.float64)

    found = each(spearman), each(kendall), each(lambda first, second: overlap(first, second, count))
    return Comparison(features, one.sigmas, count, len(one.layers), *found)


def kendall(one: torch.Tensor, other: torch.Tensor) -> float:
    """Kendall's tau-b of two sets of scores [L]: agreeing pairs minus disagreeing ones; 0 where one does not rank."""
    if len(one) < 2 or float(one.std()) == 0 or float(other.std()) == 0:
        return 0.0
    correlation: Any = kendalltau(one.numpy(), other.numpy())
    return float(correlation.statistic)


def overlap(one: torch.Tensor, other: torch.Tensor, count: int) -> float:
    """The share of the `count` lowest scores [L] that both sets have in common."""
    first, second = (set(scores.argsort(stable=True)[:count].tolist()) for scores in (one, other))
    return len(first & second) / count
