"""Style injection in transformers: the operator of `style`, on the picture's tokens only, before their rotation.

q, k and v are [rows, heads, tokens, channels] as attention receives them: normed and, in rotary models, turned to their
positions. AdaIN works on what they were before (a scale per channel would break the rotation's pairs). Text is left as
it is, and the reference brings its picture's keys and values only. Every query of a styled row sees them, as in the
SD3.5 code of Conditional Balance (arXiv 2412.19853) and in AlignedGen (arXiv 2509.17088).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from .style import Damping, LayerStyle, Rows, adain, share_bias


class RowsAttend(Protocol):
    """Attention of some rows of a call; k and v may have more tokens at their end. `bias` is None or [1, keys]."""

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor | None,
        rows: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """The output for q, rows first."""
        ...


class Turn(Protocol):
    """A rotation of tokens [..., tokens, channels] to their positions."""

    def undo(self, x: torch.Tensor) -> torch.Tensor:
        """x as it was before."""
        ...

    def redo(self, x: torch.Tensor) -> torch.Tensor:
        """x turned to its positions."""
        ...


class Unturned:
    """Of models without rotary positions."""

    def undo(self, x: torch.Tensor) -> torch.Tensor:
        return x

    redo = undo


Cure = Callable[[torch.Tensor], torch.Tensor]
"""What is done to the reference's keys, already rotated, so that they do not stand where the picture's own do."""


def inject_joint(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    style: LayerStyle,
    rows: Rows,
    attend: RowsAttend,
    image: slice,
    turn: Turn,
    cure: Cure,
    damping: Damping = None,
) -> torch.Tensor:
    """The layer's attention output, styled rows attending to the reference's picture as well.

    Unstyled rows run by themselves and keep every bit. `image` are the picture's tokens, `turn` their rotation.
    """
    q, k, v = (x.unflatten(0, (rows.chunks, -1)) for x in (q, k, v))
    own = [
        _adained(x, weight, rows, image, each)
        for x, weight, each in zip((q, k, v), style[:3], (turn, turn, Unturned()), strict=True)
    ]
    if style.share == 0:
        q, k, v = (_put_back(x, styled, rows) for x, styled in zip((q, k, v), own, strict=True))
        return attend(q, k, v, None)
    row_numbers = torch.arange(q.shape[0] * q.shape[1]).view(q.shape[:2])
    plain_rows, styled_rows = without(row_numbers, rows), row_numbers[:, rows.start : rows.stop]
    plain_q, plain_k, plain_v = (without(x, rows).flatten(0, 1) for x in (q, k, v))
    plain = attend(plain_q, plain_k, plain_v, None, plain_rows.flatten().tolist())
    brought = cure(_reference(k, rows, image)), _reference(v, rows, image)
    shared_k, shared_v = (
        torch.cat((x, more.expand(-1, x.shape[1], -1, -1, -1)), -2).flatten(0, 1)
        for x, more in zip(own[1:], brought, strict=True)
    )
    bias = share_bias(shared_k, brought[0].shape[-2], style.share, damping)
    out = attend(own[0].flatten(0, 1), shared_k, shared_v, bias, styled_rows.flatten().tolist())
    return joined(plain, out, rows)


def _adained(x: torch.Tensor, weight: float, rows: Rows, image: slice, turn: Turn) -> torch.Tensor:
    """The styled rows [chunks, rows, heads, tokens, channels] with the moments of their picture moved."""
    own = x[:, rows.start : rows.stop]
    if weight == 0:
        return own
    picture, reference = turn.undo(own[..., image, :]), turn.undo(_reference(x, rows, image))
    moved = turn.redo(adain(picture, reference, weight))
    return torch.cat((own[..., : image.start, :], moved, own[..., image.stop :, :]), -2)


def _reference(x: torch.Tensor, rows: Rows, image: slice) -> torch.Tensor:
    return x[:, rows.reference : rows.reference + 1, :, image]


def without(x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """The rows of every chunk [chunks, rows, ...] that are not styled."""
    return torch.cat((x[:, : rows.start], x[:, rows.stop :]), 1)


def _put_back(x: torch.Tensor, own: torch.Tensor, rows: Rows) -> torch.Tensor:
    return torch.cat((x[:, : rows.start], own, x[:, rows.stop :]), 1).flatten(0, 1)


def joined(plain: torch.Tensor, styled: torch.Tensor, rows: Rows) -> torch.Tensor:
    """All rows of a call, from those of all chunks that are not styled and those that are."""
    plain, styled = (x.unflatten(0, (rows.chunks, -1)) for x in (plain, styled))
    return torch.cat((plain[:, : rows.start], styled, plain[:, rows.start :]), 1).flatten(0, 1)
