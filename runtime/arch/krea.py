"""Krea 2: text is fused by blocks of its own, then stands before the picture in one stream; pictures to edit behind."""

from __future__ import annotations

from ...engine.layers import LayerId
from .transformer import Blocks, Given, Place, Seen, Transformer


class Krea2(Transformer):
    name = "Krea 2"
    classes = ("comfy.ldm.krea2.model.SingleStreamDiT",)
    blocks = (Blocks("single", "blocks", "attn.w{feature}", owner="attn", out="attn.wo"),)
    text_refined = True

    @property
    def patch(self) -> tuple[int, int, int]:
        return 1, self.network.patch, self.network.patch

    def place(self, layer: LayerId, given: Given, seen: Seen) -> Place | None:
        text, _ = given("transformer_options", 3)["img_slice"]
        return Place(text, slice(0, text), given("freqs", 1))
