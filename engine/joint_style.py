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

from .style import Damping, LayerStyle, Rows, adained, share_bias


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
    q, k, v = (rows.chunked(x) for x in (q, k, v))
    own = [
        _adained(x, weight, rows, image, each)
        for x, weight, each in zip((q, k, v), style[:3], (turn, turn, Unturned()), strict=True)
    ]
    if style.share == 0:
        q, k, v = (rows.put_back(x, styled).flatten(0, 1) for x, styled in zip((q, k, v), own, strict=True))
        return attend(q, k, v, None)
    unstyled, styled = rows.numbers(q.shape[0] * q.shape[1])
    plain_q, plain_k, plain_v = (rows.unstyled(x).flatten(0, 1) for x in (q, k, v))
    plain = attend(plain_q, plain_k, plain_v, None, unstyled)
    brought = cure(rows.of_reference(k)[..., image, :]), rows.of_reference(v)[..., image, :]
    shared_k, shared_v = (
        torch.cat((x, more.expand(-1, x.shape[1], -1, -1, -1)), -2).flatten(0, 1)
        for x, more in zip(own[1:], brought, strict=True)
    )
    bias = share_bias(shared_k, brought[0].shape[-2], style.share, damping)
    out = attend(own[0].flatten(0, 1), shared_k, shared_v, bias, styled)
    return rows.joined(plain, out)


def _adained(x: torch.Tensor, weight: float, rows: Rows, image: slice, turn: Turn) -> torch.Tensor:
    """The styled rows [chunks, rows, heads, tokens, channels] with the moments of their picture moved."""
    own = rows.styled(x)
    if weight == 0:
        return own
    pictures = adained(turn.undo(x[..., image, :]), rows, weight)
    return of_picture(own, image, lambda picture: turn.redo(pictures))


def of_picture(x: torch.Tensor, image: slice, changed: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """x [..., tokens, channels] with its picture's tokens `changed`; text stays as it is."""
    start, stop, _ = image.indices(x.shape[-2])
    picture = changed(x[..., start:stop, :])
    return picture if picture.shape == x.shape else torch.cat((x[..., :start, :], picture, x[..., stop:, :]), -2)
