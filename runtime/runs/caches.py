"""Other packs' caches: where a step resembles an earlier one, they hand out what that made and run no layer.

ComfyUI's EasyCache and the packs TeaCache, MagCache and WaveSpeed are such. They take every call for the sampler's next
one: a prediction that is made beside it would get what the sampler's own has left there, and leave its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from comfy.patcher_extension import WrappersMP

from .whose import whose

FUNCTION = "model_function_wrapper"
CALLS = (WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
"""Wrappers of calls. A step that PREDICT_NOISE leaves out (LazyCache) is left out as a whole, ours with it."""
STEPS = (WrappersMP.PREDICT_NOISE, *CALLS)
"""Wrappers of a guider's predictions as well."""


def caches_in(model_options: Mapping[str, Any], kinds: Sequence[str] = CALLS) -> tuple[str, ...]:
    """The caches in a run with these `model_options`, by their packs: "a cache of ComfyUI-TeaCache".

    No interface tells them from other wrappers, but they all call themselves so.
    """
    packs = (whose(each).rpartition(" of ")[2] for each in _around(model_options, kinds) if _is_cache(each))
    return tuple(f"a cache of {pack}" for pack in dict.fromkeys(packs))


def without_caches(model_options: dict[str, Any], kinds: Sequence[str] = CALLS) -> dict[str, Any]:
    """The options of a prediction that no cache answers or hears of; the same object where there is none."""
    if not caches_in(model_options, kinds):
        return model_options
    options = model_options.get("transformer_options", {})
    found = options.get("wrappers", {})
    wrappers = {kind: _without(keyed) if kind in kinds else keyed for kind, keyed in found.items()}
    kept = {name: value for name, value in model_options.items() if name != FUNCTION or not _is_cache(value)}
    return {**kept, "transformer_options": {**options, "wrappers": wrappers}}


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
    return "cache" in whose(wrapper).lower()
