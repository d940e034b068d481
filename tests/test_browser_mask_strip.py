"""The mask strip in a real browser, in both renderers: a tile for each window, and a view that the workflow keeps."""

from __future__ import annotations

from typing import Any

import pytest

from devtools.server import Server
from visits import RENDERERS, needs_browser, visited

WINDOWS = ["22% to 48%", "48% to 68%", "68% to 90%"]
PICTURES = {"hand": "flat", "medium": "plain", "seed": 0, "scenes": "a cat in the city\na dog in the city"}
PROMPT = {
    "1": {"class_type": "CBLoadDemoModel", "inputs": {}},
    "2": {"class_type": "CBDemoPictures", "inputs": PICTURES},
    "3": {"class_type": "VAEEncode", "inputs": {"pixels": ["2", 0], "vae": ["1", 2]}},
    "4": {
        "class_type": "CBSubject",
        "inputs": {"clip": ["1", 1], "prompt": "a cat in the city, flat drawing", "phrase": "cat, city"},
    },
    "5": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
    "6": {
        "class_type": "CBGradSAMBlend",
        "inputs": {"model": ["1", 0], "reference": ["3", 0], "subject": ["4", 1]},
    },
    "7": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["6", 0], "positive": ["4", 0], "negative": ["5", 0], "latent_image": ["6", 1], "seed": 5,
            "steps": 4, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
        },
    },
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["1", 2]}},
    "9": {
        "class_type": "CBAttributionPreview",
        "inputs": {"attribution": ["6", 2], "after": ["7", 0], "image": ["8", 0]},
    },
}  # fmt: skip
"""Two pictures with two subjects each."""

pytestmark = needs_browser


@pytest.fixture(scope="module")
def seen(server: Server) -> dict[str, Any]:
    """What one visit saw; its screenshots are in out/mask_strip, to be looked at."""
    return visited("mask_strip", server, prompt=PROMPT)


def files(state: dict[str, Any]) -> list[str]:
    return [picture["file"] for tile in state["tiles"] for picture in tile["pictures"]]


def test_our_scripts_do_not_complain(seen: dict[str, Any]) -> None:
    assert [complaint for complaint in seen["complaints"] if "conditional_balance" in complaint] == []


@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_visit_went_to_its_end(seen: dict[str, Any], renderer: str) -> None:
    assert "problem" not in seen[renderer], seen[renderer]["problem"]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_before_a_run_it_says_what_to_do(seen: dict[str, Any], renderer: str) -> None:
    assert seen[renderer]["empty"]["note"] == "Run once to see what each window found."
    assert seen[renderer]["empty"]["tiles"] == []


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_run_shows_a_tile_for_each_window(seen: dict[str, Any], renderer: str) -> None:
    first = seen[renderer]["first"]
    assert seen[renderer]["end"]["event"] == "execution_success"
    assert [tile["window"] for tile in first["tiles"]] == WINDOWS
    for tile in first["tiles"]:
        assert tile["words"].startswith("sigma ") and "% of the picture" in tile["words"]
        assert [picture["alt"] for picture in tile["pictures"]] == [f"{tile['window']}, overlay {n}" for n in (1, 2)]
        assert all(min(picture["wide"], picture["high"]) > 40 for picture in tile["pictures"])
    assert first["pressed"] == ["overlay"] and first["note"] == "" and first["others"] == 0


@pytest.mark.parametrize("renderer", RENDERERS)
def test_mouse_and_keyboard_switch_the_view(seen: dict[str, Any], renderer: str) -> None:
    views = [seen[renderer][moment] for moment in ("first", "clicked", "keyed")]
    assert [view["pressed"] for view in views] == [["overlay"], ["mask"], ["map"]]
    assert [view["saved"] for view in views] == [None, "mask", "map"]
    assert len({file for view in views for file in files(view)}) == 3 * len(WINDOWS) * 2


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_reloaded_workflow_brings_view_and_pictures(seen: dict[str, Any], renderer: str) -> None:
    kept = files(seen[renderer]["keyed"])
    assert files(seen[renderer]["reloaded"]) == files(seen[renderer]["pasted"]["first"]) == kept


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_pasted_node_shows_no_result_of_another(seen: dict[str, Any], renderer: str) -> None:
    copy = seen[renderer]["pasted"]["copy"]
    assert copy["tiles"] == [] and copy["note"] == "Run once to see what each window found."
    assert copy["saved"] == "map"


@pytest.mark.parametrize("renderer", RENDERERS)
def test_it_works_inside_a_subgraph(seen: dict[str, Any], renderer: str) -> None:
    inside = seen[renderer]["subgraph"]
    assert inside["end"]["event"] == "execution_success"
    assert [tile["window"] for tile in inside["found"]["tiles"]] == WINDOWS


@pytest.mark.parametrize("renderer", RENDERERS)
def test_pictures_that_are_gone_are_told(seen: dict[str, Any], renderer: str) -> None:
    assert seen[renderer]["gone"]["note"] == "The server no longer has these pictures: run once more to see them."


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_run_leaves_the_node_as_high_as_it_was(seen: dict[str, Any], renderer: str) -> None:
    before, after = seen[renderer]["heights"]
    assert before == after
