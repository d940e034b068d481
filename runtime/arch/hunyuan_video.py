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
        text = slice(seen.image, seen.image + seen.text) if picture_first else slice(0, seen.text)
        return Place(start, text, given("pe", 3 if layer.block == "joint" else 2))
