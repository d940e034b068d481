"""Before and after under one slider in a real browser: pointer, keyboard, both renderers, both themes, a reload."""

from __future__ import annotations

from typing import Any

import pytest

from devtools.server import Server
from visits import RENDERERS, needs_browser, visited

PICTURE = {"width": 96, "height": 64, "batch_size": 1}
PROMPT = {
    "1": {"class_type": "EmptyImage", "inputs": {**PICTURE, "color": 0xCC3300}},
    "2": {"class_type": "EmptyImage", "inputs": {**PICTURE, "color": 0x0033CC, "batch_size": 3}},
    "3": {"class_type": "CBBeforeAfter", "inputs": {"before": ["1", 0], "after": ["4", 0]}},
    "4": {"class_type": "RebatchImages", "inputs": {"images": ["2", 0], "batch_size": 2}},
}
"""The pictures after come as a list: a batch of two, and one."""

pytestmark = needs_browser


@pytest.fixture(scope="module")
def seen(server: Server) -> dict[str, Any]:
    """What one visit saw; its screenshots are in out/compare, to be looked at."""
    return visited("compare", server, prompt=PROMPT)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_visit_went_to_its_end(seen: dict[str, Any], renderer: str) -> None:
    assert "problem" not in seen[renderer], seen[renderer]["problem"]
    assert [complaint for complaint in seen["complaints"] if "conditional_balance" in complaint] == []


@pytest.mark.parametrize("renderer", RENDERERS)
def test_before_a_run_it_says_what_to_do(seen: dict[str, Any], renderer: str) -> None:
    assert seen[renderer]["empty"] == {"note": "Run once to compare the pictures.", "pairs": [], "at": "50%"}


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_run_shows_a_pair_for_each_picture(seen: dict[str, Any], renderer: str) -> None:
    ran = seen[renderer]["ran"]
    assert ran["note"] == "" and len(ran["pairs"]) == 3
    assert all(pair == {"alts": ["before", "after"], "pixels": [96, 96], "seen": True} for pair in ran["pairs"])


@pytest.mark.parametrize("renderer", RENDERERS)
def test_pointer_and_keys_move_the_slider_and_nothing_else(seen: dict[str, Any], renderer: str) -> None:
    assert seen[renderer]["dragged"]["at"] in ("24%", "25%", "26%")
    dragged = int(seen[renderer]["dragged"]["at"].rstrip("%"))
    assert seen[renderer]["keyed"]["at"] == f"{dragged + 2}%"
    assert not seen[renderer]["moved"]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_it_is_still_there_after_undo_and_reload(seen: dict[str, Any], renderer: str) -> None:
    assert seen[renderer]["undone"]["pairs"] == seen[renderer]["reloaded"]["pairs"] == seen[renderer]["ran"]["pairs"]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_run_leaves_the_node_as_high_as_it_was(seen: dict[str, Any], renderer: str) -> None:
    before, after = seen[renderer]["heights"]
    assert before == after
