"""A node of the test server that gives a tiny model of a family, where a template's own loaders want its files."""

from __future__ import annotations

from typing import Any

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


NODE_CLASS_MAPPINGS = {"TinyFamily": TinyFamily}
