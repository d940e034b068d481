"""Small things that node schemas share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from inspect import signature
from typing import Any

import torch
from comfy_api.latest import io

from ..engine.gates import LayerGate, WindowReversed, windowed
from ..engine.texts import quoted, shortened

MOST_NAMED = 20  # choices that a sentence lists


def advanced(widget: io.Input) -> io.Input:
    """Mark an input as rarely needed; front ends that know the word fold it away."""
    widget.extra_dict = {**(widget.extra_dict or {}), "advanced": True}
    return widget


def window_inputs() -> list[io.Input]:
    """The range of the schedule in which something acts, in percent as ControlNetApplyAdvanced counts it."""
    return [
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Where in the schedule it starts to act: 0 is pure noise, 1 the finished picture. 0 is right "
            "unless you want the layout to form untouched; then try 0.1 to 0.2.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Where in the schedule it stops acting. 1 is right unless fine detail looks overworked; then "
            "try 0.8.",
        ),
    ]


def in_window(gate: LayerGate, start_percent: float, end_percent: float) -> LayerGate:
    """`gate` inside the window of the widgets. Raises ValueError when it ends before it starts."""
    try:
        return windowed(gate, start_percent, end_percent)
    except WindowReversed as error:
        raise ValueError(
            f"'end_percent' ({end_percent:g}) lies before 'start_percent' ({start_percent:g}): swap them."
        ) from error


def check_window(start_percent: float, end_percent: float) -> None:
    """Raises ValueError for a window that ends before it starts."""
    if end_percent < start_percent:
        raise ValueError(f"'end_percent' ({end_percent:g}) lies before 'start_percent' ({start_percent:g}): swap them.")


def never_the_same() -> float:
    """The fingerprint of files whose name comes through a link, which core follows only later: the node runs again."""
    return float("nan")  # a new one each time: core compares by identity first


def one_mask(mask: torch.Tensor | None) -> torch.Tensor | None:
    """The mask [H, W] of an input `mask` [(1, (1,)) H, W]. Raises ValueError for several."""
    if mask is None:
        return None
    number = mask.shape[:-2].numel()
    if number != 1:
        raise ValueError(f"'mask' holds {number} masks: give one, which is used for every picture.")
    return mask.reshape(mask.shape[-2:])


def window_in_words(start_percent: float, end_percent: float) -> str:
    """The window for a summary: "at every step", or "from 20% to 80% of the schedule"."""
    if (start_percent, end_percent) == (0.0, 1.0):
        return "at every step"
    return f"from {start_percent:.0%} to {end_percent:.0%} of the schedule"


def out_of_range(inputs: Iterable[io.Input], values: Mapping[str, Any]) -> str | None:
    """What core would say against widget values, in a sentence; None when all are in range or come through links."""
    problems = (_problem(each, values[each.id]) for each in inputs if values.get(each.id) is not None)
    return next((problem for problem in problems if problem), None)


def brought(node: type[io.ComfyNode], values: Mapping[str, Any]) -> dict[str, Any]:
    """What reaches a node's execute(), less inputs whose link brings nothing, which are then as if they were open.

    Switches, loops at their first turn and nodes with an open input of their own bring None. Raises ValueError for an
    input that the node cannot do without, or that a client has given a text or a number in the place of a link: core
    lets that through. A checkpoint without CLIP or VAE is left to who needs them.
    """
    if any(isinstance(value, str | int | float) for value in values.values()):
        _check_sockets(node, values)
    empty = [name for name, value in values.items() if _is_nothing(value)]
    if not empty:
        return dict(values)
    inputs = {each.id: each for each in node.define_schema().inputs}
    needed = {name for name in empty if name in inputs and not inputs[name].optional}
    for name in sorted(needed):
        if isinstance(inputs[name], io.ControlNet.Input):
            raise ValueError(f"'{name}' is empty: load a ControlNet of the model's family.")
        if not isinstance(inputs[name], io.Clip.Input | io.Vae.Input):
            raise ValueError(
                f"'{name}' is empty, as what it is connected to gives nothing: look there, or connect another."
            )
    return {name: value for name, value in values.items() if name in needed or name not in empty}


def _check_sockets(node: type[io.ComfyNode], values: Mapping[str, Any]) -> None:
    for each in node.define_schema().inputs:
        value = values.get(each.id)
        if not isinstance(each, io.WidgetInput | io.AnyType.Input) and isinstance(value, str | int | float):
            raise ValueError(f"'{each.id}' is {quoted(str(value))}, and takes what another node gives: connect one.")


def _is_nothing(value: Any) -> bool:
    """Whether a link brings None, or to a node that takes lists, nothing but None."""
    return value is None or (isinstance(value, list) and len(value) > 0 and all(each is None for each in value))


def not_offered(node: type[io.ComfyNode], values: Mapping[str, Any]) -> str | None:
    """What is wrong with choices and numbers that reach a node's execute(): core lets through any from a link, and NaN.

    Names of files are left to nodes whose validate_inputs reads them.
    """
    read = signature(node.validate_inputs).parameters
    return out_of_range((each for each in node.define_schema().inputs if each.id not in read), values)


def _problem(widget: io.Input, value: Any) -> str | None:
    if isinstance(widget, io.Combo.Input) and value not in widget.options:
        offered = ", ".join(map(str, widget.options)) if len(widget.options) <= MOST_NAMED else "the list"
        return f"'{widget.id}': there is no {quoted(value)}: choose one of {offered}."
    if isinstance(widget, io.Float.Input | io.Int.Input) and not widget.min <= value <= widget.max:
        return f"'{widget.id}' is {shortened(value)}: enter a number from {widget.min:g} to {widget.max:g}."
    return None
