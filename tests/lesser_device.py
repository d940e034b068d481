"""A device that no machine here has: its tensors lie in main memory, and act as those on an Apple GPU do.

It refuses what such a device lacks (float64, pooling over cells of unequal size, operations of tensors of two devices)
and notes what makes the processor wait for it. ComfyUI is told to compute there and is not changed otherwise. PyTorch
takes the tensors for those of its own `meta` device, which has none; `DEVICE` is what everybody is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE, META, CPU = (torch.device(name) for name in ("mps", "meta", "cpu"))
COPIES = ("aten::copy_", "aten::_to_copy")
INDEXING = ("aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index.Tensor")
POOLING = ("aten::_adaptive_avg_pool2d", "aten::adaptive_max_pool2d")
MADE_OF_OTHERS = "CompositeImplicitAutograd"
WAITING = ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select")

waits: list[str] = []
"""What the processor has waited for, in order: operations that bring a value over, or back."""


class OnDevice(torch.Tensor):
    """A tensor on the device; `kept` is where its values are."""

    kept: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, kept: torch.Tensor) -> OnDevice:
        if kept.dtype == torch.float64:
            raise TypeError(f"{DEVICE} has no float64.")
        made = torch.Tensor._make_wrapper_subclass(
            cls, kept.size(), kept.stride(), kept.storage_offset(), dtype=kept.dtype, device=META
        )
        made.kept = kept
        return made

    @property
    def device(self) -> torch.device:
        return DEVICE

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"Memory of {DEVICE} cannot be read: copy it to the CPU first.")

    __array__ = numpy

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> OnDevice:
        return OnDevice(self.kept.clone())

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return computed(function, args, kwargs or {})


class _Named(TorchFunctionMode):
    """Whoever names the device gets one that PyTorch knows how to reach from Python."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is torch.device:
            return function(*args, **(kwargs or {}))
        named = {name: _known(value) for name, value in (kwargs or {}).items()}
        return function(*map(_known, args), **named)


def _known(value: Any) -> Any:
    return META if isinstance(value, torch.device | str) and str(value).partition(":")[0] == DEVICE.type else value


class _Computing(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), MADE_OF_OTHERS):
            with self:  # where autograd is at work, PyTorch has taken it apart before it comes here
                return function._op_dk(getattr(torch._C.DispatchKey, MADE_OF_OTHERS), *args, **(kwargs or {}))
        return computed(function, args, kwargs or {})


@contextmanager
def lesser_device() -> Iterator[None]:
    """Inside, `DEVICE` is there."""
    del waits[:]
    overwriting = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Computing(), _Named():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwriting)


def computed(function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """An operation in main memory; its result is on the device where that was asked for, or what it is made of is."""
    name, tensors = function.name(), [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    asked = kwargs.get("device")
    here = asked.type == META.type if asked is not None else bool(ours)
    _refuse(name, args, ours, [tensor for tensor in tensors if not isinstance(tensor, OnDevice)])
    _note(name, args, kwargs, bool(ours), here)
    kwargs = kwargs if asked is None else {**kwargs, "device": CPU}
    out = function(*tree_map(_kept, args), **tree_map(_kept, kwargs))
    if name == "aten::copy_":
        return args[0]
    known = {id(tensor.kept): tensor for tensor in ours}
    return tree_map(lambda leaf: known[id(leaf)] if id(leaf) in known else _placed(leaf, here), out)


def _kept(value: Any) -> Any:
    return value.kept if isinstance(value, OnDevice) else value


def _placed(leaf: Any, here: bool) -> Any:
    return OnDevice(leaf) if here and isinstance(leaf, torch.Tensor) else leaf


def _refuse(name: str, args: tuple, ours: list[OnDevice], others: list[torch.Tensor]) -> None:
    if ours and name not in (*COPIES, *INDEXING) and any(tensor.ndim for tensor in others):
        raise RuntimeError(f"{name} was given tensors of two devices, {CPU} and {DEVICE}.")
    if ours and name in POOLING:
        sides = list(zip(ours[0].shape[-2:], args[1], strict=True))
        if any(given % wanted for given, wanted in sides):
            raise RuntimeError(f"{name} on {DEVICE}: input sizes must be divisible by output sizes, and are {sides}.")
    if name in COPIES and ours and not isinstance(args[0], OnDevice) and args[0].dtype == torch.float64:
        raise TypeError(f"{DEVICE} changes the type before it copies, and has no float64.")


def _note(name: str, args: tuple, kwargs: dict[str, Any], ours: bool, here: bool) -> None:
    """Copies that need not be waited for, and those within the device, are no wait."""
    if name == "aten::_to_copy":
        waiting = isinstance(args[0], OnDevice) != here and not kwargs.get("non_blocking")
    elif name == "aten::copy_":
        waiting = isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice) and not (len(args) > 2 and args[2])
    elif name in INDEXING:
        places = [place for place in args[1] if place is not None]
        waiting = ours and any(not isinstance(each, OnDevice) or each.dtype == torch.bool for each in places)
    else:
        waiting = ours and name in WAITING
    if waiting:
        waits.append(name)
