"""A LoRA at gated layers only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.lora_convert
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP

from ...engine.gates import LayerGate, mean_weights
from ...engine.parameters import parameter_weights
from ...engine.profile import FEATURES
from ..arch.registry import architecture_of
from ..runs.loaded import sampling_of

PREFIX = "diffusion_model."


@dataclass(frozen=True)
class GatedLoRA:
    """What a LoRA became: the patched model and text encoder, and how many of its weights act in the model.

    `weights` counts those of the model's parameters that it changes, `acting` those at a strength other than 0,
    `unused` names keys of the file that fit neither model nor text encoder.
    """

    model: ModelPatcher
    clip: CLIP | None
    weights: int
    acting: int
    unused: tuple[str, ...]


def gate_lora(
    model: ModelPatcher,
    clip: CLIP | None,
    lora: Mapping[str, torch.Tensor],
    gate: LayerGate,
    strength: float,
    strength_clip: float,
) -> GatedLoRA:
    """Clones with a LoRA (or what else ComfyUI loads as one), each weight at `strength` times its layer's gate.

    A layer's queries, keys and values follow the gate of their feature, the widest of the three where one weight makes
    them all, as the rest of the block does: the widest of all layers in it.
    A full gate patches what ComfyUI's own loader does, an empty one nothing. Raises ValueError for a gate of a model
    with other layers.
    """
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, keys)
    lora = comfy.lora_convert.convert_lora(dict(lora))
    patches = comfy.lora.load_lora(lora, keys, log_missing=False)
    own = {key: patch for key, patch in patches.items() if _name(key).startswith(PREFIX)}
    weights = parameter_weights({_name(key) for key in own}, _known(model, gate))
    patched = model.clone()
    for weight, group in _by_weight(own, weights).items():
        patched.add_patches(group, strength * weight)
    acting = sum(strength * weights[_name(key)] != 0 for key in own)
    encoder = _with_text_patches(clip, {key: patch for key, patch in patches.items() if key not in own}, strength_clip)
    return GatedLoRA(patched, encoder, len(own), acting, _unused(lora, patches))


def _name(key: Any) -> str:
    """A patch's parameter; a part of a fused weight is named (parameter, offset, ...)."""
    return key if isinstance(key, str) else key[0]


def _known(model: ModelPatcher, gate: LayerGate) -> dict[str, float]:
    """The gate's mean weight over the schedule, by the name of every parameter of a layer's block."""
    architecture = architecture_of(model)
    layers = architecture.layers
    mean = mean_weights(gate, layers, sampling_of(model).percent_to_sigma)  # weights are patched once, before the run
    known: dict[str, float] = {}
    for column, layer in enumerate(layers):
        widest = float(mean[:, column].max())
        for name in architecture.parameters(layer):
            known[PREFIX + name] = max(known.get(PREFIX + name, 0.0), widest)
    for column, layer in enumerate(layers):
        named = {feature: architecture.projection(layer, feature) for feature in FEATURES}
        if len(set(named.values())) == len(FEATURES):
            known |= {PREFIX + name: float(mean[FEATURES.index(feature), column]) for feature, name in named.items()}
        else:  # one weight makes all three
            known[PREFIX + named["q"]] = float(mean[:, column].max())
    return known


def _by_weight(patches: Mapping[Any, Any], weights: Mapping[str, float]) -> dict[float, dict[Any, Any]]:
    """Patches grouped by weight, those at 0 left out."""
    groups: dict[float, dict[Any, Any]] = defaultdict(dict)
    for key, patch in patches.items():
        if weights[_name(key)]:
            groups[weights[_name(key)]][key] = patch
    return groups


def _with_text_patches(clip: CLIP | None, patches: Mapping[Any, Any], strength: float) -> CLIP | None:
    if clip is None or not strength:
        return clip
    patched = clip.clone()
    patched.add_patches(patches, strength)
    return patched


def _unused(lora: Mapping[str, torch.Tensor], patches: Mapping[Any, Any]) -> tuple[str, ...]:
    used = {key for patch in patches.values() for key in getattr(patch, "loaded_keys", ())}
    plain = (".alpha", ".diff", ".diff_b", ".w_norm", ".b_norm", ".set_weight", ".reshape_weight")
    return tuple(key for key in lora if key not in used and not key.endswith(plain))
