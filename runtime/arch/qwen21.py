"""Qwen-Image 2.1: text, pictures to edit among it, and the picture being painted, in one stream.

Each sees what stands before it, so a block calls attention for one after the other. Nothing before the painted picture
changes from step to step: ComfyUI keeps it, and from the second step on blocks are given the painted picture alone.
"""

from __future__ import annotations

from torch.nn import functional

from ...engine.layers import LayerId
from .transformer import Blocks, Given, Place, Seen, Transformer


class QwenImage21(Transformer):
    name = "Qwen-Image 2.1"
    classes = ("comfy.ldm.qwen_image21.model.QwenImage21Transformer2DModel",)
    blocks = (Blocks("single", "transformer_blocks", "attn.to_{feature}", owner="attn", out="attn.to_out.0"),)
    text_refined = True

    @property
    def patch(self) -> tuple[int, int, int]:
        return 1, 1, 1

    def place(self, layer: LayerId, given: Given, seen: Seen) -> Place | None:
        tokens, before = given("x", 0).shape[1], given("prefix_len", 3)
        if before == tokens:
            return None  # what ComfyUI keeps, apart from the painted picture
        text, matrices = seen.prompt or 0, given("pe", 1).movedim(1, 2)
        start = before or text + _tokens_to_edit(seen)
        matrices = functional.pad(matrices, (0, 0, 0, 0, 0, 0, start - before, 0))
        return Place(start, slice(0, text), matrices, start + seen.tokens)

    def text_place(self, layer: LayerId, given: Given, seen: Seen) -> Place | None:
        """None beside pictures to edit, which stand among the text."""
        return None if _tokens_to_edit(seen) else self.place(layer, given, seen)


def _tokens_to_edit(seen: Seen) -> int:
    """Tokens of the pictures to edit that the network was given."""
    return sum(picture.shape[-2] * picture.shape[-1] for picture in seen.given("ref_latents", 3) or ())
