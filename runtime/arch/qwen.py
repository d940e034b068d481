"""Qwen-Image, its Edit, and Mage-Flow: joint blocks, text first; pictures to edit behind the one being painted."""

from __future__ import annotations

from ...engine.layers import LayerId
from .transformer import Blocks, Given, Place, Seen, Transformer


class QwenImage(Transformer):
    name = "Qwen-Image"
    control = (("input", "transformer_blocks"),)
    classes = (
        "comfy.ldm.qwen_image.model.QwenImageTransformer2DModel",
        "comfy.ldm.mage_flow.model.MageFlowTransformer2DModel",
    )
    blocks = (Blocks("joint", "transformer_blocks", "attn.to_{feature}", owner="attn", out="attn.to_out.0"),)

    def place(self, layer: LayerId, given: Given, seen: Seen) -> Place | None:
        text = given("encoder_hidden_states", 1).shape[1]
        return Place(text, slice(0, text), given("image_rotary_emb", 4))
