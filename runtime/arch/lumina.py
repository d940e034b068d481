"""Lumina 2 and Z-Image (NextDiT): refiners of the picture alone, then blocks of text and picture in one stream.

Pictures to edit (Z-Image Omni) stand between the text and the one being painted, each with a text of its own.
"""

from __future__ import annotations

import math

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
        multiple = self.network.pad_tokens_multiple or 1
        painted = math.ceil(seen.tokens / multiple) * multiple
        return Place(tokens - painted, slice(0, tokens - seen.image), matrices.movedim(1, 2))

    def text_place(self, layer: LayerId, given: Given, seen: Seen) -> Place | None:
        """None beside pictures to edit, whose texts stand around the prompt's own."""
        place = self.place(layer, given, seen)
        return place if place is None or place.start == place.text.stop else None
