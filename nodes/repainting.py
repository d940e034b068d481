"""The part of a prompt behind one of its pictures, to be painted again with other values.

A prompt is ComfyUI's: nodes by id, each {"class_type", "inputs"}, where an input is a value or a link [id, slot].
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

Node = Mapping[str, Any]
Find = Callable[[str], Node]
"""The node of an id."""

NOISE_LEVELS = "sigmas"
PARTS = ("start_at_step", "end_at_step")
"""Inputs that count the steps of `steps`."""


def links(node: Node) -> Iterator[tuple[str, str]]:
    """The inputs of a node that come from other nodes, and the ids of those."""
    for name, value in node["inputs"].items():
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
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


def cheaper(inputs: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """A node's inputs with at most so many `steps`; the part of the schedule that it samples stays the same."""
    given = inputs.get("steps")
    if given is None:
        return dict(inputs)
    if not isinstance(given, int):
        return {**inputs, "steps": steps}
    scale = min(1.0, steps / max(given, 1))
    parts = {name: round(scale * inputs[name]) for name in PARTS if isinstance(inputs.get(name), int)}
    return {**inputs, **parts, "steps": min(given, steps)}
