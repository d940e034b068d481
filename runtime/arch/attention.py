"""Replaces attention for one model call, on top of whatever other packs have put there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy import model_management
from comfy.ldm.modules import attention

from ...engine.layers import LayerId

ReplaceFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]], torch.Tensor]
"""ComfyUI's attn1 or attn2 replace: (q, k, v, extra_options) -> output before to_out; all [rows, tokens, channels]."""


def with_attention_replaced(
    options: dict[str, Any], kind: str, make: Mapping[LayerId, Callable[[ReplaceFunction | None], ReplaceFunction]]
) -> dict[str, Any]:
    """A copy of `transformer_options` in which the given layers' self- (attn1) or cross-attention (attn2) is replaced.

    Each value of `make` receives the function found at that layer (None when there is none) and returns the new one. A
    function under a two-part key serves every transformer of a block; only the given layers are taken out of it.
    """
    replaced = options.get("patches_replace", {})
    earlier = replaced.get(kind, {})
    ours = {layer: wrap(earlier.get(layer, earlier.get(layer[:2]))) for layer, wrap in make.items()}
    return {**options, "patches_replace": {**replaced, kind: {**earlier, **ours}}}


def plain_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, extra_options: dict[str, Any]
) -> torch.Tensor:
    """ComfyUI's attention, with an optional bias [1, keys] on the logits; other packs' overrides still act."""
    attend = attention.optimized_attention
    if bias is not None and model_management.sage_attention_enabled():
        attend = attention.attention_pytorch  # SageAttention leaves a mask out without a word
    return attend(
        q,
        k,
        v,
        heads=extra_options["n_heads"],
        mask=bias,
        attn_precision=extra_options["attn_precision"],
        transformer_options=extra_options,
    )
