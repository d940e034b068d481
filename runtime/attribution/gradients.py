"""Gradients through a network under ComfyUI's inference mode, without touching the model or loading it again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from comfy import model_management
from comfy.ldm.modules.attention import attention_pytorch
from torch.nn.functional import layer_norm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

Slopes = tuple[torch.Tensor, ...]


class NoGradient(RuntimeError):
    """The backward pass did not reach the chosen layers."""


@contextmanager
def gradients() -> Iterator[None]:
    """Autograd works inside, also over weights and inputs made in inference mode; afterwards all is as before."""
    with torch.inference_mode(False), torch.enable_grad(), _OverInferenceTensors(), _in_training():
        yield


@contextmanager
def _in_training() -> Iterator[None]:
    """Newer ComfyUI takes kernels that have a backward pass while its flag for training is set."""
    flags = model_management.__dict__
    if "in_training" not in flags:
        yield
        return
    before, flags["in_training"] = flags["in_training"], True
    try:
        yield
    finally:
        flags["in_training"] = before


class _OverInferenceTensors(TorchFunctionMode):
    """Hands every function plain tensors over the same memory, cut off from weights' own graphs.

    Autograd refuses to save inference tensors. And `h += control` becomes an addition out of place: the next block has
    saved h for its backward pass. So has a norm, where a part of h is added to (Qwen-Image 2.1): it gets a copy.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given, named = tree_map(_plain, args), tree_map(_plain, kwargs or {})
        if torch.is_grad_enabled():
            if function in (torch.Tensor.__iadd__, torch.Tensor.add_):
                function = torch.add
            elif function is layer_norm:
                given = given[0].clone(), *given[1:]
        return function(*given, **named)


def _plain(value: Any) -> Any:
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return value  # quantised weights and the like know best themselves
    if value.is_inference():
        memory = torch.empty(0, dtype=value.dtype, device=value.device)
        return memory.set_(value.untyped_storage(), value.storage_offset(), value.size(), value.stride())
    return value.detach() if isinstance(value, torch.nn.Parameter) else value


def with_sdpa(options: dict[str, Any]) -> dict[str, Any]:
    """A copy of `transformer_options` under which every attention runs in PyTorch's own kernel, which has a backward.

    SageAttention and int8 kernels lose the gradient without a word; sub-quadratic attention writes in place.
    """

    def override(function: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        return attention_pytorch(*args, **kwargs)

    return {**options, "optimized_attention_override": override}


def backward(output: torch.Tensor, probes: Iterable[torch.Tensor], through: Sequence[torch.Tensor]) -> Iterator[Slopes]:
    """d(probe . output) for every probe [*output.shape], one after the other: a tensor for each tensor of `through`.

    Raises NoGradient where none arrives, and stops between passes when the user cancels.
    """
    if not output.requires_grad:
        raise NoGradient("the prediction carries no gradient")
    for probe in probes:
        model_management.throw_exception_if_processing_interrupted()
        found = torch.autograd.grad(output, through, probe, retain_graph=True, allow_unused=True)
        if any(part is None for part in found):
            raise NoGradient("no gradient arrives at a chosen layer")
        yield found
