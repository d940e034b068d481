"""What the pack's nodes showed in the last runs of a workflow, from the server's own history.

A reloaded page asks for it: core keeps what nodes show in the page's memory only.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from .shown import ERROR

RECENT = 64  # entries of the history that are looked through
OURS = "CB"  # how the ids of our nodes begin


class _Run(NamedTuple):
    """What a run of a workflow left: by node id its type and what it showed."""

    workflow: str | None
    results: dict[str, dict[str, Any]]


def show_results(asked: Mapping[str, Any]) -> dict[str, Any]:
    """`results` by node id, each {"type", "output"}, of the workflow {"workflow": id}; later runs win."""
    results: dict[str, Any] = {}
    for run in _recent():
        if run.workflow is not None and run.workflow == asked.get("workflow"):
            results |= run.results
    return {"results": results}


def _recent() -> list[_Run]:
    """The last runs in order; none where there is no server."""
    server = sys.modules.get("server")  # as in routes.offer
    if server is None:
        return []
    return list(server.PromptServer.instance.prompt_queue.get_history(max_items=RECENT, map_function=_run_of).values())


def _run_of(entry: Mapping[str, Any]) -> _Run:
    _, _, prompt, extra, *_ = entry["prompt"]
    workflow = (extra.get("extra_pnginfo") or {}).get("workflow") or {}
    outputs = dict(entry["outputs"]) | _failure(entry.get("status") or {})
    kinds = {node: prompt[node]["class_type"] for node in outputs if node in prompt}
    shown = {node: {"type": kind, "output": outputs[node]} for node, kind in kinds.items() if kind.startswith(OURS)}
    return _Run(workflow.get("id"), shown)


def _failure(status: Mapping[str, Any]) -> dict[str, Any]:
    """The sentence of the node that ended the run, as if the node had shown it."""
    failed = [data for event, data in status.get("messages", ()) if event == "execution_error"]
    return {data["node_id"]: {ERROR: [data["exception_message"].strip()]} for data in failed}
