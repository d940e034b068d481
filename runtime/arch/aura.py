"""AuraFlow: joint blocks, then single-stream blocks, no rotation; eight registers stand before the text."""

from __future__ import annotations

from ...engine.layers import LayerId
from ...engine.style import KEEP
from .transformer import Blocks, Given, Place, Seen, Transformer


class AuraFlow(Transformer):
    name = "AuraFlow"
    position = KEEP
    classes = ("comfy.ldm.aura.mmdit.MMDiT",)
    blocks = (
        Blocks("joint", "double_layers", "attn.w2{feature}", owner="attn", out="attn.w2o"),
        Blocks("single", "single_layers", "attn.w1{feature}", owner="attn", out="attn.w1o"),
    )

    def place(self, layer: LayerId, given: Given, seen: Seen) -> Place | None:
        if layer.block == "joint":
            seen.text = given("c", 0).shape[1]
        if seen.text is None:
            return None
        registers = self.network.register_tokens.shape[1]
        return Place(seen.text, slice(registers, seen.text))
