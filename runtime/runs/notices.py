"""What was asked for and did not happen, said once a run: in the log, and under the node that it concerns."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field

from comfy_execution.utils import get_executing_context

EVENT = "conditional_balance.warning"
"""What `js/` listens to: {"node": execution id, "text": a sentence, "first": whether it is the first of the run}."""


def node_here() -> str | None:
    """The id of the node that is being executed; None in a script or a test that calls a node by itself."""
    context = get_executing_context()
    return None if context is None else context.node_id


@dataclass
class Notices:
    """The sentences of one run. `name` is how the log calls the node, `node` its id on the page, if it has one."""

    name: str
    node: str | None
    said: list[str] = field(default_factory=list)

    def say(self, sentence: str) -> None:
        """Say a sentence, unless this run has said it before."""
        if sentence in self.said:
            return
        logging.warning("%s: %s", self.name, sentence)
        _tell_page(self.node, sentence, first=not self.said)
        self.said.append(sentence)


def _tell_page(node: str | None, sentence: str, first: bool) -> None:
    server = sys.modules.get("server")  # main.py has imported it; a script has no page to tell
    instance = getattr(getattr(server, "PromptServer", None), "instance", None)
    if node is not None and instance is not None:
        instance.send_sync(EVENT, {"node": node, "text": sentence, "first": first})
