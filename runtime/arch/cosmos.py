"""Cosmos-Predict2 and Anima: self-attention of the picture, text by cross-attention."""

from __future__ import annotations

from ...engine.layers import LayerId
from .transformer import Blocks, Given, Place, Seen, Transformer


class CosmosPredict2(Transformer):
    name = "Cosmos-Predict2 and Anima"
    classes = ("comfy.ldm.cosmos.predict2.MiniTrainDIT", "comfy.ldm.anima.model.Anima")
    blocks = (Blocks("block", "blocks", "self_attn.{feature}_proj", owner="self_attn"),)
    halves = True

    @property
    def patch(self) -> tuple[int, int, int]:
        side = self.network.patch_spatial
        return self.network.patch_temporal, side, side

    def place(self, layer: LayerId, given: Given, seen: Seen) -> Place | None:
        return Place(0, matrices=given("rope_emb", 2).movedim(1, 2))
