"""Wan 2.1 and 2.2, for pictures (one frame): self-attention of the picture, text by cross-attention."""

from __future__ import annotations

from ...engine.layers import LayerId
from .transformer import Blocks, Given, Place, Seen, Transformer


class Wan(Transformer):
    name = "Wan"
    text_joined = False
    classes = ("comfy.ldm.wan.model.WanModel",)
    blocks = (Blocks("block", "blocks", "self_attn.{feature}", owner="self_attn", out="cross_attn.o"),)
    cross = "cross_attn"

    def place(self, layer: LayerId, given: Given, seen: Seen) -> Place | None:
        before = given("x", 0).shape[1] - seen.tokens if self.network.ref_conv is not None else 0
        return Place(before, matrices=given("freqs", 1).movedim(1, 2))
