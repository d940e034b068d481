"""What a reference brings to a layer, apart from its row: all that the operator of `style` needs to know of it.

It does not depend on the pictures that take the style, so it can be kept from one of them to the next.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .joint_style import RowsAttend, Unturned, of_picture
from .moments import Moments, moments_of
from .several import Places
from .style import Damping, LayerStyle, moved, share_bias


class Brought(NamedTuple):
    """Of a reference in every chunk: moments of its picture's q and k [chunks, 1, ..., 1, channels], as they were
    before any rotation, and its keys and values [chunks, 1, ..., tokens, channels] as attention takes them.
    """

    q: Moments
    k: Moments
    keys: torch.Tensor
    values: torch.Tensor

    @classmethod
    def of(cls, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, places: Places) -> Brought:
        """From what a layer projects of the reference alone: q, k and v [chunks, ..., tokens, channels]."""
        q, k, v = (x.unsqueeze(1)[..., places.image, :] for x in (q, k, v))
        of_q, of_k = (moments_of(places.turn.undo(x), keepdim=True) for x in (q, k))
        return cls(of_q, of_k, k.contiguous(), v.contiguous())

    @property
    def bytes(self) -> int:
        return sum(x.nbytes for x in (*self.q, *self.k, self.keys, self.values))

    def to(self, device: torch.device) -> Brought:
        q, k = (Moments(*(x.to(device) for x in moments)) for moments in (self.q, self.k))
        return Brought(q, k, self.keys.to(device), self.values.to(device))


def inject_brought(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    style: LayerStyle,
    brought: Brought,
    attend: RowsAttend,
    places: Places,
    damping: Damping = None,
) -> torch.Tensor:
    """The layer's attention output, where all rows [chunks * pictures, ..., tokens, channels] take the style."""
    chunks = len(brought.keys)
    q, k, v = (x.unflatten(0, (chunks, -1)) for x in (q, k, v))
    own_q, own_k, own_v = _moved(q, brought.q, style.q, places), _moved(k, brought.k, style.k, places), v
    if style.v:
        own_v = _moved(v, moments_of(brought.values, keepdim=True), style.v, places._replace(turn=Unturned()))
    if style.share == 0:
        return attend(own_q.flatten(0, 1), own_k.flatten(0, 1), own_v.flatten(0, 1), None)
    shared_k, shared_v = (
        torch.cat((x, more.expand(-1, x.shape[1], *more.shape[2:])), -2).flatten(0, 1)
        for x, more in ((own_k, places.cure(brought.keys)), (own_v, brought.values))
    )
    bias = share_bias(shared_k, brought.keys.shape[-2], style.share, damping)
    return attend(own_q.flatten(0, 1), shared_k, shared_v, bias)


def _moved(x: torch.Tensor, to: Moments, weight: float, places: Places) -> torch.Tensor:
    """x [chunks, pictures, ..., tokens, channels] with the moments of its picture moved; text stays as it is."""
    if weight == 0:
        return x
    return of_picture(x, places.image, lambda picture: places.turn.redo(moved(places.turn.undo(picture), to, weight)))
