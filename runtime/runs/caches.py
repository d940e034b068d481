"""Other packs' caches: where a step resembles an earlier one, they return that step's output and run no layer.

ComfyUI's EasyCache and the packs TeaCache, MagCache and WaveSpeed are such. They take every call for the sampler's next
one: a prediction that is made beside it would get what the sampler's own has left there, and leave its own.

No interface tells them from other packs' code, so they are known by their names. One that is not known is told of by
what it does: the model, or all open layers of a call, did not run (`injector`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import nn

from .whose import OURS, whose

FUNCTION = "model_function_wrapper"
WORDS = ("cache", "taylorseer", "spectrum")
"""What caches call themselves, and methods of that kind which go by another name."""
OWN = ("comfy", "torch")
"""Roots of the modules whose functions are the network's own."""
CALLS = (WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
"""Wrappers of calls. A step that PREDICT_NOISE leaves out (LazyCache) is left out as a whole, ours with it."""
STEPS = (WrappersMP.PREDICT_NOISE, *CALLS)
"""Wrappers of a guider's predictions as well."""


def caches_in(model_options: Mapping[str, Any], kinds: Sequence[str] = CALLS) -> tuple[str, ...]:
    """The caches in a run with these `model_options`, by their packs: "a cache of ComfyUI-TeaCache"."""
    return _named(_around(model_options, kinds))


def caches_on(network: nn.Module) -> tuple[str, ...]:
    """The caches that stand in the place of a network's own functions, as CacheDiT's; no options are without them."""
    return _named(put_on(network))


def unavoidable(network: nn.Module) -> Iterator[str]:
    """A sentence for each cache that also answers and records predictions beside a sampler's."""
    for cache in caches_on(network):
        yield (
            f"{cache[0].upper()}{cache[1:]} is built into the model itself and mistakes this node's own model calls "
            "for the sampler's steps, so both may come out wrong: bypass it, or, if you already have, restart ComfyUI."
        )


def put_on(network: nn.Module) -> tuple[Any, ...]:
    """Functions of other packs in the place of a network's own, such as its forward."""
    functions = (value for value in vars(network).values() if inspect.isroutine(value))
    return tuple(each for each in functions if not str(getattr(each, "__module__", "")).startswith(OWN))


def around_calls(model_options: Mapping[str, Any]) -> tuple[str, ...]:
    """Whose code goes round the calls of a run with these `model_options`, ours aside."""
    return tuple(name for name in dict.fromkeys(map(whose, _around(model_options, CALLS))) if name != OURS)


def without_caches(model_options: dict[str, Any], kinds: Sequence[str] = CALLS) -> dict[str, Any]:
    """The options of a prediction that no cache answers or records; the same object where there is none."""
    if not caches_in(model_options, kinds):
        return model_options
    options = model_options.get("transformer_options", {})
    found = options.get("wrappers", {})
    wrappers = {kind: _without(keyed) if kind in kinds else keyed for kind, keyed in found.items()}
    kept = {name: value for name, value in model_options.items() if name != FUNCTION or not _is_cache(value)}
    return {**kept, "transformer_options": {**options, "wrappers": wrappers}}


def _named(functions: Iterable[Any]) -> tuple[str, ...]:
    packs = (whose(each).rpartition(" of ")[2] for each in functions if _is_cache(each))
    return tuple(f"a cache of {pack}" for pack in dict.fromkeys(packs))


def _around(model_options: Mapping[str, Any], kinds: Sequence[str]) -> Iterator[Any]:
    if FUNCTION in model_options:
        yield model_options[FUNCTION]
    wrappers = model_options.get("transformer_options", {}).get("wrappers", {})
    for kind in kinds:
        for each in wrappers.get(kind, {}).values():
            yield from each


def _without(keyed: Mapping[str | None, list[Any]]) -> dict[str | None, list[Any]]:
    return {key: [each for each in wrappers if not _is_cache(each)] for key, wrappers in keyed.items()}


def _is_cache(wrapper: Any) -> bool:
    name = whose(wrapper).lower()
    return any(word in name for word in WORDS)
