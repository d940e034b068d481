"""The methods attention and value_norm: what the target layers attend to, read in one more pass."""

from __future__ import annotations

from typing import ClassVar

import torch
from einops import rearrange

from ....engine.attribution import at_positions, on_grid, split_heads
from ....engine.subject import Phrase
from ..calls import LayerCall, Rows
from ..maps import Columns
from ..question import Question
from .base import Method, register


@register
class Attention(Method):
    """Attention to a phrase, as DAAM (arXiv 2210.04885)."""

    name: ClassVar[str] = "attention"
    about: ClassVar[str] = "how much each place attends to the subject's words."

    def maps(self, question: Question) -> torch.Tensor:
        seen = Columns()

        def read(call: LayerCall) -> torch.Tensor:
            for part in call.parts:
                seen.add(call.layer, torch.stack([self._map(question, call, part, each) for each in question.phrases]))
            return call.output

        question.predict(read)
        return seen.combined(question)

    def _map(self, question: Question, call: LayerCall, part: Rows, phrase: Phrase) -> torch.Tensor:
        """[B, heads, h, w] of one phrase at one layer."""
        column = call.column(part, phrase)
        factor = self.token_weights(question, call, part, phrase)
        return on_grid((column if factor is None else column * factor).sum(-1), call.grid)

    def token_weights(self, question: Question, call: LayerCall, part: Rows, phrase: Phrase) -> torch.Tensor | None:
        """How much each token counts [rows, heads, 1, positions]; None for all alike."""
        return None


@register
class ValueNorm(Attention):
    """Attention in which every token counts by the length of its token contribution V_k W_o."""

    name: ClassVar[str] = "value_norm"
    about: ClassVar[str] = (
        "attention in which a word counts by how much it adds to the picture; the best masks on the demo model."
    )

    def token_weights(self, question: Question, call: LayerCall, part: Rows, phrase: Phrase) -> torch.Tensor:
        """Length of V_k W_o for each head alone [rows, heads, 1, positions].

        The layer itself projects, so that LoRA, casts and offloaded weights count.
        """
        project, heads = question.layers.architecture.writing(call.layer), call.heads
        values = at_positions(split_heads(call.v[part.rows], heads), part.positions(phrase), 2)
        alone = torch.eye(heads, dtype=values.dtype, device=values.device)[:, None, :, None] * rearrange(
            values, "rows heads tokens channels -> rows 1 tokens heads channels"
        )
        alone = rearrange(alone, "rows head tokens heads channels -> rows (head tokens) (heads channels)")
        added = project(alone) - project(torch.zeros_like(alone[:, :1]))  # without the bias
        lengths = torch.linalg.vector_norm(added.float(), dim=-1)
        return rearrange(lengths, "rows (head tokens) -> rows head 1 tokens", head=heads)
