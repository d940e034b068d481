"""What layers make of a hidden reference, kept from one run to the next, so that painting again costs hardly more.

The reference's rows never attend to the pictures'. They can therefore run in a call of their own, and a call that has
the same inputs, under the same weights, need not run again: what it brought to the layers is kept, in full precision.
Cold or warm, a run gives the same bits.

Nothing is guessed: all inputs of the reference's call are compared, tensor by tensor. Where another node's patch could
act inside of a call, the reference rides along with the pictures as it always has.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from comfy import model_management
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import nn

from ...engine.brought import Brought
from ...engine.layers import LayerId
from ..arch.base import uncompiled
from ..runs.keys import kinds_of
from ..runs.model_call import KEY, ModelCall

MOST = 8 * 1024**3
"""Bytes that all references together may take of one device; never more than a third of what is free there."""

OUTSIDE = frozenset(
    (
        WrappersMP.OUTER_SAMPLE,
        WrappersMP.PREPARE_SAMPLING,
        WrappersMP.SAMPLER_SAMPLE,
        WrappersMP.PREDICT_NOISE,
        WrappersMP.CALC_COND_BATCH,
    )
)
"""Wrappers that only see calls from outside. One of a kind that is not known may change what happens inside."""
OF_EVERY_CALL = frozenset(
    ("wrappers", "callbacks", "patches", "patches_replace", "uuids", "sigmas", "sample_sigmas", "cond_or_uncond")
)
"""Options that are looked at by themselves, or that do not reach the network."""

Features = Mapping[LayerId, Brought]


def undisturbed(call: ModelCall, model: BaseModel) -> bool:
    """Whether nothing of another node's acts inside of a call, so that the reference may run by itself."""
    options, patcher = call.options, model.current_patcher
    wrappers = {kind: sum(map(len, keyed.values())) for kind, keyed in options.get("wrappers", {}).items()}
    inside = {kind: count for kind, count in wrappers.items() if count and kind not in OUTSIDE}
    return (
        inside == {WrappersMP.APPLY_MODEL: 1}  # ours
        and not any(options.get("patches", {}).values())
        and not any(options.get("patches_replace", {}).values())
        and options.get("optimized_attention_override") is None
        and not call.x.requires_grad
        and patcher is not None
        and not patcher.current_hooks
    )


@dataclass(eq=False)
class _Kept:
    """One call of a reference: what it was given, what it brought, and the run that has used it last."""

    mark: tuple[float, ...]  # what tells it from most others without a look at whole tensors
    given: tuple[Any, ...]
    under: tuple[Any, ...]
    user: object
    brought: dict[LayerId, Brought] = field(default_factory=dict)
    taken: Counter[torch.device] = field(default_factory=Counter)  # bytes, of what it brought

    def keep(self, fresh: Features, device: torch.device) -> None:
        for layer, each in fresh.items():
            self.brought[layer] = each.to(device)
            self.taken[device] += each.bytes


