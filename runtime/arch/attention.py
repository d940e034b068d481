"""Replaces attention for one model call, on top of whatever other packs have put there."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy import model_management
from comfy.ldm.modules import attention
from torch import nn

from ...engine.layers import LayerId
from ..runs.whose import OURS, whose

OVERRIDE = "optimized_attention_override"

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
    attend, options = attention.optimized_attention, extra_options
    if bias is not None and model_management.sage_attention_enabled():
        attend = attention.attention_pytorch  # SageAttention leaves a mask out without a word
    if bias is not None and not heeds_masks(options.get(OVERRIDE), v):
        options = {name: option for name, option in options.items() if name != OVERRIDE}
    return attend(
        q,
        k,
        v,
        heads=extra_options["n_heads"],
        mask=bias,
        attn_precision=extra_options.get("attn_precision"),  # copies of ComfyUI's block that packs bring give none
        transformer_options=options,
    )


def chosen_attention(module: nn.Module) -> Callable[..., torch.Tensor] | None:
    """The attention that a checkpoint brings for a module, as newer ComfyUI reads it: one in eight bits."""
    return getattr(getattr(module, "comfy_attention", None), "function", None)


def heeds_masks(override: Callable[..., torch.Tensor] | None, like: torch.Tensor) -> bool:
    """Whether another pack's attention override acts on a mask; found out once, with tensors such as `like`.

    Some put an attention in place that takes none, as SageAttention's, and leave a mask out without a word.
    """
    key = getattr(override, "__func__", override)
    if key is None or whose(key) == OURS:
        return True
    if key not in _heeding:
        _heeding[key] = _tried_with_mask(override, like)
        if not _heeding[key]:
            logging.warning(
                f"{whose(key)} leaves masks out of attention, so it is set aside where a share or several references "
                "need one."
            )
    return _heeding[key]


_heeding: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def _tried_with_mask(override: Any, like: torch.Tensor) -> bool:
    """Two tokens, of which the mask closes the second: attention has to return the first."""
    heads, channels = 2, 64
    q = like.new_zeros(1, 2, heads * channels)
    v = torch.stack([torch.zeros_like(q[0, 0]), torch.ones_like(q[0, 0])])[None]
    mask = like.new_tensor([[0.0, -1e4]])
    call = {"heads": heads, "mask": mask, "attn_precision": None, "transformer_options": {}}
    try:
        found = override(attention.attention_pytorch, q, q, v, _inside_attn_wrapper=True, **call)
        return float(found.max()) < 0.1
    except Exception:  # whatever it cannot do with so small a call, a mask is safe without it
        return False
