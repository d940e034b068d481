"""Spreads a subject's maps along the model's own fine self-attention, so that they follow borders."""

from __future__ import annotations

import functools
from typing import Any

import torch

from ...engine.attribution import propagated
from ...engine.layers import LayerId
from ..arch.attention import ReplaceFunction, with_attention_replaced
from .layers import Layers
from .prediction import Prediction, attend, grid_of, rows_of


class Spread:
    """Watches fine self-attention in whatever pass a method makes, then spreads the maps along it."""

    def __init__(self, prediction: Prediction, layers: Layers, times: int) -> None:
        self.prediction, self.layers, self.times = prediction, layers, times
        self.seen: dict[LayerId, tuple[torch.Tensor, torch.Tensor, int, tuple[int, int]]] = {}

    def watching(self, options: dict[str, Any]) -> dict[str, Any]:
        make = {layer: functools.partial(self._watch, layer) for layer in self.layers.spreading}
        return with_attention_replaced(options, "attn1", make) if self.times else options

    def over(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps [subjects, B, h, w] after `times` steps, each the mean over the layers seen."""
        for _ in range(self.times if self.seen else 0):
            parts = [propagated(maps.transpose(0, 1), *layer) for layer in self.seen.values()]
            maps = torch.stack(parts).mean(0).transpose(0, 1)
        return maps

    def _watch(self, layer: LayerId, earlier: ReplaceFunction | None) -> ReplaceFunction:
        def replaced(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
            for part in rows_of(self.prediction, q, k, extra):
                own = k[part.rows, : q.shape[1]]  # style sharing puts the reference's keys behind a picture's own
                self.seen[layer] = q[part.rows].detach(), own.detach(), extra["n_heads"], grid_of(extra)
            return attend(earlier, q, k, v, extra)

        return replaced
