"""Nodes of the test server that give tiny models, where a workflow's own loaders want their files."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from comfy.clip_vision import ClipVisionModel
from tiny_transformers import tiny_transformer

import tiny

WIDTH = 32  # channels of text that every tiny transformer reads


class TinyFamily:
    """MODEL, CLIP and VAE, with random weights. `blocks` is how many blocks it has, 0 for as many as in other tests."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CLIP", "VAE"), "load", "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"kind": ("STRING", {}), "blocks": ("INT", {})}}

    def load(self, kind: str, blocks: int) -> tuple[Any, Any, Any]:
        model = tiny_transformer(kind, **({"num_blocks": blocks} if blocks else {}))
        video = model.model.latent_format.latent_dimensions == 3
        vae = tiny.tiny_video_vae() if video else tiny.tiny_vae(channels=model.model.latent_format.latent_channels)
        return model.clone(), tiny.tiny_clip(width=WIDTH), vae


class TinyClipVision:
    """ComfyUI's own vision network with random weights, of a `kind` that its loader knows."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP_VISION",), "load", "test"
    SMALL = {
        "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3, "patch_size": 8,
        "image_size": 32, "num_channels": 3, "projection_dim": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
    }  # fmt: skip

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"kind": (["clip_vision_model", "siglip_vision_model"], {})}}

    def load(self, kind: str) -> tuple[ClipVisionModel]:
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / "config.json"
            config.write_text(json.dumps(self.SMALL | {"model_type": kind}), encoding="utf-8")
            network = ClipVisionModel(str(config))
        generator = torch.Generator().manual_seed(0)
        for weight in network.model.parameters():
            weight.data = torch.randn(weight.shape, generator=generator) * (0.5 if weight.ndim > 1 else 0.1)
        return (network,)


NODE_CLASS_MAPPINGS = {"TinyFamily": TinyFamily, "TinyClipVision": TinyClipVision}
