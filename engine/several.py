"""Style of several references at once, each at its own strength and place: `style`'s operator, blended.

A reference's `weights` [chunks or 1, tokens or 1] say how strongly it acts on each of the picture's tokens. Those that
act on one token share it: two of strength 1 count half each, so that the same reference twice is the reference once.
Below 0 a reference pushes away: moments move off its own, and attention is led away from what it would be with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from .joint_style import Cure, RowsAttend, Turn, Unturned, of_picture
from .moments import VARIANCE_FLOOR, Moments, moments_of
from .style import Damping, LayerStyle, Rows

FEWEST = 1e-6


class Shares(NamedTuple):
    """Of a reference that acts in a part of the picture: the tokens' `shares` [chunks or 1, tokens] of it, 1 together.

    `unbiased` [chunks or 1, 1] divides their mean square difference, as n - 1 does among n tokens alike.
    """

    shares: torch.Tensor
    unbiased: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor) -> Shares:
        """From weights [chunks or 1, tokens]."""
        shares = weight.abs() / weight.abs().sum(-1, keepdim=True).clamp(min=FEWEST)
        return cls(shares, (1 - shares.square().sum(-1, keepdim=True)).clamp(min=FEWEST))


class Leads(NamedTuple):
    """The references of one call of a layer, in order: their `rows` in every chunk, and how they act together.

    `weights` [R, chunks or 1, tokens or 1] are apportioned, those of a reference all of one sign; `parts` are where
    each acts unless everywhere alike. `toward` and `away` number those that are above and below 0 anywhere; `whole`
    says that all are 1 everywhere, `within` that none is below 0 or above 1. All of it is known before a layer runs,
    which need not wait.
    """

    rows: tuple[int, ...]
    weights: torch.Tensor
    toward: tuple[int, ...]
    away: tuple[int, ...]
    whole: bool
    within: bool
    parts: tuple[Shares | None, ...]

    @classmethod
    def of(cls, rows: Sequence[int], strengths: torch.Tensor) -> Leads:
        """From strengths [R, chunks or 1, tokens or 1] on the CPU."""
        weights = apportioned(strengths)
        toward, away = (
            tuple(number for number, each in enumerate(weights) if bool((sign * each > 0).any())) for sign in (1, -1)
        )
        whole, within = bool((weights == 1).all()), bool(((weights >= 0) & (weights <= 1)).all())
        parts = (None if weights.shape[-1] == 1 else Shares.of(each) for each in weights)
        return cls(tuple(rows), weights, toward, away, whole, within, tuple(parts))

    def on(self, bring: Callable[[torch.Tensor], torch.Tensor]) -> Leads:
        """The same with its tensors brought to a device."""
        parts = (None if each is None else Shares(*map(bring, each)) for each in self.parts)
        return self._replace(weights=bring(self.weights), parts=tuple(parts))


def apportioned(strengths: torch.Tensor) -> torch.Tensor:
    """Strengths [R, ...] of references that act on one token, as they act together.

    Positive ones share what the strongest of them asks for, or 1 where they ask for that much together. Negative ones
    stay as they are.
    """
    toward = strengths.clamp(min=0)
    total = toward.sum(0)
    most = torch.minimum(total, toward.amax(0).clamp(min=1))
    return toward * (most / total.clamp(min=torch.finfo(total.dtype).tiny)) + strengths.clamp(max=0)


class Places(NamedTuple):
    """Where a layer's call has the picture's tokens, how they are turned, and what is done to references' keys."""

    image: slice = slice(None)
    turn: Turn = Unturned()
    cure: Cure = lambda keys: keys


