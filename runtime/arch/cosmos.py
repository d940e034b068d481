"""Cosmos-Predict2 and Anima: self-attention of the picture, text by cross-attention."""

from __future__ import annotations

import torch

from ...engine.layers import LayerId
from .transformer import Blocks, Given, Place, Seen, Transformer


class CosmosPredict2(Transformer):
    name = "Cosmos-Predict2 and Anima"
    text_joined = False
    classes = ("comfy.ldm.cosmos.predict2.MiniTrainDIT", "comfy.ldm.anima.model.Anima")
    blocks = (Blocks("block", "blocks", "self_attn.{feature}_proj", owner="self_attn", out="cross_attn.output_proj"),)
    cross = "cross_attn"
    halves = True

    @property
    def patch(self) -> tuple[int, int, int]:
        side = self.network.patch_spatial
        return self.network.patch_temporal, side, side

    @property
    def axes(self) -> list[int]:
        channels = self.network.model_channels // self.network.num_heads
        side = channels // 6 * 2
        return [channels - 2 * side, side, side]

    def turned_by(self, columns: int, device: torch.device) -> torch.Tensor:
        last = self.network.pos_embedder.generate_embeddings((1, 1, 1, columns + 1, 0), device=device)[-1]
        return last[None, None, None]

    def place(self, layer: LayerId, given: Given, seen: Seen) -> Place | None:
        return Place(0, matrices=given("rope_emb", 2).movedim(1, 2))
