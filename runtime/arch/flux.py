"""Flux.1, Kontext, Flux.2, Klein and Chroma: joint blocks, then single-stream blocks; the text stands first."""

from __future__ import annotations

from ...engine.layers import LayerId
from .transformer import Blocks, Given, Place, Seen, Transformer


class Flux(Transformer):
    name = "Flux"
    control = (("input", "double_blocks"), ("output", "single_blocks"))
    classes = ("comfy.ldm.flux.model.Flux", "comfy.ldm.chroma.model.Chroma")
    blocks = (
        Blocks("joint", "double_blocks", "img_attn.qkv", out="img_attn.proj"),
        Blocks("single", "single_blocks", "linear1", out="linear2"),
    )

    def place(self, layer: LayerId, given: Given, seen: Seen) -> Place | None:
        if layer.block == "joint":
            seen.text = given("txt", 1).shape[1]
        if seen.text is None:
            return None
        pe = given("pe", 3 if layer.block == "joint" else 2)
        return Place(seen.text, slice(0, seen.text), pe)
