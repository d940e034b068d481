"""The part of a prompt behind one of its pictures, to be painted again with other values.

A prompt is ComfyUI's: nodes by id, each {"class_type", "inputs"}, where an input is a value or a link [id, slot].
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from comfy_execution.graph_utils import is_link

Node = Mapping[str, Any]
Find = Callable[[str], Node]
"""The node of an id."""

NOISE_LEVELS = "sigmas"
STEPS = "steps"
PARTS = ("start_at_step", "end_at_step", "step")
"""Inputs that count steps: those of a sampler's own schedule, or of one that is split."""


def links(node: Node) -> Iterator[tuple[str, str]]:
    """The inputs of a node that come from other nodes, and the ids of those."""
    for name, value in node["inputs"].items():
        if is_link(value):  # a list may be a value too, such as two choices of a dropdown
            yield name, value[0]


def nearest(find: Find, start: str, kinds: Collection[str]) -> str | None:
    """The id of the first node of one of `kinds`, fewest links before node `start`; None when there is none."""
    waiting, met = deque([start]), {start}
    while waiting:
        name = waiting.popleft()
        if find(name)["class_type"] in kinds:
            return name
        fresh = [source for _, source in links(find(name)) if source not in met]
        met.update(fresh)
        waiting.extend(fresh)
    return None


def between(find: Find, start: str, dial: str) -> set[str]:
    """All nodes that have to run again for `start` when `dial` changes, and those that count their samplers' steps."""
    reaches: dict[str, bool] = {}

    def visit(name: str) -> bool:
        if name not in reaches:
            reaches[name] = name == dial
            below = [visit(source) for _, source in links(find(name))]
            reaches[name] = reaches[name] or any(below)
        return reaches[name]

    visit(start)
    again = {name for name, found in reaches.items() if found}
    return again | _schedulers(find, again)


def _schedulers(find: Find, again: Collection[str]) -> set[str]:
    """What leads to the noise levels of samplers that run again."""
    waiting, met = list(again), set()
    while waiting:
        found = {source for name, source in links(find(waiting.pop())) if name == NOISE_LEVELS}
        waiting += found - met
        met |= found
    return met


def steps_of(find: Find, name: str) -> int | None:
    """How many steps the inputs of a node are counted in: its own, or those of the schedule that it is given.

    None where there are none, or where another node than one of a single number brings them.
    """
    inputs, sources = find(name)["inputs"], dict(links(find(name)))
    if STEPS not in inputs:
        return steps_of(find, sources[NOISE_LEVELS]) if NOISE_LEVELS in sources else None
    if STEPS not in sources:
        return inputs[STEPS]
    numbers = [each for each in find(sources[STEPS])["inputs"].values() if type(each) is int]
    return numbers[0] if len(numbers) == 1 else None


def cheaper(inputs: Mapping[str, Any], steps: int, given: int | None) -> dict[str, Any]:
    """A node's inputs with at most so many `steps` of the `given`; its part of the schedule stays what it is.

    Where it is not known how many were given, parts cannot be counted anew: such a node keeps its steps.
    """
    parts = [name for name in PARTS if isinstance(inputs.get(name), int)]
    if given is None:
        return {**inputs, STEPS: steps} if STEPS in inputs and not parts else dict(inputs)
    fewer = min(given, steps)
    counted = {name: _counted(inputs[name], given, fewer) for name in parts}
    return {**inputs, **counted, **({STEPS: fewer} if STEPS in inputs else {})}


def _counted(step: int, given: int, fewer: int) -> int:
    """A step of `given` ones as one of `fewer`; no stage of a schedule is left without any, where there are two."""
    found = round(step * fewer / max(given, 1))
    return found if step >= given else min(max(found, min(step, 1)), max(fewer - 1, 0))
