"""What a run says of a node: told by sampler, kept by prompt, replaced by the next run, and an error of ours too."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
import server
from comfy.model_management import OOM_EXCEPTION
from comfy_execution import progress
from comfy_execution.graph import DynamicPrompt
from comfy_execution.utils import CurrentNodeContext
from style_case import failing, styled

from conditional_balance.engine.grammar import parse
from conditional_balance.runtime.runs.notices import EVENT, NO_MEMORY, PROMPTS, Notices, fresh_node, told_in
from tiny import cond, latent, sample


def said(prompt: str) -> list[tuple]:
    return [(told.node, told.by, told.texts, told.error) for told in told_in(prompt)]


def test_a_run_replaces_what_the_same_sampler_said_in_another_prompt() -> None:
    with CurrentNodeContext("replaced", "11"):
        notices = Notices("Style injection", "9")
        for sentence in ("One.", "One.", "Two."):
            notices.say(sentence)
        assert said("replaced") == [("9", "11", ("One.", "Two."), None)]
        Notices("Style injection", "9").say("Three.")  # the sampler's second run in this prompt
        assert said("replaced") == [("9", "11", ("One.", "Two.", "Three."), None)]
    with CurrentNodeContext("replaced again", "11"):
        Notices("Style injection", "9")
        assert said("replaced again") == [("9", "11", (), None)]
    with CurrentNodeContext("replaced for good", "9"):
        fresh_node()
    assert said("replaced for good") == [("9", None, (), None)]


@pytest.fixture
def looped() -> Iterator[None]:
    """A prompt in execution in which a loop has put copies of nodes 9 and 11 for its second turn."""
    before = progress.global_progress_registry
    prompt = DynamicPrompt({"9": {}, "11": {}, "20": {}})
    for name in ("9", "11"):
        prompt.add_ephemeral_node(f"20.0.0.{name}", {}, "20", name)
    progress.global_progress_registry = progress.ProgressRegistry("it", prompt)
    yield
    progress.global_progress_registry = before


def test_what_copies_of_a_loop_say_stands_under_the_node_of_the_page(looped: None) -> None:
    for turn, prefix in enumerate(("", "20.0.0.")):
        with CurrentNodeContext("looped", f"{prefix}9"):
            node = fresh_node()
        with CurrentNodeContext("looped", f"{prefix}11"):
            Notices("Style injection", node).say(f"Turn {turn}.")
    assert said("looped") == [("9", None, (), None), ("9", "11", ("Turn 0.", "Turn 1."), None)]


@pytest.mark.parametrize("page", ["mine", None])
def test_only_the_page_that_sent_the_prompt_is_told(page: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On others the same ids are other nodes; a client of the API has no page."""
    loop, events = asyncio.new_event_loop(), []
    instance = server.PromptServer(loop)
    instance.client_id = page
    monkeypatch.setattr(instance, "send_sync", lambda event, data, to=None: events.append((event, to)))
    with CurrentNodeContext(f"page {page}", "11"):
        Notices("Style injection", "9").say("One.")
    loop.close()
    assert set(events) == ({(EVENT, page)} if page else set()) and said(f"page {page}")[0][2] == ("One.",)


def test_a_thread_that_makes_calls_of_a_run_speaks_for_its_sampler() -> None:
    """Where several cards share a run: no node is being executed in the thread of one."""
    with CurrentNodeContext("thread", "11"):
        notices = Notices("Style injection", "9")
    thread = threading.Thread(target=notices.say, args=("One.",))
    thread.start()
    thread.join()
    assert said("thread") == [("9", "11", ("One.",), None)]


def test_only_so_many_prompts_are_remembered() -> None:
    for number in range(PROMPTS + 1):
        with CurrentNodeContext(f"many {number}", "11"):
            Notices("Style injection", "9")
    assert said("many 0") == [] and said("many 1") != []


def test_an_error_of_ours_is_told_and_another_is_not() -> None:
    with CurrentNodeContext("failed", "11"):
        notices = Notices("Style injection", "9")
        with pytest.raises(ValueError), notices.own_errors():
            raise ValueError("core's")
        assert said("failed")[0][3] is None
        with pytest.raises(ValueError), notices.own_errors():
            parse("o1.8.9.9")
        assert "o1.8.9.9" in said("failed")[0][3]


@pytest.mark.parametrize(
    "problem", [OOM_EXCEPTION("Allocation on device"), RuntimeError("MPS backend out of memory"), RuntimeError("other")]
)
def test_memory_that_ran_out_is_told_under_the_node_that_takes_some(sd15_model, problem) -> None:
    """ComfyUI's own words stand at the sampler and know nothing of the node; they go on as they are."""
    prompt = f"memory {problem}"
    with CurrentNodeContext(prompt, "9"):
        injected = styled(failing(lambda at: problem, "")(sd15_model), "o9-11")
    with CurrentNodeContext(prompt, "11"), pytest.raises(RuntimeError) as raised:
        sample(injected, cond(sd15_model, 1, 2), cond(sd15_model, 2), latent(3, 2), steps=2)
    assert raised.value is problem
    assert said(prompt)[-1][3] == (None if str(problem) == "other" else NO_MEMORY)


@pytest.mark.parametrize(
    ("rows", "batch", "says"),
    [
        (3, 2, "The positive prompt has 3 rows for 2 pictures, so the last are left out: give one for all"),
        (2, 3, "The positive prompt has 2 rows for 3 pictures, so they are repeated in turn: give one for all"),
        (3, 3, None),
        (1, 3, None),
    ],
)
def test_prompts_that_do_not_go_with_the_pictures(sd15_model, rows: int, batch: int, says: str | None) -> None:
    injected = _injected(sd15_model)
    with CurrentNodeContext(f"rows {rows} {batch}", "11"):
        sample(injected, cond(sd15_model, 1, rows), cond(sd15_model, 2), latent(3, batch), steps=1)
    ((node, by, texts, error),) = said(f"rows {rows} {batch}")
    assert (node, by, error) == ("9", "11", None)
    assert texts == () if says is None else texts[0].startswith(says)


def test_a_batch_of_one_is_told_under_the_injection_too(sd15_model) -> None:
    injected = _injected(sd15_model)
    with CurrentNodeContext("one", "11"), pytest.raises(ValueError, match="has only one"):
        sample(injected, cond(sd15_model, 1, 3), cond(sd15_model, 2), latent(3, 1), steps=1)
    assert "has only one" in said("one")[0][3]


def _injected(model):
    with CurrentNodeContext("patched", "9"):
        return styled(model, "o9-11")
