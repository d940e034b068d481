"""Propagates a subject's maps along the model's own fine self-attention, so that they follow borders."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch

from ...engine.attribution import propagated
from ...engine.layers import LayerId
from ..arch.attention import ReplaceFunction, with_attention_replaced
from ..arch.base import Projected
from ..arch.transformer import Transformer
from ..runs.keys import grid_of
from .calls import as_the_model_made_it, attend, parts_of, rows_of, tokens_first, with_calls_seen
from .layers import Layers
from .prediction import Prediction


class Propagation:
    """Records fine self-attention in whatever pass a method makes, then propagates the maps along it."""

    def __init__(self, prediction: Prediction, layers: Layers, times: int) -> None:
        self.prediction, self.layers, self.times = prediction, layers, times
        self.recorded: dict[LayerId, tuple[torch.Tensor, torch.Tensor, int, tuple[int, int]]] = {}
        self.changed: set[LayerId] = set()

    def recording(self, options: dict[str, Any]) -> dict[str, Any]:
        if not self.times:
            return options
        family = self.prediction.architecture
        if isinstance(family, Transformer):
            see = {layer: functools.partial(self._see, layer) for layer in self.layers.propagating}
            return with_calls_seen(family, options, see, of_text=False)
        make = {layer: functools.partial(self._record, layer) for layer in self.layers.propagating}
        return with_attention_replaced(options, "attn1", make)

    def over(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps [subjects, B, h, w] times what they spread to.

        A spread map fills a subject to its borders, and runs over into what looks like it; the map itself does not.
        """
        in_parts = self.prediction.calls.in_parts
        return maps * self.spread(maps) if self.times and self.recorded and not in_parts else maps

    def spread(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps [subjects, B, h, w] after `times` steps along self-attention, each the mean over the layers recorded."""
        for _ in range(self.times):
            parts = [propagated(maps.transpose(0, 1), *layer) for layer in self.recorded.values()]
            maps = torch.stack(parts).mean(0).transpose(0, 1)
        return maps

    @property
    def note(self) -> str:
        """What could not be done, or nothing."""
        if self.times and self.prediction.calls.in_parts:
            return "Propagation was left out: the model is called on parts of the picture."
        missed = [layer for layer in self.layers.propagating if layer not in self.recorded] if self.times else []
        if not missed:
            return ""
        names = ", ".join(map(str, missed))
        if self.changed.issuperset(missed):
            return (
                f"Propagation was left out at {names}: another node, such as token merging or HyperTile, changes the "
                "tokens of self-attention there."
            )
        return f"Propagation was left out at {names}: self-attention never ran there."

    def _see(self, layer: LayerId, options: Mapping[str, Any], projected: Projected) -> torch.Tensor:
        """A transformer's picture among itself, text left out."""
        heads = projected.q.shape[1]
        q, k = (tokens_first(x[..., projected.image, :], heads).detach() for x in (projected.q, projected.k))
        for part in parts_of(self.prediction, projected, options):
            self.recorded[layer] = q[part.rows], k[part.rows], heads, projected.plane
        return projected.plain()

    def _record(self, layer: LayerId, earlier: ReplaceFunction | None) -> ReplaceFunction:
        def replaced(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
            if as_the_model_made_it(q, extra) and k.shape[1] >= q.shape[1]:
                for part in rows_of(self.prediction, q, k, extra):
                    own = k[part.rows, : q.shape[1]]  # style sharing puts the reference's keys behind a picture's own
                    self.recorded[layer] = q[part.rows].detach(), own.detach(), extra["n_heads"], grid_of(extra)
            else:
                self.changed.add(layer)
            return attend(earlier, q, k, v, extra)

        return replaced
