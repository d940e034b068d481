"""Style injection: AdaIN of queries and keys, and attention shared with a reference.

The operator of StyleAligned (arXiv 2312.02133) under a gate, as in Conditional Balance (arXiv 2412.19853). q, k and v
are a self-attention layer's projections [rows, tokens, heads * channels]. Rows come in equal chunks, one per
conditioning in the call; each chunk holds its own reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange

from .layers import LayerId

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""attention(q, k, v, bias): bias is None or [1, keys], added to every query's logits."""

EPS = 1e-5
"""Added to the variance under the root, as StyleAligned does."""


class LayerStyle(NamedTuple):
    """What happens at one layer.

    `q`, `k`, `v`: how far the moments move to the reference's, 0 to 1. `share`: weight of the reference's tokens in the
    softmax beside the picture's own; 0 shares nothing, 1 is StyleAligned, exp(shift) is its `shared_score_shift`.
    """

    q: float = 0.0
    k: float = 0.0
    v: float = 0.0
    share: float = 0.0


class Rows(NamedTuple):
    """Where pictures and their reference stand in each of `chunks` equal chunks of rows.

    Rows `start` to `stop` (exclusive) are styled, row `reference` gives the style and every other row stays as it is.
    """

    chunks: int
    start: int
    stop: int
    reference: int


@dataclass(frozen=True)
class StyleSettings:
    """How a gate's weights become layer styles: `strength` (0 to 1) scales them, `share` the reference's tokens."""

    strength: float = 1.0
    adain_q: bool = True
    adain_k: bool = True
    adain_v: bool = False
    share: float = 1.0


def layer_styles(
    weights: torch.Tensor, layers: Sequence[LayerId], settings: StyleSettings
) -> dict[LayerId, LayerStyle]:
    """The open layers and their styles, from gate weights [3, L].

    Attention is shared where the q or the k gate is open (Conditional Balance), with or without AdaIN there.
    """
    styles = {}
    for layer, (q, k, v) in zip(layers, (weights * settings.strength).T.tolist(), strict=True):
        share = max(q, k) * settings.share
        style = LayerStyle(q * settings.adain_q, k * settings.adain_k, v * settings.adain_v, share)
        if any(style):
            styles[layer] = style
    return styles


def moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and sqrt(var + EPS) over tokens [..., 1, channels], in fp32; the variance is unbiased, 0 for one token."""
    variance, mean = torch.var_mean(x, dim=-2, keepdim=True, correction=int(x.shape[-2] > 1))
    return mean.float(), (variance.float() + EPS).sqrt()


def adain(x: torch.Tensor, weight: float, rows: Rows) -> torch.Tensor:
    """Move the moments of the styled rows toward the reference's by `weight`; x is [rows, tokens, channels].

    Every other row, and everything at weight 0, comes out bit-equal.
    """
    if weight == 0:
        return x
    x = _chunked(x, rows)
    mean, deviation = moments(x)
    own, reference = slice(rows.start, rows.stop), slice(rows.reference, rows.reference + 1)
    scale, shift = torch.ones_like(mean), torch.zeros_like(mean)
    scale[:, own] = torch.lerp(deviation[:, own], deviation[:, reference], weight) / deviation[:, own]
    shift[:, own] = torch.lerp(mean[:, own], mean[:, reference], weight) - mean[:, own] * scale[:, own]
    return _flat(torch.addcmul(shift.to(x), x, scale.to(x)))


def inject(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, style: LayerStyle, rows: Rows, attend: Attend
) -> torch.Tensor:
    """The layer's attention output [rows, tokens, channels], styled rows attending to the reference as well.

    Unstyled rows run by themselves: they are then exactly plain attention, and cost no more than that.
    """
    q, k, v = adain(q, style.q, rows), adain(k, style.k, rows), adain(v, style.v, rows)
    if style.share == 0:
        return attend(q, k, v, None)
    plain = attend(*(_unstyled(x, rows) for x in (q, k, v)), None)
    bias = share_bias(q, k.shape[1], style.share)
    styled = attend(_styled(q, rows), _with_reference(k, rows), _with_reference(v, rows), bias)
    return _put_back(plain, styled, rows)


def inject_through(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, style: LayerStyle, rows: Rows, attend: Attend
) -> torch.Tensor:
    """`inject` for an attention that knows neither bias nor a part of the rows (another pack's replace function).

    It sees all rows at once. Unstyled rows get their own keys and values twice, which changes nothing (StyleAligned
    does so for its reference). A share below 1 mixes the outputs with and without sharing; above 1 it counts as 1.
    """
    q, k, v = adain(q, style.q, rows), adain(k, style.k, rows), adain(v, style.v, rows)
    if style.share == 0:
        return attend(q, k, v, None)
    shared = attend(q, _doubled(k, rows), _doubled(v, rows), None)
    return shared if style.share >= 1 else torch.lerp(attend(q, k, v, None), shared, style.share)


def share_bias(like: torch.Tensor, tokens: int, share: float) -> torch.Tensor | None:
    """ln(share) on the reference's columns [1, 2 * tokens]; None at 1, so that fast kernels stay in use."""
    if share == 1:
        return None
    bias = like.new_zeros(1, 2 * tokens)
    bias[:, tokens:] = math.log(share)
    return bias


def _chunked(x: torch.Tensor, rows: Rows) -> torch.Tensor:
    return rearrange(x, "(chunk row) token channel -> chunk row token channel", chunk=rows.chunks)


def _flat(x: torch.Tensor) -> torch.Tensor:
    return rearrange(x, "chunk row token channel -> (chunk row) token channel")


def _styled(x: torch.Tensor, rows: Rows) -> torch.Tensor:
    return _flat(_chunked(x, rows)[:, rows.start : rows.stop])


def _unstyled(x: torch.Tensor, rows: Rows) -> torch.Tensor:
    x = _chunked(x, rows)
    return _flat(torch.cat((x[:, : rows.start], x[:, rows.stop :]), dim=1))


def _with_reference(x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """The styled rows' tokens followed by their reference's."""
    x = _chunked(x, rows)
    own = x[:, rows.start : rows.stop]
    reference = x[:, rows.reference : rows.reference + 1].expand_as(own)
    return _flat(torch.cat((own, reference), dim=2))


def _doubled(x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Every row's tokens twice, the second time the reference's in the styled rows."""
    x = _chunked(x, rows)
    second = x.clone()
    second[:, rows.start : rows.stop] = x[:, rows.reference : rows.reference + 1]
    return _flat(torch.cat((x, second), dim=2))


def _put_back(plain: torch.Tensor, styled: torch.Tensor, rows: Rows) -> torch.Tensor:
    plain, styled = _chunked(plain, rows), _chunked(styled, rows)
    return _flat(torch.cat((plain[:, : rows.start], styled, plain[:, rows.start :]), dim=1))
