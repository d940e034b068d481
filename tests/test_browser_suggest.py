"""Suggest Style Amount in a real browser: tiles of one link, an amount taken by click and by key, and nothing lost."""

from __future__ import annotations

from typing import Any

import pytest

from devtools import demo_scenes
from devtools.server import Server
from visits import RENDERERS, needs_browser, visited

SAMPLING = demo_scenes.SAMPLING | {"seed": 5, "steps": 3}
LOADED = {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2]}
STYLE = {"shows": demo_scenes.SHOWS, "lambda": 0.2, "preset": "hint 0.2", "policy": "per-step", "start_percent": 0.0}
STYLE |= {"end_percent": 1.0, "pin": "", "exclude": "", "strength": 1.0, "share": 1.0}
PROMPT = {
    "1": {"class_type": "CBLoadDemoModel", "inputs": {}},
    "2": {"class_type": "CBDemoPictures", "inputs": demo_scenes.REFERENCE},
    "3": {"class_type": "CBStyleFromPicture", "inputs": {**LOADED, "image": ["2", 0], **STYLE}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": demo_scenes.PROMPTS[0]}},
    "5": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
    "6": {"class_type": "EmptyLatentImage", "inputs": {"width": 96, "height": 96, "batch_size": 1}},
    "7": {
        "class_type": "KSampler",
        "inputs": {"model": ["3", 0], "positive": ["4", 0], "negative": ["5", 0], "latent_image": ["6", 0], **SAMPLING},
    },
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["1", 2]}},
    "9": {
        "class_type": "CBSuggestAmount",
        "inputs": {"image": ["8", 0], "lowest": 0.15, "highest": 0.75, "steps": 2},
    },
}
AMOUNTS = ["without", "0.15", "0.3", "0.45", "0.6", "0.75"]

pytestmark = needs_browser


@pytest.fixture(scope="module")
def seen(server: Server) -> dict[str, Any]:
    """What one visit saw; its screenshots are in out/suggest, to be looked at."""
    return visited("suggest", server, prompt=PROMPT)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_visit_went_to_its_end(seen: dict[str, Any], renderer: str) -> None:
    assert "problem" not in seen[renderer], seen[renderer]["problem"]
    assert [complaint for complaint in seen["complaints"] if "conditional_balance" in complaint] == []


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_run_shows_a_tile_for_each_amount_and_a_curve(seen: dict[str, Any], renderer: str) -> None:
    empty, ran = seen[renderer]["empty"], seen[renderer]["ran"]
    assert empty["note"] == "Run once to see your picture with less and with more style." and empty["names"] == []
    assert seen[renderer]["end"]["event"] == "execution_success" and seen[renderer]["steps"] == 0
    assert (ran["names"], ran["shown"], ran["curves"], ran["note"]) == (AMOUNTS, 6, 2, "")
    assert ran["words"].startswith(("Suggests", "By these numbers")) and ran["best"].startswith("Take")


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_click_takes_an_amount_and_lets_go_of_the_preset(seen: dict[str, Any], renderer: str) -> None:
    clicked, keyed = seen[renderer]["clicked"], seen[renderer]["keyed"]
    assert (clicked["amount"], clicked["preset"], clicked["taken"]) == (0.3, "as style amount says", ["0.3"])
    assert keyed["best"] == f"Take {keyed['amount']:g}"


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("after", ["undone", "again", "tabbed", "reloaded"])
def test_the_tiles_are_still_there(seen: dict[str, Any], renderer: str, after: str) -> None:
    found = seen[renderer][after]
    assert (found["names"], found["shown"], found["amount"]) == (AMOUNTS, 6, 0.3)
    assert seen[renderer]["againEnd"]["event"] == "execution_success"


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_run_leaves_the_node_as_high_as_it_was(seen: dict[str, Any], renderer: str) -> None:
    before, after = seen[renderer]["heights"]
    assert before == after
