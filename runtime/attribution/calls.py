"""Reads target layers' attention to text while a prediction is made: whose rows a call holds, and where tokens are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP

from ...engine.attribution import columns
from ...engine.layers import LayerId
from ...engine.subject import Phrase
from ..arch.attention import ReplaceFunction, plain_attention, with_attention_replaced
from ..arch.base import Projected
from ..arch.transformer import TEXT_PADS, Transformer
from ..runs.keys import grid_of, prompts_of
from ..runs.keys import rows_of as rows_entering
from ..runs.layout import LAYOUT, layout_of, with_layout
from ..runs.model_call import ModelCall, with_wrapper
from .prediction import Prediction


@dataclass(frozen=True)
class Rows:
    """The pictures of one prompt inside a layer's call, and where a phrase's tokens stand in its keys.

    The text's `tokens` begin at `first`; what stands in as many `keys` may be repeats of it.
    """

    rows: slice
    keys: int
    tokens: int
    first: int = 0

    def positions(self, phrase: Phrase) -> list[int]:
        """ComfyUI repeats a short prompt when it runs beside a long one; the tokens then stand there several times.

        Keys behind the last whole repeat are other nodes' own.
        """
        starts = range(0, self.keys - self.keys % self.tokens, self.tokens)
        return [self.first + start + position for start in starts for position in phrase.positions]


@dataclass(frozen=True)
class LayerCall:
    """One call of a target layer's attention: q, k, v and output before its projection, [rows, tokens, channels].

    Queries and output are the picture's. Keys are the text's, in transformers the picture's and others' beside them; a
    `bias` [rows or 1, heads or 1, queries or 1, keys] hides some of them.
    """

    layer: LayerId
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    output: torch.Tensor
    heads: int
    grid: tuple[int, int]
    parts: tuple[Rows, ...]
    bias: torch.Tensor | None = None

    def column(self, part: Rows, phrase: Phrase) -> torch.Tensor:
        """Attention [B, heads, queries, positions] that the pictures pay to a phrase."""
        bias = self.bias if self.bias is None or len(self.bias) == 1 else self.bias[part.rows]
        return columns(self.q[part.rows], self.k[part.rows], part.positions(phrase), self.heads, bias)

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
    family, told = prediction.architecture, functools.partial(_with_layout, prediction)
    options = with_wrapper({"transformer_options": prediction.options}, WrappersMP.APPLY_MODEL, told)
    options = options["transformer_options"]
    if isinstance(family, Transformer):
        read = {layer: functools.partial(_answered, prediction, respond, layer) for layer in layers}
        return with_calls_seen(family, options, read, of_text=True)
    make = {layer: functools.partial(_reading, prediction, respond, layer) for layer in layers}
    return with_attention_replaced(options, "attn2", make)


def _with_layout(
    prediction: Prediction, executor: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
) -> torch.Tensor:
    """A call whose layout is known further in; one of the subject's on a part of the picture is noted."""
    call = ModelCall.of(*args, **kwargs)
    layout = layout_of(call.options, call.x, call.c_crossattn, prediction.x)
    part = call.x.shape[-2:] != prediction.x.shape[-2:]
    prediction.calls.in_parts |= part and any(name in prediction.texts for name in prompts_of(call.options))
    return with_layout(call, layout).run(executor)


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


Reader = Callable[[Mapping[str, Any], Projected], torch.Tensor]
"""(transformer_options of the model call, what a layer has projected) -> the layer's output."""


def with_calls_seen(
    family: Transformer, options: dict[str, Any], readers: Mapping[LayerId, Reader], of_text: bool
) -> dict[str, Any]:
    """Options under which a transformer's layers go through `readers`, at their attention or at that to text."""

    def around_call(executor: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        call = ModelCall.of(*args, **kwargs)
        operators = {layer: functools.partial(reader, call.options) for layer, reader in readers.items()}
        with family.on(executor.class_obj.diffusion_model).seen(operators, of_text):
            return call.run(executor)

    return with_wrapper({"transformer_options": options}, WrappersMP.APPLY_MODEL, around_call)["transformer_options"]


def _answered(
    prediction: Prediction, respond: Respond, layer: LayerId, options: Mapping[str, Any], projected: Projected
) -> torch.Tensor:
    """A transformer's attention with the picture's part of its output from `respond`."""
    out = projected.plain()
    parts = tuple(parts_of(prediction, projected, options))
    if not parts:
        prediction.calls.other.add(layer)
        return out
    prediction.calls.subject.add(layer)
    image, heads = projected.image, projected.q.shape[1]
    q, k, v = (tokens_first(x, heads) for x in (projected.q, projected.k, projected.v))
    tokens = out if out.ndim == 3 else tokens_first(out, heads)
    bias = projected.bias()
    if bias is not None and bias.shape[2] > 1:
        bias = bias[:, :, image]
    own = respond(LayerCall(layer, q[:, image], k, v, tokens[:, image], heads, projected.plane, parts, bias))
    tokens = torch.cat((tokens[:, : image.start], own, tokens[:, image.stop :]), 1)
    return tokens if out.ndim == 3 else tokens.unflatten(2, (heads, -1)).transpose(1, 2)


def tokens_first(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[rows, heads, tokens, channels] to [rows, tokens, heads * channels]; heads that serve several are repeated."""
    return x.repeat_interleave(heads // x.shape[1], 1).transpose(1, 2).flatten(2)


def parts_of(prediction: Prediction, projected: Projected, options: Mapping[str, Any]) -> Iterator[Rows]:
    """The chunks of a transformer's call that run the subject's text, which no transformer is given repeated."""
    family = prediction.architecture
    for rows, tokens in _chunks(prediction, len(projected.q), options):
        first = projected.text.start
        if isinstance(family, Transformer) and family.padded_before:
            pads = options.get(TEXT_PADS) or (0,) * len(projected.q)
            first = max(first, projected.text.stop - pads[rows.start] - tokens)
        yield Rows(rows, tokens, tokens, first)


def rows_of(prediction: Prediction, q: torch.Tensor, k: torch.Tensor, options: dict[str, Any]) -> Iterator[Rows]:
    """The chunks of a call that run the subject's text; rows behind the pictures are other nodes' own."""
    for rows, tokens in _chunks(prediction, len(q), options):
        yield Rows(rows, k.shape[1], tokens)


def _chunks(prediction: Prediction, rows: int, options: Mapping[str, Any]) -> Iterator[tuple[slice, int]]:
    ids, layout = prompts_of(options), options[LAYOUT]
    size = rows // layout.chunks
    for chunk in range(layout.chunks):  # a tile's come together, and every tile has all
        name = ids[chunk % len(ids)]
        if name in prediction.texts:
            yield slice(chunk * size, chunk * size + layout.pictures), prediction.texts[name]


def as_the_model_made_it(q: torch.Tensor, options: dict[str, Any]) -> bool:
    """Whether a call's queries are one for each place of each picture: token merging and tiling change that."""
    height, width = grid_of(options)
    return tuple(q.shape[:2]) == (rows_entering(options), height * width)


def attend(
    earlier: ReplaceFunction | None, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor:
    return plain_attention(q, k, v, None, options) if earlier is None else earlier(q, k, v, options)
