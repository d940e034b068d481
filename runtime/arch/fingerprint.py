"""Tells models apart: by architecture, and by a few of their weights."""

from __future__ import annotations

import hashlib
from typing import Any

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher

from .unet import attention_layers


def fingerprint_of(model: ModelPatcher) -> dict[str, Any]:
    """Name, channel width of every self-attention, a hash of a few weights, and how many weights a LoRA has patched.

    The hash is of the checkpoint's own weights in 16 bits, so that it is the same with and without LoRA and at any
    precision that the model is loaded in.
    """
    layers = attention_layers(model)
    return {
        "name": type(model.model).__name__,
        "widths": [transformer.attn1.to_q.weight.shape[0] for transformer in layers.values()],
        "weights": _hash(model, [name for name in _self_attention_keys(model) if name.endswith("to_k.weight")]),
        "patched_weights": len(model.patches),
    }


def _self_attention_keys(model: ModelPatcher) -> list[str]:
    return [name for name, _ in model.model.named_parameters() if ".attn1." in name]


def _hash(model: ModelPatcher, keys: list[str]) -> str:
    digest = hashlib.sha256()
    for key in keys[:: max(1, len(keys) // 4)]:
        digest.update(
            _original(model, key)[:16, :16]
            .detach()
            .float()
            .to("cpu", torch.bfloat16)
            .contiguous()
            .view(torch.int16)
            .numpy()
            .tobytes()
        )
    return digest.hexdigest()[:16]


def _original(model: ModelPatcher, key: str) -> torch.Tensor:
    """A weight as the checkpoint has it: ComfyUI keeps a backup of those that it has patched in place."""
    backup = model.backup.get(key)
    return comfy.utils.get_attr(model.model, key) if backup is None else backup.weight
