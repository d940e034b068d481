"""Tiny diffusion transformers of ComfyUI's own classes, one for each family that this pack knows."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import comfy.model_base
import comfy.supported_models
import torch
from comfy.ldm.flux.model import FluxParams

from tiny import Conditioning, _fill, _patcher


class Kind(NamedTuple):
    """How to build one: names in comfy.supported_models and comfy.model_base, the network's options, widths of text."""

    config: str
    base: str
    options: dict[str, Any]
    text: int
    pooled: int | None = None
    channels: int = 16
    frames: bool = False
    tokens: int = 13
    even: bool = False
    layers: str = ""


_SD3 = {
    "in_channels": 16,
    "patch_size": 2,
    "depth": 2,
    "num_blocks": 3,
    "adm_in_channels": 32,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 128}},
    "num_patches": 24 * 24,
    "pos_embed_max_size": 24,
    "pos_embed_scaling_factor": None,
    "qk_norm": "rms",
    "input_size": None,
}
_FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 32,
    "context_in_dim": 32,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 3,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
}
_FLUX2 = _FLUX | {
    "in_channels": 128,
    "out_channels": 128,
    "vec_in_dim": None,
    "axes_dim": [8, 8, 8, 8],
    "theta": 2000,
    "patch_size": 1,
    "qkv_bias": False,
    "global_modulation": True,
    "mlp_silu_act": True,
    "ops_bias": False,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
}
_CHROMA = {name: value for name, value in _FLUX.items() if name not in ("vec_in_dim", "guidance_embed")} | {
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": 64,
    "hidden_dim": 64,
    "n_layers": 1,
}
_QWEN = {
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 3,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (8, 12, 12),
}
_QWEN21 = {
    "num_layers": 3,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "context_in_dim": 32,
    "axes_dims_rope": (8, 12, 12),
}
_MAGE_FLOW = {
    "num_layers": 3,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "axes_dims_rope": (8, 12, 12),
}
_LUMINA = {
    "in_channels": 16,
    "dim": 64,
    "n_layers": 3,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 1,
    "multiple_of": 32,
    "ffn_dim_multiplier": 1.0,
    "qk_norm": True,
    "cap_feat_dim": 32,
    "axes_dims": [8, 12, 12],
    "axes_lens": [300, 64, 64],
}
_ZIMAGE = _LUMINA | {
    "dim": 256,
    "n_kv_heads": 2,
    "axes_dims": [32, 48, 48],
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
    "rope_theta": 256.0,
}
_AURA = {"dim": 64, "n_layers": 4, "n_double_layers": 2, "n_heads": 2, "global_conddim": 64, "cond_seq_dim": 32}
_HUNYUAN = {
    **_FLUX,
    "theta": 256,
    "patch_size": [1, 2, 2],
    "guidance_embed": False,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
}
_WAN = {
    "model_type": "t2v",
    "patch_size": (1, 2, 2),
    "text_len": 512,
    "in_dim": 16,
    "dim": 72,
    "ffn_dim": 96,
    "freq_dim": 32,
    "text_dim": 32,
    "out_dim": 16,
    "num_heads": 2,
    "num_layers": 3,
}
_COSMOS = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 72,
    "num_blocks": 3,
    "num_heads": 2,
    "crossattn_emb_channels": 32,
    "pos_emb_cls": "rope3d",
    "use_adaln_lora": True,
    "adaln_lora_dim": 16,
}

_ANIMA = _COSMOS | {"image_model": "anima"}
_KREA2 = {
    "image_model": "krea2",
    "features": 64,
    "heads": 2,
    "kvheads": 1,
    "layers": 3,
    "txtdim": 16,
    "txtlayers": 2,
    "txtheads": 2,
    "txtkvheads": 2,
}
_NEWER = {
    "Flux": {"txt_ids_dims": []},
    "Flux2": {"txt_ids_dims": [3]},
    "Chroma": {"txt_ids_dims": [], "vec_in_dim": None},
    "HunyuanVideo": {"meanflow_sum": False},
}
"""What newer versions of ComfyUI want to be told as well, by the name of the configuration."""

