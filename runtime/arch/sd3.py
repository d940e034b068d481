"""SD3 and SD3.5: joint blocks without rotation; the first of Medium's have a second attention of the picture alone."""

from __future__ import annotations

from ...engine.layers import LayerId
from ...engine.style import BOTH, KEEP
from .transformer import Blocks, Given, Place, Seen, Transformer


class SD3(Transformer):
    name = "SD3"
    position = KEEP
    sharing = BOTH
    adain_v = True
    control = (("output", "joint_blocks"),)
    classes = (
        "comfy.ldm.modules.diffusionmodules.mmdit.MMDiT",
        "comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper",
    )
    blocks = (
        Blocks("joint", "joint_blocks", "x_block.attn.qkv", out="x_block.attn.proj"),
        Blocks("second", "joint_blocks", "x_block.attn2.qkv"),
    )

    def place(self, layer: LayerId, given: Given, seen: Seen) -> Place | None:
        if layer.block == "second":
            return Place(0)
        text = given("context", 0).shape[1]
        return Place(text, slice(0, text))
