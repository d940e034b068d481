"""The methods attention and value_norm: what the chosen layers attend to, watched in one more pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange

from ....engine.attribution import columns, on_grid, split_heads
from ....engine.layers import LayerId
from ....engine.subject import Phrase
from ...arch.attention import ReplaceFunction, with_attention_replaced
from ..layers import AttributionSettings, Layers
from ..maps import Columns
from ..prediction import Prediction, attend, grid_of, rows_of
from ..propagation import Spread


def by_attention(
    prediction: Prediction,
    phrases: Sequence[Phrase],
    layers: Layers,
    settings: AttributionSettings,
    spread: Spread | None = None,
) -> torch.Tensor:
    """Attention to a phrase, as DAAM; with `value_norm` each token counts by the length of what it says.

    One more conditional pass, in which the layers are watched and act as always.
    """
    seen = Columns()
    make = {
        layer: functools.partial(_watching, prediction, phrases, seen, layer, _value_norms(layers, layer, settings))
        for layer in layers.asked
    }
    options = with_attention_replaced(prediction.options, "attn2", make)
    prediction.predict(options if spread is None else spread.watching(options))
    return seen.combined(prediction, phrases, layers, settings)


def _watching(
    prediction: Prediction,
    phrases: Sequence[Phrase],
    seen: Columns,
    layer: LayerId,
    lengths: Callable[[torch.Tensor, Sequence[int], int], torch.Tensor] | None,
    earlier: ReplaceFunction | None,
) -> ReplaceFunction:
    def replaced(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
        prediction.ran.add(layer)
        for part in rows_of(prediction, q, k, extra):
            maps = []
            for phrase in phrases:
                positions = part.positions(phrase)
                column = columns(q[part.rows], k[part.rows], positions, extra["n_heads"])
                if lengths is not None:
                    column = column * lengths(v[part.rows], positions, extra["n_heads"])
                maps.append(on_grid(column.sum(-1), grid_of(extra)))
            seen.add(layer, torch.stack(maps))
        return attend(earlier, q, k, v, extra)

    return replaced


def _value_norms(
    layers: Layers, layer: LayerId, settings: AttributionSettings
) -> Callable[[torch.Tensor, Sequence[int], int], torch.Tensor] | None:
    """Length of V_k W_o of each head alone [rows, heads, 1, positions]; None for plain attention.

    The layer itself projects, so that LoRA, casts and offloaded weights count.
    """
    if settings.method != "value_norm":
        return None
    project = layers.blocks[layer].attn2.to_out

    def lengths(v: torch.Tensor, positions: Sequence[int], heads: int) -> torch.Tensor:
        values = split_heads(v, heads)[:, :, list(positions)]
        alone = torch.eye(heads, dtype=v.dtype, device=v.device)[:, None, :, None] * rearrange(
            values, "rows heads tokens channels -> rows 1 tokens heads channels"
        )
        alone = rearrange(alone, "rows head tokens heads channels -> rows (head tokens) (heads channels)")
        said = project(alone) - project(torch.zeros_like(alone[:, :1]))  # without the bias
        return rearrange(said.float().norm(dim=-1), "rows (head tokens) -> rows head 1 tokens", head=heads)

    return lengths
