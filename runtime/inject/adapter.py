"""Adapters that other packs have applied (IP-Adapter, InstantID, PuLID), re-weighted layer by layer.

Such a pack replaces cross-attention: its function returns the attention to the text plus what the adapter attends to.
Nothing more is known of it here: what it adds is its output minus the layer's own attention, and a gate scales that.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import FunctionType, MappingProxyType
from typing import Any, ClassVar

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher

from ...engine.gates import LayerGate
from ...engine.layers import LayerId
from ..arch.attention import ReplaceFunction, plain_attention, with_attention_replaced
from ..arch.base import uncompiled
from ..arch.registry import architecture_of
from ..runs import injector
from ..runs.injector import Around, CalledLayers, Executor, Sampling
from ..runs.layout import Layout
from ..runs.loaded import own_classes, sampling_of
from ..runs.model_call import ModelCall
from ..runs.whose import whose

KIND = "attn2"


@dataclass(frozen=True)
class Adapter:
    """What was at a layer when its gate was made, and what was there at the gate before it (None: the layer's own)."""

    seen: ReplaceFunction
    before: ReplaceFunction | None = None


@dataclass(frozen=True)
class GatedAdapter(injector.Injector):
    """The adapters of a model under a gate; `elsewhere` are places they patch that the model has not."""

    name: ClassVar[str] = "Gate adapter"

    gate: LayerGate
    layers: tuple[LayerId, ...] = ()
    adapters: Mapping[LayerId, Adapter] = field(default_factory=lambda: MappingProxyType({}))
    elsewhere: tuple[str, ...] = ()

    def start(self, sampling: Sampling) -> _Run:
        return _Run(self, sampling)


def gate_adapter(model: ModelPatcher, gate: LayerGate) -> tuple[ModelPatcher, GatedAdapter]:
    """A clone whose adapters act at the gate's layers, as strongly as it says, and what was found in the model.

    A full gate samples the bits of the ungated model, an empty one those of the model without the adapter. A second
    gate takes the adapters that were applied since the first. Raises ValueError where there is no adapter, for a model
    that is no UNet and for a gate of other layers.
    """
    with own_classes(model):
        served = isinstance(network := uncompiled(model.model.diffusion_model), UNetModel)
    if not served:
        raise ValueError(
            f"'model' is a {type(network).__name__}: adapters for transformers put their own code in place of the "
            "model's blocks, out of a gate's reach. Gate adapters on SD1.5, SDXL and their finetunes."
        )
    layers, sampling = architecture_of(model).layers, sampling_of(model)
    gate.weights(float(sampling.sigma_max), layers, sampling.percent_to_sigma)
    found = model.model_options.get("transformer_options", {}).get("patches_replace", {}).get(KIND, {})
    adapters = _since(injector.injectors_of(model, GatedAdapter), _at_layers(found, layers))
    if not adapters:
        raise ValueError(
            "'model' has no adapter in its cross-attention that no other gate has yet: connect this node behind the "
            "one that applies it, such as IPAdapter's."
        )
    known = {*layers, *(layer[:2] for layer in layers)}
    elsewhere = tuple(" ".join(map(str, key)) for key in found if key not in known)
    gated = GatedAdapter(gate, layers, MappingProxyType(adapters), elsewhere)
    return injector.inject(model, gated), gated


def _at_layers(found: Mapping[Any, ReplaceFunction], layers: tuple[LayerId, ...]) -> dict[LayerId, ReplaceFunction]:
    """Other packs' functions by layer, kept as they are now."""
    kept: dict[int, ReplaceFunction] = {}
    at = {layer: found.get(layer, found.get(layer[:2])) for layer in layers}
    return {
        layer: kept.setdefault(id(function), _as_it_is(function))
        for layer, function in at.items()
        if function is not None
    }


def _since(earlier: list[GatedAdapter], now: dict[LayerId, ReplaceFunction]) -> dict[LayerId, Adapter]:
    """The layers where an adapter has come in since the last gate."""
    before = {layer: adapter.seen for gated in earlier for layer, adapter in gated.adapters.items()}
    return {
        layer: Adapter(seen, before.get(layer))
        for layer, seen in now.items()
        if layer not in before or not _is_same(seen, before[layer])
    }


class _Run(injector.Run):
    def __init__(self, gated: GatedAdapter, sampling: Sampling) -> None:
        super().__init__(sampling)
        self.gated, self.called = gated, CalledLayers(gated.layers)

    def weights(self, sigma: float) -> dict[LayerId, float]:
        """How much of the adapters is left at a noise level, by layer."""
        weights = self.gated.gate.weights(sigma, self.gated.layers, self.sampling.to_sigma).amax(0).tolist()
        at = dict(zip(self.gated.layers, weights, strict=True))
        return {layer: at[layer] for layer in self.gated.adapters}

    def opens(self, sigma: float) -> bool:
        return any(self.weights(sigma).values())

    @property
    def windows(self) -> tuple[tuple[float, float], ...]:
        return self.gated.gate.windows

    def at(self, sigma: float, positive: int) -> Around | None:
        at = self.weights(sigma)
        weakened = {layer: at[layer] for layer in at if at[layer] != 1}
        self.called.opened.update(weakened)
        return functools.partial(self._around_call, weakened) if weakened else None

    def finish(self, samples: torch.Tensor) -> torch.Tensor:
        self.called.report(self.sampling)
        return samples

    def _around_call(
        self, weakened: Mapping[LayerId, float], executor: Executor, call: ModelCall, layout: Layout
    ) -> torch.Tensor:
        make = {layer: functools.partial(self._replacement, layer, weight) for layer, weight in weakened.items()}
        with self.called.during_call(weakened, self.sampling):
            return replace(call, options=with_attention_replaced(call.options, KIND, make)).run(executor)

    def _replacement(self, layer: LayerId, weight: float, earlier: ReplaceFunction | None) -> ReplaceFunction:
        if earlier is None:  # gone since: nothing is there to weaken
            self.called.leave_out(layer, "had an adapter when its gate was made and has none in this run")
            return _Plain(self.called, layer)
        adapter, raw = self.gated.adapters[layer], _raw(earlier)
        if not _is_same(raw, adapter.seen) and not _has_grown(raw, adapter.seen):
            self.called.leave_out(layer, f"also weakened what {whose(raw)} does, which was applied after the gate")
            return _Weakened(earlier, weight, self.called, layer)
        if raw is earlier and adapter.before is None and _is_same(raw, adapter.seen):
            return _Weakened(earlier, weight, self.called, layer)
        return _Lessened(earlier, weight, adapter, self.called, layer)


@dataclass(frozen=True)
class _Plain:
    """The layer's own attention, where a gate found nothing to weaken."""

    called: CalledLayers
    layer: LayerId

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        self.called.call(self.layer)
        return plain_attention(q, k, v, None, options)


@dataclass(frozen=True)
class _Weakened:
    """The layer's own attention, and so much of what another function makes of it."""

    earlier: ReplaceFunction
    weight: float
    called: CalledLayers
    layer: LayerId

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        self.called.call(self.layer)
        own = plain_attention(q, k, v, None, options)
        return torch.lerp(own, self.earlier(q, k, v, options), self.weight) if self.weight else own


@dataclass(frozen=True)
class _Lessened:
    """All that is at a layer, less so much of what one of several adapters adds to it."""

    earlier: ReplaceFunction
    weight: float
    adapter: Adapter
    called: CalledLayers
    layer: LayerId

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        self.called.call(self.layer)
        before = self.adapter.before
        without = plain_attention(q, k, v, None, options) if before is None else before(q, k, v, options)
        added = self.adapter.seen(q, k, v, options) - without
        return self.earlier(q, k, v, options) + (self.weight - 1) * added


def _raw(function: ReplaceFunction) -> ReplaceFunction:
    """What is under our own functions."""
    while isinstance(function, _Weakened | _Lessened):
        function = function.earlier
    return function


def _as_it_is(function: ReplaceFunction) -> ReplaceFunction:
    """A function that keeps what it is now: IPAdapter adds a second adapter to the object that the first one made."""
    lists = _lists(function)
    if not lists:
        return function
    kept = copy.copy(function)
    for name, value in lists.items():
        setattr(kept, name, list(value))
    return kept


def _is_same(now: ReplaceFunction, then: ReplaceFunction) -> bool:
    """Whether a function is the one that was seen: ComfyUI copies callable objects whenever a model is cloned."""
    return now is then or (_is_copy(now, then) and _lengths(now) == _lengths(then))


def _has_grown(now: ReplaceFunction, then: ReplaceFunction) -> bool:
    """Whether more was added to an object since it was seen."""
    lengths, before = _lengths(now), _lengths(then)
    return bool(before) and _is_copy(now, then) and all(lengths.get(name, 0) >= n for name, n in before.items())


def _is_copy(now: Any, then: Any) -> bool:
    """Whether one may be a copy of the other. Plain functions are never copied."""
    if type(now) is not type(then) or isinstance(now, FunctionType):
        return False
    return all(getattr(now, name, None) is getattr(then, name, None) for name in ("func", "__func__"))


def _lengths(function: Any) -> dict[str, int]:
    return {name: len(value) for name, value in _lists(function).items()}


def _lists(function: Any) -> dict[str, list[Any]]:
    return {name: value for name, value in getattr(function, "__dict__", {}).items() if isinstance(value, list)}
