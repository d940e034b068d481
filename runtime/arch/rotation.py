"""Rotary position embedding as ComfyUI's transformers apply it: undone, redone, moved.

A rotation is a tensor of 2 x 2 matrices [1, 1, tokens, channels / 2, 2, 2] for x [rows, heads, tokens, channels]. A
transformer turns either neighbouring channels (2i, 2i + 1) or, in Cosmos, channels of both halves (i, i + channels/2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rotation:
    """The rotation of one attention call; positions are those of the first row, which all rows of a call share."""

    matrices: torch.Tensor
    halves: bool = False

    def at(self, tokens: slice) -> Rotation:
        """The same for a part of the tokens."""
        return Rotation(self.matrices[:1, :, tokens], self.halves)

    def redo(self, x: torch.Tensor) -> torch.Tensor:
        """x turned to its positions; computed in fp32."""
        return self._turned(x, self.matrices)

    def undo(self, x: torch.Tensor) -> torch.Tensor:
        """x as it was before the model turned it (0.08 % off in bf16, which is the rounding of the turned values)."""
        return self._turned(x, self.matrices.mT)

    def then(self, other: Rotation) -> Rotation:
        """This rotation after which x is turned by `other` as well, such as the same shift for every token."""
        return Rotation(other.matrices.to(self.matrices) @ self.matrices, self.halves)

    def _turned(self, x: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        pairs = x.float().unflatten(-1, (2, -1)).mT if self.halves else x.float().unflatten(-1, (-1, 2))
        first, second = matrices.float().unbind(-1)
        turned = (first * pairs[..., :1]).add_(second * pairs[..., 1:])  # a sum over the products would need them all
        return (turned.mT if self.halves else turned).flatten(-2).to(x.dtype)


def untwisting(axes: list[int], high: float, low: float, beta: float) -> torch.Tensor:
    """Scales [channels / 2] for a reference's keys, `high` at each axis' highest frequency to `low` at its lowest.

    s = high + (low - high) d^beta with d from 0 to 1 along the pairs of an axis (Untwisting RoPE, arXiv 2602.05013).
    Low frequencies hardly know positions: raised, they let style through without a copy of the layout.
    """
    places = [torch.linspace(0, 1, axis // 2) if axis > 2 else torch.ones(axis // 2) for axis in axes]
    return high + (low - high) * torch.cat(places) ** beta