_ALL: dict[str, Kind] = {
    "sd3": Kind("SD3", "SD3", _SD3, 32, 32, layers="j0 j1 j2"),
    "sd35-medium": Kind("SD3", "SD3", _SD3 | {"x_block_self_attn_layers": [0, 1]}, 32, 32, layers="j0 x0 j1 x1 j2"),
    "flux": Kind("Flux", "Flux", _FLUX, 32, 32, layers="j0 j1 s0 s1 s2"),
    "flux2": Kind("Flux2", "Flux2", _FLUX2, 32, 32, channels=128, layers="j0 j1 s0 s1 s2"),
    "chroma": Kind("Chroma", "Chroma", _CHROMA, 32, 32, layers="j0 j1 s0 s1 s2"),
    "qwen": Kind("QwenImage", "QwenImage", _QWEN, 32, frames=True, layers="j0 j1 j2"),
    "qwen21": Kind("QwenImage21", "QwenImage21", _QWEN21, 32, channels=64, layers="s0 s1 s2"),
    "mage-flow": Kind("MageFlow", "MageFlow", _MAGE_FLOW, 32, channels=128, layers="j0 j1 j2"),
    "lumina2": Kind("Lumina2", "Lumina2", _LUMINA, 32, layers="r0 j0 j1 j2"),
    "z-image": Kind("ZImage", "Lumina2", _ZIMAGE, 32, layers="r0 j0 j1 j2"),
    "aura": Kind("AuraFlow", "AuraFlow", _AURA, 32, channels=4, layers="j0 j1 s0 s1"),
    "hunyuan-video": Kind(
        "HunyuanVideo", "HunyuanVideo", _HUNYUAN, 32, 32, frames=True, even=True, layers="j0 j1 s0 s1 s2"
    ),
    "wan": Kind("WAN21_T2V", "WAN21", _WAN, 32, frames=True, layers="b0 b1 b2"),
    "cosmos": Kind("CosmosT2IPredict2", "CosmosPredict2", _COSMOS, 32, frames=True, even=True, layers="b0 b1 b2"),
    "anima": Kind("Anima", "Anima", _ANIMA, 32, frames=True, even=True, layers="b0 b1 b2"),
    "krea2": Kind("Krea2", "Krea2", _KREA2, 32, frames=True, layers="s0 s1 s2"),
}
KINDS = {name: kind for name, kind in _ALL.items() if hasattr(comfy.supported_models, kind.config)}
"""Every family that the running ComfyUI has."""


def newer(config: str) -> dict[str, Any]:
    """What the running ComfyUI wants to be told as well."""
    return _NEWER.get(config, {}) if "txt_ids_dims" in FluxParams.__annotations__ else {}


@cache
def tiny_transformer(kind: str, dtype: torch.dtype = torch.float32, seed: int = 0, **others: int) -> Any:
    """A ModelPatcher over a real transformer with random weights, shared by all tests: clone it before a change.

    `others` replace options of the network, such as how many blocks it has.
    """
    recipe = KINDS[kind]
    config = getattr(comfy.supported_models, recipe.config)({**recipe.options, **newer(recipe.config), **others})
    config.set_inference_dtype(dtype, None)
    with torch.inference_mode():
        model = getattr(comfy.model_base, recipe.base)(config, device=torch.device("cpu"))
        _fill(model.diffusion_model, seed)
    return _patcher(model.eval())


def cond(kind: str, seed: int, tokens: int | None = None, **extra: Any) -> Conditioning:
    """A CONDITIONING of random text [1, tokens, width] with the pooled text that the family reads."""
    recipe, generator = KINDS[kind], torch.Generator().manual_seed(seed)
    text = torch.randn(1, tokens or recipe.tokens, recipe.text, generator=generator)
    pooled = {} if recipe.pooled is None else {"pooled_output": torch.randn(1, recipe.pooled, generator=generator)}
    return [[text, {**pooled, **extra}]]


def latent(kind: str, seed: int | None = None, batch: int = 1, height: int = 10, width: int = 7) -> dict[str, Any]:
    """A LATENT of one frame, odd in one direction where the family can; empty without a seed."""
    recipe = KINDS[kind]
    width += recipe.even and width % 2
    shape = (batch, recipe.channels, *((1,) if recipe.frames else ()), height, width)
    if seed is None:
        return {"samples": torch.zeros(shape)}
    return {"samples": torch.randn(shape, generator=torch.Generator().manual_seed(seed))}
