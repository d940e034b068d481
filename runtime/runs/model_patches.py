"""ControlNets that patch a transformer (DiffSynth's for Qwen-Image, Fun's for Z-Image) and act in its blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

KINDS = ("double_block", "single_block", "noise_refiner")
"""Patches that are given the picture's stream behind a block, and change it in place or return another."""

Patch = Callable[[dict[str, Any]], dict[str, Any]]


def patched_control(options: Mapping[str, Any]) -> bool:
    """Whether the model is controlled by patches, in a run or a call with these `transformer_options`."""
    patches = options.get("patches", {})
    return any(_controls(patch) for kind in KINDS for patch in patches.get(kind, ()))


def with_row_spared(options: dict[str, Any], chunks: int, row: int) -> dict[str, Any]:
    """`transformer_options` in which no such control acts on this row of each of the call's equal `chunks`."""
    if not patched_control(options):
        return options
    patches = options["patches"]
    spared = {
        kind: [functools.partial(_spared, patch, chunks, row) if _controls(patch) else patch for patch in patches[kind]]
        for kind in KINDS
        if kind in patches
    }
    return {**options, "patches": {**patches, **spared}}


def _controls(patch: Any) -> bool:
    """ComfyUI's nodes of this kind hold what Load Model Patch gave them."""
    return hasattr(patch, "model_patch") or (isinstance(patch, functools.partial) and patch.func is _spared)


def _spared(patch: Patch, chunks: int, row: int, given: dict[str, Any]) -> dict[str, Any]:
    stream = given["img"]
    before = _row(stream, chunks, row).clone()
    out = patch(given)
    _row(out.get("img", stream), chunks, row).copy_(before)
    return out


def _row(stream: torch.Tensor, chunks: int, row: int) -> torch.Tensor:
    return stream.unflatten(0, (chunks, -1))[:, row]
