"""Lumina 2 and Z-Image (NextDiT): refiners of the picture alone, then blocks of text and picture in one stream."""

from __future__ import annotations

from ...engine.layers import LayerId
from .transformer import Blocks, Given, Place, Seen, Transformer


class NextDiT(Transformer):
    name = "Lumina2 and Z-Image"
    classes = ("comfy.ldm.lumina.model.NextDiT",)
    blocks = (
        Blocks("refiner", "noise_refiner", "attention.qkv", owner="attention"),
        Blocks("joint", "layers", "attention.qkv", owner="attention", out="attention.out"),
    )
    text_refined = True

    def place(self, layer: LayerId, given: Given, seen: Seen) -> Place | None:
        tokens, matrices = given("x", 0).shape[1], given("freqs_cis", 2)
        if layer.block == "refiner":
            seen.image = tokens
        if seen.image is None:
            return None
        text = tokens - seen.image
        return Place(text, slice(0, text), matrices.movedim(1, 2))
