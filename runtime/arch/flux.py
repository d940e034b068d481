"""Flux.1, Kontext, Flux.2, Klein and Chroma: joint blocks, then single-stream blocks; the text stands first."""

from __future__ import annotations

import torch

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

    padded_before = True  # Flux.2 to 512 tokens; the others not at all

    def place(self, layer: LayerId, given: Given, seen: Seen) -> Place | None:
        if layer.block == "joint":
            self._see_text(given("txt", 1), seen)
        if seen.text is None:
            return None
        pe = given("pe", 3 if layer.block == "joint" else 2)
        return Place(seen.text, slice(seen.before, seen.before + (seen.prompt or seen.text)), pe)

    def _see_text(self, text: torch.Tensor, seen: Seen) -> None:
        """Patches may put tokens of their own before the prompt's, as USO's style, or behind them."""
        if seen.text is None and seen.prompt is not None and text.shape[1] > seen.prompt:
            own = self.network.txt_in(seen.given("context", 2))
            seen.before = 0 if torch.equal(text[:, : seen.prompt], own) else text.shape[1] - seen.prompt
        seen.text = text.shape[1]
