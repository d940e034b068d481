"""Reads target layers' cross-attention while a prediction is made: whose rows a call holds, and where tokens are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...engine.attribution import columns
from ...engine.layers import LayerId
from ...engine.subject import Phrase
from ..arch.attention import ReplaceFunction, plain_attention, with_attention_replaced
from ..runs.keys import grid_of, prompts_of
from ..runs.keys import rows_of as rows_entering
from .prediction import Prediction


@dataclass(frozen=True)
class Rows:
    """The pictures of one prompt inside a layer's call, and where a phrase's tokens stand in its keys."""

    rows: slice
    keys: int
    tokens: int

    def positions(self, phrase: Phrase) -> list[int]:
        """ComfyUI repeats a short prompt when it runs beside a long one; the tokens then stand there several times.

        Keys behind the last whole repeat are other nodes' own.
        """
        starts = range(0, self.keys - self.keys % self.tokens, self.tokens)
        return [start + position for start in starts for position in phrase.positions]


@dataclass(frozen=True)
class LayerCall:
    """One call of a target layer's cross-attention: q, k, v and output before to_out, all [rows, tokens, channels]."""

    layer: LayerId
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    output: torch.Tensor
    heads: int
    grid: tuple[int, int]
    parts: tuple[Rows, ...]

    def column(self, part: Rows, phrase: Phrase) -> torch.Tensor:
        """Attention [B, heads, queries, positions] that the pictures pay to a phrase."""
        return columns(self.q[part.rows], self.k[part.rows], part.positions(phrase), self.heads)

    def detached(self) -> LayerCall:
        """The call with projections cut off from the graph, and an output that is part of one."""
        q, k, v = (x.detach() for x in (self.q, self.k, self.v))
        output = self.output if self.output.requires_grad else self.output.detach().requires_grad_()
        return replace(self, q=q, k=k, v=v, output=output)


Respond = Callable[[LayerCall], torch.Tensor]
"""What is done at a call that holds the subject: returns the layer's output, changed or as it is."""


def with_calls_read(prediction: Prediction, layers: Iterable[LayerId], respond: Respond) -> dict[str, Any]:
    """The prediction's options under which every call of these layers that holds the subject goes through `respond`.

    Which layers were called with the subject, and which other nodes had changed, is noted in `prediction.calls`.
    """
    make = {layer: functools.partial(_reading, prediction, respond, layer) for layer in layers}
    return with_attention_replaced(prediction.options, "attn2", make)


def _reading(
    prediction: Prediction, respond: Respond, layer: LayerId, earlier: ReplaceFunction | None
) -> ReplaceFunction:
    def replaced(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
        out = attend(earlier, q, k, v, extra)
        parts = tuple(rows_of(prediction, q, k, extra))
        if not as_the_model_made_it(q, extra):
            prediction.calls.changed.add(layer)
        elif parts:
            prediction.calls.subject.add(layer)
            return respond(LayerCall(layer, q, k, v, out, extra["n_heads"], grid_of(extra), parts))
        else:
            prediction.calls.other.add(layer)
        return out

    return replaced


def rows_of(prediction: Prediction, q: torch.Tensor, k: torch.Tensor, options: dict[str, Any]) -> Iterator[Rows]:
    """The chunks of a call that run the subject's text; rows behind the pictures are other nodes' own."""
    ids = prompts_of(options)
    for place, name in enumerate(ids):
        if name in prediction.texts:
            start = place * (q.shape[0] // len(ids))
            yield Rows(slice(start, start + prediction.x.shape[0]), k.shape[1], prediction.texts[name])


def as_the_model_made_it(q: torch.Tensor, options: dict[str, Any]) -> bool:
    """Whether a call's queries are one for each place of each picture: token merging and tiling change that."""
    height, width = grid_of(options)
    return tuple(q.shape[:2]) == (rows_entering(options), height * width)


def attend(
    earlier: ReplaceFunction | None, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor:
    return plain_attention(q, k, v, None, options) if earlier is None else earlier(q, k, v, options)
