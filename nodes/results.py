"""What the pack's nodes showed in the last runs of a workflow, from the server's own history.

A reloaded page asks for it: core keeps what nodes show in the page's memory only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..runtime.runs.notices import Told, told_in
from .shown import ERROR, TOLD

RECENT = 64  # entries of the history that are looked through
OURS = "CB"  # how the ids of our nodes begin


class _Run(NamedTuple):
    """What a run of a workflow left: by node id its type and what it showed, and what samplers told."""

    workflow: str | None
    results: dict[str, dict[str, Any]]
    told: tuple[Told, ...]


def show_results(asked: Mapping[str, Any]) -> dict[str, Any]:
    """`results` by node id, each {"type", "output"}, of the workflow {"workflow": id}; later runs win."""
    results: dict[str, Any] = {}
    told: dict[tuple[str, str], dict[str, Any]] = {}
    for run in _recent():
        if run.workflow is not None and run.workflow == asked.get("workflow"):
            results |= run.results
            told = _after(told, run.told)
    return {"results": {node: _with_told(node, result, told) for node, result in results.items()}}


def _after(told: dict[tuple[str, str], dict[str, Any]], run: Iterable[Told]) -> dict[tuple[str, str], dict[str, Any]]:
    """What stands under nodes after one more run, by node and sampler: an error lasts until the next run only."""
    told = {key: {**said, "error": None} for key, said in told.items()}
    for each in run:
        if each.by is None:
            told = {key: said for key, said in told.items() if key[0] != each.node}
        else:
            told[each.node, each.by] = {"by": each.by, "texts": each.texts, "error": each.error}
    return told


def _with_told(node: str, result: dict[str, Any], told: Mapping[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    said = [words for (where, _), words in told.items() if where == node]
    return {**result, "output": {**result["output"], TOLD: said}} if said else result


def _recent() -> list[_Run]:
    """The last runs in order; none where there is no server."""
    server = sys.modules.get("server")  # as in routes.offer
    if server is None:
        return []
    return list(server.PromptServer.instance.prompt_queue.get_history(max_items=RECENT, map_function=_run_of).values())


def _run_of(entry: Mapping[str, Any]) -> _Run:
    _, number, prompt, extra, *_ = entry["prompt"]
    workflow = _part(_part(extra, "extra_pnginfo"), "workflow")
    outputs = dict(entry["outputs"]) | _failure(entry.get("status") or {})
    shown = {}
    for node, output in outputs.items():
        at = _seat(node, entry.get("meta") or {})
        if (kind := prompt.get(at, {}).get("class_type", "")).startswith(OURS):
            shown[at] = {"type": kind, "output": output}
    return _Run(workflow.get("id"), shown, told_in(number))


def _part(of: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of what a client sent with a prompt; nothing where that is no object: clients may send what they like."""
    part = of.get(name)
    return part if isinstance(part, Mapping) else {}


def _seat(node: str, meta: Mapping[str, Any]) -> str:
    """The node that shows what a node has to show: another one for nodes that it has put into the prompt by itself."""
    return (meta.get(node) or {}).get("display_node", node)


def _failure(status: Mapping[str, Any]) -> dict[str, Any]:
    """The sentence of the node that ended the run, as if the node had shown it."""
    failed = [data for event, data in status.get("messages", ()) if event == "execution_error"]
    return {data["node_id"]: {ERROR: [data["exception_message"].strip()]} for data in failed}
