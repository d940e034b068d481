"""One call of ComfyUI's attention function as an override receives it, in one layout, for any part of its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy import model_management
from comfy.ldm.modules import attention
from torch.nn.functional import pad

from .attention import heeds_masks

_POSITIONAL = ("q", "k", "v", "heads", "mask", "attn_precision", "skip_reshape", "skip_output_reshape")


@dataclass(frozen=True)
class AttentionCall:
    """q, k, v [rows, heads, tokens, channels] (k and v may have fewer heads) and what else the caller passed.

    `mask` [rows or 1, heads or 1, queries or 1, keys] or None. `unseen`: for every row, how many tokens before
    `text_stop` are padding, which no query may see; `pads`: the same where this call leaves them out, or nothing.
    `together`: `function` has to be given all rows at once. `masked`: `mask` holds what another node of ours has put
    there, and has to be heeded as a bias is. `flat`: `function` is given heads side by side, as the caller did: kernels
    round in the order in which numbers lie. `lead`: how many tokens stand before the call's own in q, as zeros, and in
    what `attend` returns; `function` does not see them.
    """

    function: Callable[..., torch.Tensor]
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor | None
    others: dict[str, Any]
    pads: tuple[int, ...] = ()
    text_stop: int = 0
    unseen: tuple[int, ...] = ()
    together: bool = False
    masked: bool = False
    flat: bool = False
    lead: int = 0

    @classmethod
    def of(
        cls,
        func: Callable[..., torch.Tensor],
        earlier: Callable[..., torch.Tensor] | None,
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> AttentionCall:
        """From the arguments of `optimized_attention_override`; `earlier` is the override that was there before."""
        named = {**dict(zip(_POSITIONAL, args, strict=False)), **kwargs}
        q, k, v, mask = (named.pop(name, None) for name in ("q", "k", "v", "mask"))
        flat = not named.pop("skip_reshape", False)
        if flat:
            channels = q.shape[-1] // named["heads"]
            q, k, v = (_heads_first(x, channels) for x in (q, k, v))

        def function(*args: Any, biased: bool, **kwargs: Any) -> torch.Tensor:
            # SageAttention leaves a mask out without a word
            core = attention.attention_pytorch if biased and model_management.sage_attention_enabled() else func
            if earlier is None or (biased and not heeds_masks(earlier, v)):
                return core(*args, **kwargs)
            return earlier(core, *args, **kwargs)

        return cls(function, q, k, v, _four_dimensional(mask), {**named, "skip_reshape": not flat}, flat=flat)

    def ending_at(self, text_stop: int) -> AttentionCall:
        """The call, whose text ends there."""
        return replace(self, text_stop=text_stop)

    def led_by(self, lead: int) -> AttentionCall:
        """The call, whose q is of its last tokens only, with so many more before them as stand among its keys."""
        return replace(self, q=pad(self.q, (0, 0, lead, 0)), lead=lead)

    def own(self, out: torch.Tensor) -> torch.Tensor:
        """Of what `attend` returns, the tokens that the call was asked for."""
        return out[..., self.lead :, :]

    def bias(self) -> torch.Tensor | None:
        """What the mask and padding add to logits, [rows or 1, heads or 1, queries or 1, keys]; None adds nothing."""
        if not any(self.unseen):
            return _with_bias(self.mask, None if self.mask is None else self.q.new_zeros(1))
        hidden = self.q.new_zeros(len(self.q), 1, 1, self.k.shape[-2])
        for row, count in enumerate(self.unseen):
            hidden[row, ..., self.text_stop - count : self.text_stop] = -torch.inf
        return _with_bias(self.mask, hidden)

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor | None,
        rows: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Attention of some `rows` of the call (None: all), in the layout that the caller of ComfyUI's function wants.

        k and v may have more tokens at their end than the call's own, which the call's mask lets everyone see. `bias`
        [1, keys] is added to every query's logits.
        """
        numbers = list(range(len(q))) if rows is None else list(rows)
        if self.together and rows is not None:
            return self._among_all(q, k, v, bias, numbers)
        if not any(self.pads) or (len({self.pads[row] for row in numbers}) == 1 and not self.pads[numbers[0]]):
            return self._run(q, k, v, bias, numbers)
        out: dict[int, torch.Tensor] = {}
        for count in sorted({self.pads[row] for row in numbers}):
            places = [place for place, row in enumerate(numbers) if self.pads[row] == count]
            some_q, some_k, some_v = (_taken(x, places) for x in (q, k, v))
            unseen = slice(max(self.text_stop - count, 0), self.text_stop)  # no text, nothing unseen
            part = self._run(some_q, some_k, some_v, bias, [numbers[place] for place in places], unseen)
            for place, row in zip(places, part, strict=True):
                out[place] = row
        return torch.stack([out[place] for place in range(len(numbers))])

    def _among_all(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, rows: list[int]
    ) -> torch.Tensor:
        """Attention of some rows, where the function is given the others as well: with tokens more that none sees."""
        more, queries = k.shape[-2] - self.k.shape[-2], 1 if bias is None else bias.shape[-2]
        q, k, v = (
            _with_rows(pad(own, (0, 0, 0, x.shape[-2] - own.shape[-2])), rows, x)
            for own, x in zip((self.q, self.k, self.v), (q, k, v), strict=True)
        )
        if more or bias is not None:
            mask = q.new_zeros(len(q), 1, queries, k.shape[-2])
            mask[..., k.shape[-2] - more :] = -torch.inf
            seen = mask.new_zeros(1, 1, queries, k.shape[-2]) if bias is None else bias
            bias = _with_rows(mask, rows, seen.to(mask).expand(len(rows), *mask.shape[1:]))
        return _taken(self._run(q, k, v, bias, list(range(len(q)))), rows)

    def _run(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor | None,
        rows: list[int],
        unseen: slice = slice(0, 0),
    ) -> torch.Tensor:
        biased = bias is not None or self.masked
        if bias is not None and bias.shape[-2] > 1:
            bias = self.own(bias)
        mask = _with_bias(_for_rows(self.mask, rows, k.shape[-2]), bias)
        if unseen.start < unseen.stop:
            k, v = _without(k, unseen, -2), _without(v, unseen, -2)
            mask = None if mask is None else _without(mask, unseen, -1)
        given = self.own(q), k, v
        if self.flat:
            given = tuple(x.transpose(1, 2).flatten(2) for x in given)
        out = self.function(*given, mask=mask, biased=biased, **self.others)
        return pad(out, (0, 0, self.lead, 0)) if self.lead else out


