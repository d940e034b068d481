"""Style injection: AdaIN of queries and keys, and attention shared with a reference.

The operator of StyleAligned (arXiv 2312.02133) under a gate, as in Conditional Balance (arXiv 2412.19853). q, k and v
are a self-attention layer's projections [rows, tokens, heads * channels]. Rows come in equal chunks, one per
conditioning in the call; each chunk holds its own reference.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .layers import LayerId
from .moments import Moments, moments_of

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""attention(q, k, v, bias): bias is None or [1, keys], added to every query's logits."""

Damping = torch.Tensor | None
"""Logarithms [tokens] of the weights, 0 to 1, of a reference's tokens in attention; None leaves all at 1."""

AUTO = "auto"
KEEP, SHIFT, UNTWIST = "keep", "shift", "untwist"
POSITIONS = (AUTO, KEEP, SHIFT, UNTWIST)
EITHER, BOTH = "q or k", "q and k"
SHARINGS = (AUTO, EITHER, BOTH)


class LayerStyle(NamedTuple):
    """What happens at one layer.

    `q`, `k`, `v`: how far the moments move to the reference's, 0 to 1. `share`: weight of the reference's tokens in the
    softmax beside the picture's own; 0 shares nothing, 1 is StyleAligned, exp(shift) is its `shared_score_shift`.
    """

    q: float = 0.0
    k: float = 0.0
    v: float = 0.0
    share: float = 0.0

    def times(self, strength: float) -> LayerStyle:
        """The same, so many times as strong."""
        return LayerStyle(*(strength * weight for weight in self))


class Rows(NamedTuple):
    """Where pictures and their reference stand in each of `chunks` equal chunks of rows.

    Rows `start` to `stop` (exclusive) are styled, row `reference` gives the style and every other row stays as it is.
    The methods take and give x in chunks, [chunks, rows, ...], except where they say [rows, ...].
    """

    chunks: int
    start: int
    stop: int
    reference: int

    def chunked(self, x: torch.Tensor) -> torch.Tensor:
        """[chunks, rows, ...] from the rows of a call [rows, ...]."""
        return x.unflatten(0, (self.chunks, -1))

    def styled(self, x: torch.Tensor) -> torch.Tensor:
        """The rows that are styled."""
        return x[:, self.start : self.stop]

    def unstyled(self, x: torch.Tensor) -> torch.Tensor:
        """All other rows, without a copy where they stand together."""
        before, behind = x[:, : self.start], x[:, self.stop :]
        if not before.shape[1] or not behind.shape[1]:
            return before if before.shape[1] else behind
        return torch.cat((before, behind), 1)

    def numbers(self, rows: int) -> tuple[list[int], list[int]]:
        """Which of the call's `rows` are unstyled, and which are styled, in the order of the methods above."""
        each = rows // self.chunks
        numbered = [(number, self.start <= number % each < self.stop) for number in range(rows)]
        return [number for number, own in numbered if not own], [number for number, own in numbered if own]

    def of_reference(self, x: torch.Tensor) -> torch.Tensor:
        """The reference's row."""
        return x[:, self.reference : self.reference + 1]

    def put_back(self, x: torch.Tensor, styled: torch.Tensor) -> torch.Tensor:
        """x with other styled rows."""
        return torch.cat((x[:, : self.start], styled, x[:, self.stop :]), 1)

    def joined(self, unstyled: torch.Tensor, styled: torch.Tensor) -> torch.Tensor:
        """The rows of a call [rows, ...] from its unstyled and its styled ones, [rows, ...] each."""
        unstyled, styled = self.chunked(unstyled), self.chunked(styled)
        return torch.cat((unstyled[:, : self.start], styled, unstyled[:, self.start :]), 1).flatten(0, 1)


@dataclass(frozen=True)
class StyleSettings:
    """How a gate's weights become layer styles: `strength` (0 to 1) scales them, `share` the reference's tokens.

    Attention is shared where the `sharing` of q's and k's gates is open. `position` is what is done to a reference's
    keys in rotary models: KEEP, SHIFT or UNTWIST. AUTO leaves both to the family of models.
    """

    strength: float = 1.0
    adain_q: bool = True
    adain_k: bool = True
    adain_v: bool = False
    share: float = 1.0
    position: str = AUTO
    sharing: str = AUTO


def layer_styles(
    weights: torch.Tensor, layers: Sequence[LayerId], settings: StyleSettings
) -> dict[LayerId, LayerStyle]:
    """The open layers and their styles, from gate weights [3, L].

    Attention is shared where the q or the k gate is open (Conditional Balance on SDXL; BOTH: where both are, as in its
    code for SD3.5), with or without AdaIN there.
    """
    styles: dict[LayerId, LayerStyle] = {}
    if not weights.any():
        return styles
    shared = min if settings.sharing == BOTH else max
    for layer, (q, k, v) in zip(layers, (weights * settings.strength).T.tolist(), strict=True):
        share = shared(q, k) * settings.share
        style = LayerStyle(q * settings.adain_q, k * settings.adain_k, v * settings.adain_v, share)
        if any(style):
            styles[layer] = style
    return styles