def inject_several(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    style: LayerStyle,
    rows: Rows,
    leads: Leads,
    attend: RowsAttend,
    places: Places,
    dampings: Sequence[Damping] = (),
) -> torch.Tensor:
    """The layer's attention output, styled rows led by several references; other rows keep every bit.

    q, k and v are [rows, (heads,) tokens, channels]. `rows.reference` is not read: leads have rows of their own.
    `dampings` are those of the references, in their order, or none.
    """
    chunked = [rows.chunked(x) for x in (q, k, v)]
    own = _adained(chunked, style, rows, leads, places)
    if style.share == 0:
        q, k, v = (rows.put_back(x, styled).flatten(0, 1) for x, styled in zip(chunked, own, strict=True))
        return attend(q, k, v, None)
    unstyled, styled_rows = rows.numbers(q.shape[0])
    plain_q, plain_k, plain_v = (rows.unstyled(x).flatten(0, 1) for x in chunked)
    plain = attend(plain_q, plain_k, plain_v, None, unstyled)
    weights = _over_all_tokens(leads.weights * style.share, q.shape[-2], places.image)
    brought = [_brought(chunked[1:], row, places) for row in leads.rows]

    def shared(chosen: Sequence[int], bias: torch.Tensor | None) -> torch.Tensor:
        more = [[brought[each][part] for each in chosen] for part in (0, 1)]
        k, v = (
            torch.cat((x, *(each.expand(-1, x.shape[1], *each.shape[2:]) for each in those)), -2)
            for x, those in zip(own[1:], more, strict=True)
        )
        return attend(own[0].flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), bias, styled_rows)

    bias = None
    if leads.toward and (dampings or not (leads.whole and style.share == 1)):
        damped = [dampings[number] for number in leads.toward] if dampings else []
        toward = torch.stack([weights[number] for number in leads.toward])
        bias = _bias(toward, rows, own[1], brought[0][0].shape[-2], damped)
    return rows.joined(plain, _led(shared, bias, weights, rows, leads))


def inject_several_through(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    style: LayerStyle,
    rows: Rows,
    leads: Leads,
    attend: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """`inject_several` for an attention that knows neither bias nor a part of the rows: outputs are mixed instead.

    q, k and v are [rows, tokens, channels]. A share above 1 counts as 1.
    """
    chunked = [rows.chunked(x) for x in (q, k, v)]
    own = _adained(chunked, style, rows, leads, Places())
    q, k, v = (rows.put_back(x, styled) for x, styled in zip(chunked, own, strict=True))
    alone = rows.chunked(attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), None))
    if style.share == 0:
        return alone.flatten(0, 1)
    out = alone
    for row, weight in zip(leads.rows, (leads.weights * style.share).clamp(max=1), strict=True):
        more = (x[:, row : row + 1].expand(-1, rows.stop - rows.start, -1, -1) for x in (k, v))
        shared_k, shared_v = (torch.cat((x, rows.put_back(x, each)), 2) for x, each in zip((k, v), more, strict=True))
        led = rows.chunked(attend(q.flatten(0, 1), shared_k.flatten(0, 1), shared_v.flatten(0, 1), None))
        out = out + weight[:, None, :, None].to(out) * (led - alone)
    return rows.put_back(alone, rows.styled(out)).flatten(0, 1)


def _adained(
    chunked: Sequence[torch.Tensor], style: LayerStyle, rows: Rows, leads: Leads, places: Places
) -> list[torch.Tensor]:
    """The styled rows of q, k and v, the picture's tokens of each moved by all references."""
    turns = places.turn, places.turn, Unturned()
    return [
        _moved(x, weight, rows, leads, places.image, turn)
        for x, weight, turn in zip(chunked, style[:3], turns, strict=True)
    ]


def _moved(x: torch.Tensor, weight: float, rows: Rows, leads: Leads, image: slice, turn: Turn) -> torch.Tensor:
    """The styled rows [chunks, rows, ..., tokens, channels] with the moments of their picture moved."""
    own = rows.styled(x)
    if weight == 0:
        return own
    references = [turn.undo(x[:, row : row + 1][..., image, :]) for row in leads.rows]

    def changed(picture: torch.Tensor) -> torch.Tensor:
        return turn.redo(adain_several(turn.undo(picture), references, leads, weight))

    return of_picture(own, image, changed)


