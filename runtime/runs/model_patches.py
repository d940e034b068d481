"""ComfyUI's own patches that meet rows which it did not give them: those of style references.

ControlNets in a transformer's blocks (DiffSynth's, Fun's, and LLLite for Anima) and GLIGEN's boxes in a UNet's leave
them out. What adds tokens to a transformer's input, such as USO's style, is made for as many rows as the pictures are.
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

INPUT = "post_input"
"""Patches that are given what a network makes of picture and text, with their positions, and may lengthen both."""

Patch = Callable[..., dict[str, Any]]


def patched_control(options: Mapping[str, Any]) -> bool:
    """Whether the model is controlled by patches, in a run or a call with these `transformer_options`."""
    patches = options.get("patches", {})
    return any(_controls(patch) for kind in (*BEHIND, *BEFORE) for patch in patches.get(kind, ()))


def with_row_spared(options: dict[str, Any], chunks: int, row: int, added: bool) -> dict[str, Any]:
    """`transformer_options` in which no such control acts on this row of each of the call's equal `chunks`.

    One that was `added` is not shown to it either: a control of several pictures has one for each row of the run's.
    """
    if not patched_control(options):
        return options
    spared = dict(options["patches"])
    behind, before = (_hidden_behind, _hidden_before) if added else (_spared_behind, _spared_before)
    for kinds, around in ((BEHIND, behind), (BEFORE, before)):
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


def lengthened(options: Mapping[str, Any]) -> bool:
    """Whether a patch of the input acts, in a run or a call with these `transformer_options`."""
    return bool(options.get("patches", {}).get(INPUT))


def with_row_apart(options: dict[str, Any], chunks: int, row: int) -> dict[str, Any]:
    """`transformer_options` in which patches of the input meet this row of each of the call's `chunks` by itself.

    They meet the others as if it were not there: USO's fails where a call has more rows than pictures of style.
    """
    if not lengthened(options):
        return options
    patches = options["patches"]
    apart = [functools.partial(_apart, patch, chunks, row) for patch in patches[INPUT]]
    return {**options, "patches": {**patches, INPUT: apart}}


def _apart(patch: Patch, chunks: int, row: int, given: dict[str, Any]) -> dict[str, Any]:
    rows = {name: x.unflatten(0, (chunks, -1)) for name, x in given.items() if isinstance(x, torch.Tensor)}
    others = patch({**given, **{name: _others(x.flatten(0, 1), chunks, row) for name, x in rows.items()}})
    itself = _itself(patch)
    own = [itself({**given, **{name: x[chunk, row : row + 1] for name, x in rows.items()}}) for chunk in range(chunks)]
    joined = {}
    for name in others.keys() & rows.keys():
        joined[name] = _joined(others[name], torch.cat([each[name] for each in own]), chunks, row)
    return {**others, **joined}


def _itself(patch: Patch) -> Patch:
    """The patch that meets other rows by themselves too."""
    while isinstance(patch, functools.partial) and patch.func is _apart:
        patch = patch.args[0]
    return patch


def _controls(patch: Any) -> bool:
    """ComfyUI's nodes of this kind hold what Load Model Patch gave them, or another patch that does."""
    if isinstance(patch, functools.partial):
        return patch.func in (_spared_behind, _spared_before, _hidden_behind, _hidden_before)
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


def _hidden_behind(patch: Patch, chunks: int, row: int, given: dict[str, Any]) -> dict[str, Any]:
    name = "img" if "img" in given else "x"
    stream, shown = given[name], _shown(given, len(given[name]), chunks, row)
    out = patch({**given, **shown})
    whole = {
        each: _joined(out[each], _row(given[each], chunks, row), chunks, row)
        for each in out.keys() & shown.keys()
        if each != name
    }
    stream.copy_(_joined(out.get(name, shown[name]), _row(stream, chunks, row), chunks, row))
    return {**out, **whole, name: stream}


def _hidden_before(
    patch: Patch, chunks: int, row: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **others: Any
) -> dict[str, Any]:
    given = {"q": q, "k": k, "v": v, **others}
    shown = _shown(given, len(q), chunks, row)
    seen = {**given, **shown}
    out = patch(seen["q"], seen["k"], seen["v"], **{name: seen[name] for name in others})
    whole = {
        each: _joined(out[each], _row(given[each], chunks, row), chunks, row) for each in out.keys() & shown.keys()
    }
    return {**out, **whole}


def _shown(given: dict[str, Any], rows: int, chunks: int, row: int) -> dict[str, Any]:
    """What of a patch's arguments has the call's rows, without this one of each chunk."""
    tensors = {name: x for name, x in given.items() if isinstance(x, torch.Tensor) and x.ndim and len(x) == rows}
    return {name: _others(x, chunks, row) for name, x in tensors.items()}


def _others(x: torch.Tensor, chunks: int, row: int) -> torch.Tensor:
    x = x.unflatten(0, (chunks, -1))
    return torch.cat((x[:, :row], x[:, row + 1 :]), 1).flatten(0, 1)


def _joined(others: torch.Tensor, own: torch.Tensor, chunks: int, row: int) -> torch.Tensor:
    """All rows of a call, from those of all chunks but one each and these [chunks, ...]."""
    x = others.unflatten(0, (chunks, -1))
    return torch.cat((x[:, :row], own[:, None], x[:, row:]), 1).flatten(0, 1)
