"""The private keys of ComfyUI that this pack reads. One that is missing is an error with a name, never a neutral value.

ComfyUI promises none of them. `tests/contracts/test_leaning.py` holds each against the real thing, so that a release
which drops one fails there, in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import comfyui_version


class MissingKey(ValueError):
    """ComfyUI, or a node that calls the model by itself, leaves out a key without which rows cannot be told apart."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"The model was called without '{key}' in its options, so Conditional Balance cannot tell what the call is "
            "for: bypass nodes that call the model by themselves, or, if there are none, update Conditional Balance "
            f"for ComfyUI {comfyui_version.__version__}."
        )
        self.key = key


def kinds_of(options: Mapping[str, Any]) -> Sequence[int]:
    """Which conditionings one model call runs, in the order of their rows: places in the list that CFG was given.

    With a plain CFG guider 0 is the positive and 1 the negative prompt.
    """
    return _read(options, "cond_or_uncond")


def prompts_of(options: Mapping[str, Any]) -> Sequence[Any]:
    """ComfyUI's ids of the prompts that one model call runs, in the order of their rows."""
    return _read(options, "uuids")


def grid_of(options: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width, in tokens, of the layer that is being called."""
    return tuple(_read(options, "activations_shape")[2:4])


def rows_of(options: Mapping[str, Any]) -> int:
    """Rows with which the layer that is being called was entered, before other nodes' patches."""
    return _read(options, "activations_shape")[0]


def with_rows(options: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The options for so many of the rows of the layer that is being called."""
    return {**options, "activations_shape": [rows, *_read(options, "activations_shape")[1:]]}


def sigmas_of(options: Mapping[str, Any]) -> Any:
    """The noise level [rows of a chunk] of one model call."""
    return _read(options, "sigmas")


def schedule_of(options: Mapping[str, Any]) -> Any:
    """All noise levels [T + 1] of the sampler's run, also where another node runs it in parts."""
    return _read(options, "sample_sigmas")


def schedule_in(options: Mapping[str, Any] | None) -> Any | None:
    """The same for a ControlNet, which another node may ask without a sampler's run: there it is None."""
    return (options or {}).get("sample_sigmas")


def _read(options: Mapping[str, Any], key: str) -> Any:
    try:
        return options[key]
    except KeyError as missing:
        raise MissingKey(key) from missing
