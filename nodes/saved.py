"""Prompts that were saved with an older version of the pack, in today's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def renewed(request: dict[str, Any]) -> dict[str, Any]:
    """A request to run a prompt, as ComfyUI's `add_on_prompt_handler` hands it out, with every node of ours renewed."""
    prompt = request.get("prompt")
    if not isinstance(prompt, Mapping):
        return request
    return request | {"prompt": {name: _renewed(node) for name, node in prompt.items()}}


def _renewed(node: Any) -> Any:
    """In 0.1.0 lambda above 1 of Select Layers was a number of layers; that is an input of its own now."""
    if not isinstance(node, Mapping) or node.get("class_type") != "CBSelectLayers":
        return node
    inputs = node.get("inputs", {})
    number = inputs.get("lambda")
    if isinstance(number, bool) or not isinstance(number, int | float) or number <= 1:
        return node
    return {**node, "inputs": inputs | {"lambda": 1.0, "number_of_layers": int(number)}}
