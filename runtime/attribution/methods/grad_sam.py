"""The method grad_sam: attention times its gradient (arXiv 2204.11073), over probes of the whole prediction."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ....engine.attribution import columns, grad_sam, gradients_of, on_grid, sign_probes
from ....engine.layers import LayerId
from ....engine.subject import Phrase
from ...arch.attention import ReplaceFunction, with_attention_replaced
from ..gradients import backward, gradients, with_sdpa
from ..layers import AttributionSettings, Layers
from ..maps import Columns
from ..prediction import Prediction, Rows, attend, grid_of, rows_of
from ..propagation import Spread


@dataclass(frozen=True)
class _Traced:
    """One layer's call inside the graph: its output, and what its columns need."""

    layer: LayerId
    output: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    heads: int
    grid: tuple[int, int]
    parts: tuple[Rows, ...]


def by_gradient(
    prediction: Prediction,
    phrases: Sequence[Phrase],
    layers: Layers,
    settings: AttributionSettings,
    spread: Spread | None = None,
    probes: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention to a phrase times the ReLU of its gradient, over random combinations of all outputs.

    The scalar is <probe, predicted noise>; probes are signs unless given [P, B, C, h, w]. One forward pass, of which
    only the part from the first chosen layer on is remembered, and one backward pass through that part for each probe.
    """
    traced: list[_Traced] = []
    make = {layer: functools.partial(_tracing, prediction, traced, layer) for layer in layers.asked}
    options = with_sdpa(with_attention_replaced(prediction.options, "attn2", make))
    with gradients():
        noise = prediction.noise(prediction.predict(options if spread is None else spread.watching(options)))
        if probes is None:
            probes = sign_probes(settings.probes, noise)
        found = backward(noise, probes, [call.output for call in traced])
    seen = Columns()
    for call, gradient in zip(traced, found, strict=True):
        for part in call.parts:
            seen.add(call.layer, torch.stack([_saliency(call, part, gradient, phrase) for phrase in phrases]))
    return seen.combined(prediction, phrases, layers, settings)


def _tracing(
    prediction: Prediction, traced: list[_Traced], layer: LayerId, earlier: ReplaceFunction | None
) -> ReplaceFunction:
    def replaced(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
        prediction.ran.add(layer)
        out = attend(earlier, q, k, v, extra)
        parts = tuple(rows_of(prediction, q, k, extra))
        if parts:
            if not out.requires_grad:
                out = out.detach().requires_grad_()  # the graph begins at the first chosen layer
            q, k, v = (x.detach() for x in (q, k, v))
            traced.append(_Traced(layer, out, q, k, v, extra["n_heads"], grid_of(extra), parts))
        return out

    return replaced


def _saliency(call: _Traced, part: Rows, gradient: torch.Tensor, phrase: Phrase) -> torch.Tensor:
    """[B, heads, h, w] of one phrase at one layer from dL/dO [P, rows, queries, channels]."""
    rows, positions = part.rows, part.positions(phrase)
    column = columns(call.q[rows], call.k[rows], positions, call.heads)
    slopes = gradients_of(gradient[:, rows], call.v[rows], positions, call.heads)
    return on_grid(grad_sam(column, slopes), call.grid)
