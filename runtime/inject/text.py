"""Two prompts of different length in one model call."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import pad

from ..arch.base import Architecture

OTHER_PROMPT = (
    "'prompt' of the style reference was encoded for another model: encode it with the CLIP that came with this one."
)
Text = Any
Fitted = tuple[Text, Text, tuple[int, int]]


@dataclass(frozen=True)
class TextFitting:
    """How the run's text [rows, tokens, width] and the reference's [1, tokens, width] come to one length.

    In cross-attention a text that is repeated whole changes nothing, and so ComfyUI batches prompts. In joint attention
    it would weigh more beside the picture: there the shorter one is padded, and every layer leaves the padding out.
    Where the text is worked on before it meets the picture, padding cannot be left out: the reference's is cut or
    lengthened, which is said.
    """

    joined: bool
    refined: bool
    said: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, architecture: Architecture) -> TextFitting:
        return cls(architecture.text_joined, architecture.text_refined)

    def fit(self, context: Text, made: Text) -> Fitted:
        """Both texts at one length, and how many of each one's last tokens are padding."""
        if not isinstance(context, torch.Tensor) or not isinstance(made, torch.Tensor):
            return context, made, (0, 0)
        if context.shape[2] != made.shape[2]:
            raise ValueError(OTHER_PROMPT)
        if not self.joined:
            return _repeated(context, made)
        if self.refined:
            return context, self._cut(made, context.shape[1]), (0, 0)
        tokens = max(context.shape[1], made.shape[1])
        pads = tokens - context.shape[1], tokens - made.shape[1]
        context, made = (pad(text, (0, 0, 0, more)) for text, more in zip((context, made), pads, strict=True))
        return context, made, pads

    def _cut(self, made: torch.Tensor, tokens: int) -> torch.Tensor:
        """The reference's text with so many tokens: its last ones are left out, or its last one is repeated."""
        more = tokens - made.shape[1]
        if more and not self.said:
            self.said.append("lengthened" if more > 0 else "cut")
            logging.warning(
                "Style injection: the reference's prompt was %s from %d to %d tokens, those of the run's prompt, as "
                "this family of models cannot hold two lengths at once. Write prompts of similar length, or leave "
                "'prompt' of the reference empty.",
                self.said[0],
                made.shape[1],
                tokens,
            )
        return torch.cat((made[:, :tokens], made[:, -1:].expand(-1, max(more, 0), -1)), 1)


def _repeated(context: torch.Tensor, made: torch.Tensor) -> Fitted:
    """Both repeated to their least common number of tokens, as ComfyUI does when it batches prompts."""
    tokens = math.lcm(context.shape[1], made.shape[1])
    return context.repeat(1, tokens // context.shape[1], 1), made.repeat(1, tokens // made.shape[1], 1), (0, 0)