def adain(x: torch.Tensor, reference: torch.Tensor, weight: float) -> torch.Tensor:
    """Move the moments of x toward the reference's by `weight`; both [..., tokens, channels], broadcast.

    All of it is computed in fp32 or better: a channel that hardly varies is scaled beyond what fp16 holds. Weight 0
    returns x itself. Above 1 the deviation goes on by the same factor, so that it stays positive.
    """
    return x if weight == 0 else moved(x, moments_of(reference, keepdim=True), weight)


def moved(x: torch.Tensor, to: Moments, weight: float) -> torch.Tensor:
    """`adain` to moments [..., 1, channels] that are known already."""
    if weight == 0:
        return x
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    return _moved(precise, moments_of(precise, keepdim=True), to, weight).to(x)


def adained(x: torch.Tensor, rows: Rows, weight: float) -> torch.Tensor:
    """`adain` of the styled rows of x [chunks, rows, ..., tokens, channels] to the reference, measured in one pass."""
    if weight == 0:
        return rows.styled(x)
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    moments = moments_of(precise, keepdim=True)
    own, to = (Moments(*map(part, moments)) for part in (rows.styled, rows.of_reference))
    return _moved(rows.styled(precise), own, to, weight).to(x)


def _moved(precise: torch.Tensor, own: Moments, to: Moments, weight: float) -> torch.Tensor:
    (mean, deviation), (mean_to, deviation_to) = own, to
    if weight != 1:
        mean_to = torch.lerp(mean, mean_to.expand_as(mean), weight)
    if 0 <= weight < 1:
        deviation_to = torch.lerp(deviation, deviation_to.expand_as(deviation), weight)
    scale = deviation_to / deviation if 0 <= weight <= 1 else (deviation_to / deviation) ** weight
    shift = mean_to - mean * scale
    return torch.addcmul(shift.to(precise), precise, scale.to(precise))


def inject(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    style: LayerStyle,
    rows: Rows,
    attend: Attend,
    damping: Damping = None,
) -> torch.Tensor:
    """The layer's attention output [rows, tokens, channels], styled rows attending to the reference as well.

    Unstyled rows run by themselves: they are then exactly plain attention, and cost no more than that.
    """
    chunked = [rows.chunked(x) for x in (q, k, v)]
    styled = _adained(chunked, style, rows)
    if style.share == 0:
        q, k, v = (rows.put_back(x, own).flatten(0, 1) for x, own in zip(chunked, styled, strict=True))
        return attend(q, k, v, None)
    plain_q, plain_k, plain_v = (rows.unstyled(x).flatten(0, 1) for x in chunked)
    plain = attend(plain_q, plain_k, plain_v, None)
    own_q, *own_kv = styled
    shared_k, shared_v = (
        torch.cat((own, rows.of_reference(x).expand_as(own)), 2).flatten(0, 1)
        for x, own in zip(chunked[1:], own_kv, strict=True)
    )
    bias = share_bias(shared_k, k.shape[1], style.share, damping)
    return rows.joined(plain, attend(own_q.flatten(0, 1), shared_k, shared_v, bias))


def inject_through(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, style: LayerStyle, rows: Rows, attend: Attend
) -> torch.Tensor:
    """`inject` for an attention that knows neither bias nor a part of the rows (another pack's replace function).

    It sees all rows at once. Unstyled rows get their own keys and values twice, which changes nothing (StyleAligned
    does so for its reference). A share below 1 mixes the outputs with and without sharing; above 1 it counts as 1.
    """
    chunked = [rows.chunked(x) for x in (q, k, v)]
    q, k, v = (rows.put_back(x, own) for x, own in zip(chunked, _adained(chunked, style, rows), strict=True))
    alone = functools.partial(attend, q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), None)
    if style.share == 0:
        return alone()
    shared_k, shared_v = (
        torch.cat((x, rows.put_back(x, rows.of_reference(x).expand_as(rows.styled(x)))), 2).flatten(0, 1)
        for x in (k, v)
    )
    out = attend(q.flatten(0, 1), shared_k, shared_v, None)
    return out if style.share >= 1 else torch.lerp(alone(), out, style.share)


def share_bias(keys: torch.Tensor, brought: int, share: float, damping: Damping = None) -> torch.Tensor | None:
    """ln(share), and the damping, on the last `brought` of the keys' columns [1, keys].

    None where that is nothing, so that fast kernels stay in use.
    """
    if share == 1 and damping is None:
        return None
    bias = keys.new_zeros(1, keys.shape[-2])
    bias[:, -brought:] = math.log(share) + (0.0 if damping is None else damping.to(keys))
    return bias


def _adained(chunked: Sequence[torch.Tensor], style: LayerStyle, rows: Rows) -> list[torch.Tensor]:
    """The styled rows of q, k and v, each [chunks, rows, tokens, channels], with their moments moved."""
    return [adained(x, rows, weight) for x, weight in zip(chunked, style[:3], strict=True)]
