"""Finds out whether an attention that another pack has put into a layer can be given more keys than queries."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..runs.memory import ran_out

SOFTMAX = (torch.softmax, torch.Tensor.softmax, torch.nn.functional.softmax)


class TakesNoMoreKeys(Exception):
    """An attention that fails on more keys than queries, returns something else, or keeps the weights it computed."""


def with_more_keys(
    attend: Callable[..., torch.Tensor], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """`attend(q, k, v, None)`, where k and v hold more tokens than the layer's own.

    Raises TakesNoMoreKeys for an attention that does not look at keys (PerturbedAttentionGuidance returns v), does not
    allow for so many, or hands its weights on to somebody who counts them (SelfAttentionGuidance).
    """
    with _WeightsWatched(k.shape[1]) as watched:
        try:
            out = attend(q, k, v, None)
        except (RuntimeError, ValueError, IndexError, AssertionError) as problem:
            if ran_out(problem):
                raise
            raise TakesNoMoreKeys from problem
    if out.shape[:2] != q.shape[:2] or watched.kept():
        raise TakesNoMoreKeys
    return out


class _WeightsWatched(TorchFunctionMode):
    """Follows what is made of a softmax over so many keys, to see afterwards what somebody still holds of it."""

    def __init__(self, keys: int) -> None:
        super().__init__()
        self.keys = keys
        self.found: list[weakref.ref[torch.Tensor]] = []

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.shape[-1:] == (self.keys,):
            if function in SOFTMAX or any(ref() is arg for ref in self.found for arg in args):
                self.found.append(weakref.ref(out))
        return out

    def kept(self) -> bool:
        return any(ref() is not None for ref in self.found)
