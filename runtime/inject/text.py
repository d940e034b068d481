"""Two prompts of different length in one model call."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad

from ..arch.base import Architecture

OTHER_PROMPT = (
    "'prompt' of the style reference was encoded for another model: encode it with the CLIP that came with this one."
)
MASK = "attention_mask"
"""ComfyUI's name for what hides tokens of a text, or weighs them as Apply Style Model's *attn_bias* does."""
Text = Any
Fitted = tuple[Text, Text, tuple[int, int]]


class Masked(NamedTuple):
    """So many tokens of a text, and their mask, if any: [rows, tokens], or that of a joint attention, [rows, all, all].

    There the picture's tokens stand behind the text's, and numbers are added to logits.
    """

    tokens: int
    mask: Any


@dataclass(frozen=True)
class TextFitting:
    """How the run's text [rows, tokens, width] and the reference's [1, tokens, width] come to one length.

    In cross-attention a text that is repeated whole changes nothing, and so ComfyUI batches prompts. In joint attention
    it would weigh more beside the picture: there the shorter one is padded, and every layer leaves the padding out.
    Where the text is worked on before it meets the picture, padding cannot be left out: the reference's is cut or
    lengthened, of which `said` tells.
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

    def fit_masks(self, given: Masked, made: Masked, tokens: int, rows: int) -> tuple[Any, Any]:
        """The masks of the run's `rows` and of the reference's now that both texts have so many `tokens`.

        Where only one of them has a mask, the other gets one that hides nothing: neither's is meant for the other.
        """
        one = next((each for each in (given, made) if isinstance(each.mask, torch.Tensor)), None)
        if one is None:
            return None, None
        ours, theirs = (
            _lengthened(each if isinstance(each.mask, torch.Tensor) else _open(one), tokens) for each in (given, made)
        )
        return ours.expand(rows, *ours.shape[1:]), theirs

    def _cut(self, made: torch.Tensor, tokens: int) -> torch.Tensor:
        """The reference's text with so many tokens: its last ones are left out, or its last one is repeated."""
        more = tokens - made.shape[1]
        if more and not self.said:
            done = "lengthened" if more > 0 else "cut"
            self.said.append(
                f"The reference's prompt was {done} from {made.shape[1]} to {tokens} tokens, those of the run's "
                "prompt, as this family of models cannot hold two lengths at once. Write prompts of similar length, or "
                "leave 'prompt' of the reference empty."
            )
        return torch.cat((made[:, :tokens], made[:, -1:].expand(-1, max(more, 0), -1)), 1)


def _repeated(context: torch.Tensor, made: torch.Tensor) -> Fitted:
    """Both repeated to their least common number of tokens, as ComfyUI does when it batches prompts."""
    tokens = math.lcm(context.shape[1], made.shape[1])
    return context.repeat(1, tokens // context.shape[1], 1), made.repeat(1, tokens // made.shape[1], 1), (0, 0)


def _open(like: Masked) -> Masked:
    """A mask of one row that hides nothing, of the kind and size of another text's."""
    shown = like.mask.ndim == 2 or like.mask.dtype == torch.bool
    return like._replace(mask=torch.full_like(like.mask[:1], shown))


def _lengthened(text: Masked, tokens: int) -> torch.Tensor:
    """A text's mask with so many of its tokens: what is more than it had is as the last one, and hidden elsewhere."""
    mask = text.mask
    for axis in (axis for axis in range(1, mask.ndim) if mask.shape[axis] >= text.tokens):
        own, behind = mask.split((text.tokens, mask.shape[axis] - text.tokens), axis)
        more = own.narrow(axis, text.tokens - 1, 1).expand(_shape(own, axis, max(tokens - text.tokens, 0)))
        mask = torch.cat((own.narrow(axis, 0, min(text.tokens, tokens)), more, behind), axis)
    return mask


def _shape(x: torch.Tensor, axis: int, size: int) -> list[int]:
    return [size if number == axis else own for number, own in enumerate(x.shape)]
