"""ComfyUI's own patches that count a call's rows: ControlNets in a transformer's blocks (DiffSynth's, Fun's, LLLite for
Anima), and GLIGEN's boxes in a UNet's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy import gligen

BEHIND = ("double_block", "single_block", "noise_refiner", "mlp_patch")
"""Patches that are given the picture's stream behind a block or within it, and change it in place or return another."""
BEFORE = ("attn1_patch", "attn2_patch")
"""Patches that are given what a block projects queries, keys and values from."""
BETWEEN = "middle_patch"
"""Patches that are given a UNet block's stream between self- and cross-attention."""

Patch = Callable[..., dict[str, Any]]


def patched_control(options: Mapping[str, Any]) -> bool:
    """Whether the model is controlled by patches, in a run or a call with these `transformer_options`."""
    patches = options.get("patches", {})
    return any(_controls(patch) for kind in (*BEHIND, *BEFORE) for patch in patches.get(kind, ()))


def with_row_spared(options: dict[str, Any], chunks: int, row: int) -> dict[str, Any]:
    """`transformer_options` in which no such control acts on this row of each of the call's equal `chunks`."""
    if not patched_control(options):
        return options
    spared = dict(options["patches"])
    for kinds, around in ((BEHIND, _spared_behind), (BEFORE, _spared_before)):
        for kind in kinds:
            if kind in spared:
                spared[kind] = [
                    functools.partial(around, patch, chunks, row) if _controls(patch) else patch
                    for patch in spared[kind]
                ]
    return {**options, "patches": spared}


def with_boxes_spared(options: dict[str, Any], chunks: int) -> dict[str, Any]:
    """`transformer_options` in which GLIGEN's boxes leave the last row of each of the call's equal `chunks` alone.

    They are made for as many rows as there are pictures, so that one row more would end the run.
    """
    patches = options.get("patches", {})
    if not any(map(_draws_boxes, patches.get(BETWEEN, ()))):
        return options
    spared = [
        functools.partial(_spared_between, patch, chunks) if _draws_boxes(patch) else patch
        for patch in patches[BETWEEN]
    ]
    return {**options, "patches": {**patches, BETWEEN: spared}}


def _draws_boxes(patch: Any) -> bool:
    if isinstance(patch, functools.partial):
        return patch.func is _spared_between
    return getattr(patch, "__module__", None) == gligen.__name__


def _spared_between(patch: Callable[..., torch.Tensor], chunks: int, x: torch.Tensor, options: Any) -> torch.Tensor:
    rows = x.unflatten(0, (chunks, -1))
    pictures = patch(rows[:, :-1].flatten(0, 1), options)
    return torch.cat((pictures.unflatten(0, (chunks, -1)), rows[:, -1:]), 1).flatten(0, 1)


def _controls(patch: Any) -> bool:
    """ComfyUI's nodes of this kind hold what Load Model Patch gave them, or another patch that does."""
    if isinstance(patch, functools.partial):
        return patch.func in (_spared_behind, _spared_before)
    return hasattr(patch, "model_patch") or hasattr(getattr(patch, "patch", None), "model_patch")


def _spared_behind(patch: Patch, chunks: int, row: int, given: dict[str, Any]) -> dict[str, Any]:
    name = "img" if "img" in given else "x"
    stream = given[name]
    before = _row(stream, chunks, row).clone()
    out = patch(given)
    _row(out.get(name, stream), chunks, row).copy_(before)
    return out


def _spared_before(
    patch: Patch, chunks: int, row: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **others: Any
) -> dict[str, Any]:
    before = {name: _row(x, chunks, row).clone() for name, x in (("q", q), ("k", k), ("v", v))}
    out = patch(q, k, v, **others)
    for name in before.keys() & out.keys():
        _row(out[name], chunks, row).copy_(before[name])
    return out


def _row(stream: torch.Tensor, chunks: int, row: int) -> torch.Tensor:
    return stream.unflatten(0, (chunks, -1))[:, row]
