"""HunyuanVideo and HunyuanImage 2.1, for pictures (one frame): joint blocks, then single-stream blocks."""

from __future__ import annotations

from ...engine.layers import LayerId
from .transformer import Blocks, Given, Place, Seen, Transformer


class HunyuanVideo(Transformer):
    name = "HunyuanVideo"
    control = (("input", "double_blocks"), ("output", "single_blocks"))
    classes = ("comfy.ldm.hunyuan_video.model.HunyuanVideo",)
    blocks = (
        Blocks("joint", "double_blocks", "img_attn.qkv", out="img_attn.proj"),
        Blocks("single", "single_blocks", "linear1", out="linear2"),
    )
    text_refined = True

    def place(self, layer: LayerId, given: Given, seen: Seen) -> Place | None:
        if layer.block == "joint":
            seen.text, seen.image = given("txt", 1).shape[1], given("img", 0).shape[1]
        if seen.text is None or seen.image is None:
            return None
        picture_first = getattr(self.network.double_blocks[0], "flipped_img_txt", False)
        first = 0 if picture_first else seen.text
        start = first + seen.image - seen.tokens  # a reference latent stands before the picture
        text = seen.image if picture_first else 0
        words = text + self._before_prompt(seen.text - (seen.prompt or seen.text))
        pe = given("pe", 3 if layer.block == "joint" else 2)
        return Place(start, slice(words, text + seen.text), pe)

    def _before_prompt(self, more: int) -> int:
        """How many of the tokens that stand beside the prompt's own do so before them: in 1.5 all, else none.

        They are letters to be drawn, as ByT5 reads them, and a picture's tokens.
        """
        return more if self.network.cond_type_embedding is not None else 0
