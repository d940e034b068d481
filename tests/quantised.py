"""Tiny models with quantised weights, in ComfyUI's own classes for each form in which checkpoints come."""

from __future__ import annotations

import json
from typing import Any

import comfy.ops
import comfy.utils
import torch
from torch import nn

from tiny import _patcher

FP8 = torch.float8_e4m3fn
FORMS = ("fp8", "scaled", "mixed")
"""As `weight_dtype` makes it; fp8 with a scale a weight; layers of several precisions, here fp8, named in the file."""


def quantised(source: Any, form: str, compute: torch.dtype = torch.float32) -> Any:
    """A ModelPatcher with the weights of another, quantised; where the machine is said to multiply fp8, it will."""
    config, base = _copy(source.model.model_config), type(source.model)
    weights = {name: weight.clone() for name, weight in source.model.diffusion_model.state_dict().items()}
    config.set_inference_dtype(FP8 if form == "fp8" else torch.float32, compute)
    config.optimizations["fp8"] = True
    if form != "fp8":
        names = [name for name, module in source.model.diffusion_model.named_modules() if isinstance(module, nn.Linear)]
        _with_scales(config, weights, names, form)
    with torch.inference_mode():
        model = base(config, model_type=source.model.model_type, device=torch.device("cpu"))
        model.load_model_weights(weights, "")
    return _patcher(model.eval())


def _copy(config: Any) -> Any:
    """Without what answers for every name, which copying by the book stumbles over."""
    copied = object.__new__(type(config))
    copied.__dict__ |= {
        **vars(config),
        "unet_config": {**config.unet_config},
        "optimizations": {**config.optimizations},
    }
    return copied


def _with_scales(config: Any, weights: dict[str, torch.Tensor], names: list[str], form: str) -> None:
    """Put fp8 weights and their scales into a checkpoint, and tell the configuration as detection does."""
    for name in names:
        weight = weights[f"{name}.weight"]
        scale = weight.abs().amax() / torch.finfo(FP8).max
        weights[f"{name}.weight"] = (weight / scale).to(FP8)
        scales = ("scale_weight", "scale_input") if form == "scaled" else ("weight_scale", "input_scale")
        weights |= {f"{name}.{each}": value for each, value in zip(scales, (scale, torch.tensor(0.05)), strict=True)}
    layers = {name: {"format": "float8_e4m3fn"} for name in names}
    if not hasattr(comfy.ops, "scaled_fp8_ops"):  # newer versions know one form and convert the older ones to it
        config.quant_config = {"mixed_ops": True}
        facts = {"_quantization_metadata": json.dumps({"layers": layers})} if form == "mixed" else {}
        weights |= {} if form == "mixed" else {"scaled_fp8": torch.zeros(1, dtype=FP8)}
        converted, _ = comfy.utils.convert_old_quants(dict(weights), "", metadata=facts)
        weights.clear()
        weights.update(converted)
    elif form == "mixed":
        config.layer_quant_config = layers
    else:
        config.scaled_fp8 = FP8
