"""Tells models apart: by architecture, and by a few of their weights."""

from __future__ import annotations

import hashlib
from typing import Any

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QuantizedTensor

from .registry import architecture_of

SIDE = 16
"""Rows and columns that are read of a weight."""


def fingerprint_of(model: ModelPatcher) -> dict[str, Any]:
    """Name, channel width of every self-attention, width of a UNet's text, a hash of a few weights, and how many
    weights a LoRA has patched.

    The hash is of the checkpoint's own weights in 16 bits, so that it is the same with and without LoRA and at any
    precision that the model is loaded in. A quantised copy has other weights, and a hash of its own.
    """
    architecture = architecture_of(model)
    layers = architecture.layers
    projections = {f"diffusion_model.{architecture.projection(layer, 'k')}" for layer in layers}
    return {
        "name": type(model.model).__name__,
        "widths": [architecture.width(layer) for layer in layers],
        "text": model.model.model_config.unet_config.get("context_dim"),
        "weights": _hash(model, [name for name, _ in model.model.named_parameters() if name in projections]),
        "patched_weights": len(model.patches),
    }


@torch.inference_mode()  # elsewhere ComfyUI 0.3.75's quantised weights do not change precision
def _hash(model: ModelPatcher, keys: list[str]) -> str:
    digest = hashlib.sha256()
    for key in keys[:: max(1, len(keys) // 4)]:
        digest.update(
            _corner(model, key).float().cpu().to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()
        )
    return digest.hexdigest()[:16]


def _corner(model: ModelPatcher, key: str) -> torch.Tensor:
    """A part of a weight, in the numbers that it stands for where ComfyUI has quantised it.

    Those do not depend on what the model computes in, nor on which of ComfyUI's classes holds an fp8 checkpoint.
    """
    weight = _original(model, key).detach()
    if isinstance(weight, QuantizedTensor):
        return weight.to(torch.float32).dequantize()[:SIDE, :SIDE]
    module = comfy.utils.get_attr(model.model, key.rpartition(".")[0])
    scaled = getattr(module, "convert_weight", None)
    return weight[:SIDE, :SIDE] if scaled is None else scaled(weight[:SIDE, :SIDE], inplace=False)


def _original(model: ModelPatcher, key: str) -> torch.Tensor:
    """A weight as the checkpoint has it: ComfyUI keeps a backup of those that it has patched in place."""
    backup = model.backup.get(key)
    return comfy.utils.get_attr(model.model, key) if backup is None else backup.weight
