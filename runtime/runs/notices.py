"""What was asked for and did not happen, said once a run: in the log, and under the node that it concerns.

The page gets it while the sampler runs; the server remembers it by prompt, for pages that are opened later.
"""

from __future__ import annotations

import logging
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from threading import Lock

from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context

from .memory import out_of_memory

EVENT = "conditional_balance.told"
"""What `js/` listens to; it brings a `Told`."""
PROMPTS = 64
"""How many prompts' sentences are remembered: as many as nodes/results.py looks through."""
NO_MEMORY = (
    "Memory ran out in this run, of which this node takes a part: paint fewer or smaller pictures at once, start "
    "ComfyUI with --lowvram, or bypass this node."
)
MOST = 8
"""Sentences under a node from one sampler; all of them are in the log."""

_PACK = __name__.partition(".runtime.")[0]
_told: OrderedDict[str, list[Told]] = OrderedDict()
_lock = Lock()


@dataclass(frozen=True)
class Told:
    """What the runs of a sampler node `by` in one prompt say under `node`; it replaces what they said before.

    `by` None forgets everything under the node. `error` is the sentence of a run that failed.
    """

    node: str
    by: str | None = None
    texts: tuple[str, ...] = ()
    error: str | None = None


def fresh_node() -> str | None:
    """The id on the page of the node that is being executed, under which nothing of earlier prompts stands any more.

    In a list or a loop it is executed several times, and what samplers have said since the first time stays.
    None in a script or a test that calls a node by itself.
    """
    context = get_executing_context()
    if context is None:
        return None
    node = _on_page(context.node_id)
    if not any(told.node == node for told in told_in(context.prompt_id)):
        _tell(context.prompt_id, Told(node))
    return node


def _on_page(node: str) -> str:
    """The node of the page that an executed one stands for: loops and other nodes put copies into the prompt."""
    prompt = get_progress_state().dynprompt
    return prompt.get_display_node_id(node) if prompt.has_node(node) else node


def told_in(prompt: str) -> tuple[Told, ...]:
    """What was told in a prompt's execution, in order; nothing when it was too long ago."""
    with _lock:
        return tuple(_told.get(prompt, ()))


@dataclass
class Notices:
    """The sentences of one run. `name` is how the log calls the node, `node` its id on the page, if it has one."""

    name: str
    node: str | None
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._context = get_executing_context()  # the sampler's, not the node's; threads of a run have none
        self._tell()  # that nothing is wrong so far: what an earlier run said is gone

    def say(self, sentence: str) -> None:
        """Say a sentence, unless this run has said it before."""
        if sentence in self.said:
            return
        logging.warning("%s: %s", self.name, sentence)
        self.said.append(sentence)
        self._tell()

    @contextmanager
    def own_errors(self) -> Iterator[None]:
        """A ValueError that the pack raises in here stands under the node too: core shows it at the sampler only.

        So does a word on memory that ran out, whoever asked for the last of it.
        """
        try:
            yield
        except RuntimeError as problem:
            if out_of_memory(problem):
                self._tell(NO_MEMORY)
            raise
        except ValueError as problem:
            if not getattr(problem, "told", False) and _is_ours(problem):
                vars(problem)["told"] = True  # by the innermost of several conditions
                self._tell(str(problem))
            raise

    def _tell(self, error: str | None = None) -> None:
        context = get_executing_context() or self._context
        if self.node is None or context is None:
            return
        by = _on_page(context.node_id)
        earlier = (told for told in told_in(context.prompt_id) if (told.node, told.by) == (self.node, by))
        texts = dict.fromkeys((*next((told.texts for told in earlier), ()), *self.said))
        _tell(context.prompt_id, Told(self.node, by, tuple(texts)[:MOST], error))


def _is_ours(problem: ValueError) -> bool:
    """Whether the pack's own code raised it: other packs' and core's errors are not our node's."""
    trace = problem.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith(f"{_PACK}.")


def _tell(prompt: str, told: Told) -> None:
    """Remember it, and tell the page that has sent the prompt, if one has: on others the same ids are other nodes."""
    with _lock:
        before = _told.pop(prompt, [])
        _told[prompt] = [*(each for each in before if not _replaces(told, each)), told]
        while len(_told) > PROMPTS:
            _told.popitem(last=False)
    server = sys.modules.get("server")  # main.py has imported it; a script has no page to tell
    instance = getattr(getattr(server, "PromptServer", None), "instance", None)
    page = getattr(instance, "client_id", None)
    if (
        instance is not None and page is not None and not instance.loop.is_closed()
    ):  # a server that has ended may still be in memory
        instance.send_sync(EVENT, asdict(told), page)


def _replaces(new: Told, old: Told) -> bool:
    return new.node == old.node and new.by in (None, old.by)