def adain_several(
    x: torch.Tensor, references: Sequence[torch.Tensor], leads: Leads, weight: float = 1.0
) -> torch.Tensor:
    """x [chunks, rows, ..., tokens, channels] with its moments moved by every reference, as much as `leads` say.

    A reference that acts on a part of the picture moves the moments of that part. Computed in fp32 or better, with no
    more than two tensors of the size of x beside it while none pushes away or acts more than whole.
    """
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    within, whole = leads.within and 0 <= weight <= 1, functools.cache(lambda: moments_of(precise, keepdim=True))
    scale, shift = precise.new_ones(()), precise.new_zeros(())
    for reference, part, strength in zip(references, leads.parts, weight * leads.weights.to(precise), strict=True):
        (mean, deviation), (mean_to, deviation_to) = (
            whole() if part is None else _moments_in(precise, part),
            moments_of(reference, keepdim=True),
        )
        each, ratio = _along(strength, x), deviation_to / deviation
        if within:
            scale, shift = torch.addcmul(scale, each, ratio - 1), torch.addcmul(shift, each, mean_to - ratio * mean)
        else:
            change = torch.where((each >= 0) & (each <= 1), each * (ratio - 1), ratio**each - 1)
            scale, shift = scale + change, shift + each * (mean_to - mean) - change * mean
    return torch.addcmul(shift, precise, scale.clamp(min=0)).to(x)


def _along(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Weights [chunks or 1, tokens or 1] of the tokens of x [chunks, rows, ..., tokens, channels]."""
    return weight.view(weight.shape[0], *[1] * (x.ndim - 3), -1, 1)


def _moments_in(x: torch.Tensor, part: Shares) -> Moments:
    """Mean and deviation [..., 1, channels] of the tokens on which a reference acts, as much as it does."""
    shares, unbiased = (_along(each.to(x), x) for each in part)
    mean = shares.mT @ x
    variance = shares.mT @ (x - mean).square_() / unbiased
    return Moments(mean, (variance + VARIANCE_FLOOR).sqrt())


def _over_all_tokens(weights: torch.Tensor, tokens: int, image: slice) -> torch.Tensor:
    """Weights [R, chunks, queries or 1] of all queries of a layer: text counts what the picture does on average."""
    start, stop, _ = image.indices(tokens)
    if weights.shape[-1] == 1 or (start, stop) == (0, tokens):
        return weights
    mean = weights.mean(-1, keepdim=True)
    before, after = (mean.expand(-1, -1, count) for count in (start, tokens - stop))
    return torch.cat((before, weights, after), -1)


def _led(
    shared: Callable[[Sequence[int], torch.Tensor | None], torch.Tensor],
    bias: torch.Tensor | None,
    weights: torch.Tensor,
    rows: Rows,
    leads: Leads,
) -> torch.Tensor:
    """Attention with what references of positive weight bring in one softmax, led away from that of negative ones."""
    out = shared(leads.toward, bias)
    if not leads.away:
        return out
    alone = shared((), None) if leads.toward else out
    for number in leads.away:
        push = _of_rows(weights[number], rows)
        push = push.view(push.shape[0], *[1] * (out.ndim - 3), -1, 1).to(out)
        out = out + push * (shared((number,), None) - alone)
    return out


def _bias(
    weights: torch.Tensor, rows: Rows, keys: torch.Tensor, brought: int, dampings: Sequence[Damping]
) -> torch.Tensor:
    """ln(weight) on every reference's keys: [queries or 1, keys], with rows and heads before it where chunks differ."""
    own, last = keys.shape[-2], keys.shape[-2] + len(weights) * brought
    bias = keys.new_zeros(*weights.shape[1:], last)  # may be the largest tensor of the layer, so it is made once
    columns, logarithms = bias[..., own:].split(brought, -1), weights.log()[..., None]
    for column, weight, damping in zip(columns, logarithms, dampings or [None] * len(weights), strict=True):
        column.copy_(weight if damping is None else weight + damping)
    return bias[0] if len(bias) == 1 else _of_rows(bias, rows)[:, None]


def _of_rows(x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """What is of chunks [chunks, ...], for the styled rows of each; what is of all stays one."""
    return x if len(x) == 1 else x.repeat_interleave(rows.stop - rows.start, 0)


def _brought(chunked: Sequence[torch.Tensor], row: int, places: Places) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a reference's picture [chunks, 1, ...]."""
    k, v = (x[:, row : row + 1][..., places.image, :] for x in chunked)
    return places.cure(k), v