def _heads_first(x: torch.Tensor, channels: int) -> torch.Tensor:
    """[rows, tokens, heads * channels], or SD3's v with the heads apart, to [rows, heads, tokens, channels]."""
    return (x.unflatten(-1, (-1, channels)) if x.ndim == 3 else x).transpose(1, 2)


def _four_dimensional(mask: torch.Tensor | None) -> torch.Tensor | None:
    if mask is None or mask.ndim == 4:
        return mask
    return mask[None, None] if mask.ndim == 2 else mask[:, None]


def _for_rows(mask: torch.Tensor | None, rows: list[int], keys: int) -> torch.Tensor | None:
    """The mask of some rows, with columns for more keys at the end that are open to everyone."""
    if mask is None:
        return None
    mask = _taken(mask, rows) if mask.shape[0] > 1 else mask
    missing = keys - mask.shape[-1]
    if not missing:
        return mask
    open_to_all = mask.new_ones if mask.dtype == torch.bool else mask.new_zeros
    return torch.cat((mask, open_to_all(*mask.shape[:-1], missing)), -1)


def _with_bias(mask: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor | None:
    if mask is None or bias is None:
        return mask if bias is None else bias
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=bias.dtype).masked_fill(~mask, -torch.inf)
    return mask + bias


# Below, rows and keys are taken by slices: a list of numbers would be brought to the GPU, and what a comparison chooses
# be counted there, and every layer would wait for that.


def _taken(x: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """x[rows]; no copy of rows that stand evenly apart, as those of one picture in every chunk do."""
    step = rows[1] - rows[0] if len(rows) > 1 else 1
    even = slice(rows[0], rows[-1] + 1, step) if rows and step > 0 else slice(0)
    if list(rows) == list(range(len(x))[even]):
        return x if len(rows) == len(x) else x[even]
    return torch.stack([x[row] for row in rows])


def _with_rows(x: torch.Tensor, rows: Sequence[int], own: torch.Tensor) -> torch.Tensor:
    """x with others in the place of some rows."""
    found = dict(zip(rows, own, strict=True))
    return torch.stack([found.get(row, each) for row, each in enumerate(x)])


def _without(x: torch.Tensor, unseen: slice, axis: int) -> torch.Tensor:
    """x without a stretch of an axis."""
    before = x.narrow(axis, 0, unseen.start)
    return torch.cat((before, x.narrow(axis, unseen.stop, x.shape[axis] - unseen.stop)), axis)
