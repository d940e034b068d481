"""Networks that round what goes into their layers, as quantised checkpoints do on cards that multiply eight bits.

Rounding swallows the small step of a finite difference and cuts the graph of a gradient. Both are taken in passes in
which layers multiply what they are given as it is: their weights stay quantised, and are put back into numbers one
layer at a time, as on cards that cannot multiply them. Attention that rounds queries and keys gives way to PyTorch's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.ops
import torch
from comfy.ldm.modules import attention
from comfy.patcher_extension import WrappersMP
from torch import nn

from ..arch.attention import OVERRIDE, chosen_attention
from ..arch.base import removed_afterwards
from ..arch.transformer import uncompiled_calls
from ..runs.model_call import with_wrapper
from .gradients import with_sdpa
from .prediction import Prediction

ROUNDING = frozenset(("attention_sage", "attention3_sage", "attention_comfy_kitchen_int8"))
"""ComfyUI's functions of attention that work in eight or four bits."""


def exact(prediction: Prediction) -> Prediction:
    """The prediction without rounded inputs; itself where the network rounds none."""
    modules, options = list(prediction.architecture.network.modules()), prediction.options
    if any(map(_rounds, modules)):
        options = unrounded(options)
    rounding = attention.optimized_attention.__name__ in ROUNDING or any(map(chosen_attention, modules))
    if rounding and options.get(OVERRIDE) is None:
        options = with_sdpa(options)
    return prediction if options is prediction.options else dataclasses.replace(prediction, options=options, known=None)


def unrounded(options: dict[str, Any]) -> dict[str, Any]:
    """`transformer_options` under which no layer rounds its input; where none does, all is as before."""

    def around_call(executor: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        with _unrounded(executor.class_obj.diffusion_model):
            return executor(*args, **kwargs)

    return with_wrapper({"transformer_options": options}, WrappersMP.APPLY_MODEL, around_call)["transformer_options"]


@contextmanager
def _unrounded(network: nn.Module) -> Iterator[None]:
    layers = list(filter(_rounds, network.modules()))
    with removed_afterwards([]) as handles, ExitStack() as restored, uncompiled_calls():
        for layer in layers:
            handles.append(layer.register_forward_pre_hook(_lifted))
            handles.append(layer.register_forward_hook(_lowered))
            restored.enter_context(_with_function(layer))
        yield


def _rounds(module: Any) -> bool:
    """Whether a layer may round its input: one of mixed precisions, of `fp8_e4m3fn_fast`, or with scales of inputs."""
    if getattr(module, "layout_type", None) is not None:
        return True
    fast = isinstance(module, comfy.ops.fp8_ops.Linear) or getattr(module, "scale_input", None) is not None
    return fast and module.weight.dtype == torch.float8_e4m3fn


@contextmanager
def _with_function(layer: Any) -> Iterator[None]:
    """ComfyUI puts a weight back into numbers where a function waits for it, as a LoRA's does in little memory."""
    before = vars(layer).get("weight_function")
    layer.weight_function = [*layer.weight_function, _as_it_is]
    try:
        yield
    finally:
        if before is None:
            del layer.weight_function
        else:
            layer.weight_function = before


def _as_it_is(weight: torch.Tensor) -> torch.Tensor:
    return weight


def _lifted(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """ComfyUI 0.3.75's fp8 layers round matrices and rows of them only; what has more dimensions is left as it is."""
    x, *rest = args
    return x[None, None], *rest


def _lowered(layer: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    return output[0, 0]