@dataclass
class Store:
    """References' calls by network, the one used last at the end. It holds no network alive."""

    kept: weakref.WeakKeyDictionary[nn.Module, list[_Kept]] = field(default_factory=weakref.WeakKeyDictionary)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def brought(
        self, model: BaseModel, call: ModelCall, layers: frozenset[LayerId], user: object, run: Callable[[], Features]
    ) -> Features:
        """What the reference's `call` brings to `layers`: as it was kept, or by `run`."""
        network = uncompiled(model.diffusion_model)
        mark, given, under = _mark(call), _given(call), _under(model, call)
        with self.lock:
            calls = self.kept.get(network, [])
            found = next((each for each in calls if each.mark == mark and _same(each, given, under)), None)
            if found is not None:
                found.user = user
                calls.sort(key=lambda each: each is found)  # to the end
        if found is not None and layers <= found.brought.keys():
            return {layer: found.brought[layer].to(call.x.device) for layer in layers}
        fresh = run()
        with self.lock:
            self._keep(network, found or _Kept(mark, given, under, user), fresh)
        return fresh

    def forget(self, model: BaseModel) -> None:
        """Give back what a model's references take."""
        with self.lock:
            self.kept.pop(uncompiled(model.diffusion_model), None)

    def _keep(self, network: nn.Module, call: _Kept, fresh: Features) -> None:
        """Keep it where there is room: on the device, else in main memory, else not at all."""
        missing = {layer: each for layer, each in fresh.items() if layer not in call.brought}
        size = sum(each.bytes for each in missing.values())
        device = next((each.keys.device for each in missing.values()), torch.device("cpu"))
        for place in dict.fromkeys((device, torch.device("cpu"))):
            if self._make_room(size, place, call):
                call.keep(missing, place)
                calls = self.kept.setdefault(network, [])
                if not any(each is call for each in calls):
                    call.given = _sharing(call.given, calls[-1].given) if calls else call.given
                    calls.append(call)
                return

    def _make_room(self, size: int, device: torch.device, wanted: _Kept) -> bool:
        """Let go of other runs' oldest until `size` more bytes fit; a run that let go of its own would find none."""
        free = cast(float, model_management.get_free_memory(device))  # two numbers only where two are asked for
        taken = sum(each.taken[device] for calls in self.kept.values() for each in calls)
        most = min(MOST, (free + taken) / 3)
        for calls in list(self.kept.values()):
            for each in [each for each in calls if each.user is not wanted.user and each.taken[device]]:
                if taken + size <= most:
                    return True
                calls.remove(each)
                taken -= each.taken[device]
        return taken + size <= most


STORE = Store()


def given_back(patched: ModelPatcher) -> ModelPatcher:
    """The model, whose references go when ComfyUI unloads it, which it does when memory is short."""
    patched.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, _forget)
    return patched


def _forget(patcher: ModelPatcher, unpatch_all: bool = True, *args: Any) -> None:
    if unpatch_all:  # or another clone of the model only takes its place
        STORE.forget(patcher.model)


def _mark(call: ModelCall) -> tuple[float, ...]:
    """A few numbers of a call's latent, so that a long list is gone through with one look at the device."""
    values = call.x.flatten()
    return tuple(values[:: max(1, len(values) // 8)].tolist())


def _given(call: ModelCall) -> tuple[Any, ...]:
    """All that a call without control tells the network."""
    given = call.x, call.sigma, call.c_concat, call.c_crossattn, *call.rest, *_flat(call.conds)
    return tuple(kinds_of(call.options)), given


def _sharing(given: tuple[Any, ...], earlier: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a call was given, with the tensors of an earlier one in the place of equal ones: steps share their text."""
    (kinds, ours), (_, theirs) = given, earlier
    if len(ours) != len(theirs):
        return given
    pairs = zip(ours, theirs, strict=True)
    return kinds, tuple(other if isinstance(one, torch.Tensor) and _equal(one, other) else one for one, other in pairs)


def _flat(conds: Mapping[str, Any]) -> Iterator[Any]:
    for name in sorted(conds):
        yield name
        yield conds[name]


def _under(model: BaseModel, call: ModelCall) -> tuple[Any, ...]:
    """The weights, the objects that nodes have put into the model, and options that are not known."""
    patcher = model.current_patcher
    assert patcher is not None  # `undisturbed` has seen it
    objects = {**patcher.object_patches, **{n: v for n, v in call.options.items() if n not in OF_EVERY_CALL}}
    return (
        model.current_weight_patches_uuid,
        patcher.patches_uuid,
        tuple(sorted(objects)),
        *(_weakly(objects[name]) for name in sorted(objects)),
    )


def _weakly(thing: Any) -> Any:
    """Something to know it again by, that does not hold it alive where that can be."""
    try:
        return weakref.ref(thing)
    except TypeError:
        return thing


def _same(kept: _Kept, given: tuple[Any, ...], under: tuple[Any, ...]) -> bool:
    return _equal(kept.under, under) and _equal(kept.given, given)


def _equal(one: Any, other: Any) -> bool:
    """Equal to the bit; objects of unknown kinds only when they are the same."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        alike = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
        return alike and torch.equal(one, other)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, weakref.ref) and isinstance(other, weakref.ref):
        return one() is not None and one() is other()
    plain = (str, int, float, bool, type(None), torch.dtype, torch.device)
    if isinstance(one, plain) or "UUID" in type(one).__name__:
        return type(one) is type(other) and one == other
    return one is other
