"""Results and errors stay where a user looks for them: beneath the node, after undo, other tabs and a reload."""

from __future__ import annotations

from typing import Any

import pytest

from devtools.server import Server
from visits import RENDERERS, needs_browser, visited

PICTURES = {"medium": "plain", "seed": 1, "scenes": "a fox\na house"}
PROMPT = {
    "1": {"class_type": "CBLoadDemoModel", "inputs": {}},
    "2": {"class_type": "CBDemoPictures", "inputs": {"hand": "ink", **PICTURES}},
    "3": {"class_type": "CBDemoPictures", "inputs": {"hand": "flat", **PICTURES}},
    "4": {"class_type": "CBImageClusters", "inputs": {"images": ["2", 0], "name": "a"}},
    "5": {"class_type": "CBImageClusters", "inputs": {"images": ["3", 0], "name": "b", "previous": ["4", 0]}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a picture"}},
    "7": {
        "class_type": "CBProfileSensitivity",
        "inputs": {
            "model": ["1", 0], "clusters": ["5", 0], "vae": ["1", 2], "positive": ["6", 0], "measures": "style",
            "noise_levels": 2, "features": "q and k", "seed": 0, "aspect": "1:1", "size": 128,
            "distance": "jensen_shannon",
        },
    },
    "8": {"class_type": "CBSelectLayers", "inputs": {"profile": ["7", 0], "lambda": 0.2}},
    "9": {"class_type": "CBStyleInjection", "inputs": {"model": ["1", 0], "gate": ["8", 0]}},
    "10": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 2}},
    "11": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["9", 0], "positive": ["6", 0], "negative": ["6", 0], "latent_image": ["10", 0], "seed": 5,
            "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
        },
    },
    "12": {"class_type": "SaveLatent", "inputs": {"samples": ["11", 0], "filename_prefix": "kept"}},
}  # fmt: skip
"""Measures on four pictures and paints by it: words, a map that no file names, and nothing of core that grows."""

pytestmark = needs_browser


@pytest.fixture(scope="module")
def seen(server: Server) -> dict[str, Any]:
    """What one visit saw; its screenshots are in out/kept, to be looked at."""
    return visited("kept", server, prompt=PROMPT)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_visit_went_to_its_end(seen: dict[str, Any], renderer: str) -> None:
    assert "problem" not in seen[renderer], seen[renderer]["problem"]
    ours = [complaint for complaint in seen["complaints"] if "conditional_balance" in complaint]
    assert [complaint for complaint in ours if not complaint.startswith("Failed to load resource")] == []


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_run_says_its_results_and_adds_no_step_of_undo(seen: dict[str, Any], renderer: str) -> None:
    ran = seen[renderer]["ran"]
    assert seen[renderer]["empty"]["CBImageClusters 5"]["words"] == ""
    assert seen[renderer]["end"]["event"] == "execution_success"
    assert ran["CBImageClusters 5"]["words"].startswith("2 clusters: a (2), b (2)")
    assert ran["CBProfileSensitivity 7"]["map"] and ran["CBSelectLayers 8"]["map"]
    assert "of 21 layers" in ran["CBSelectLayers 8"]["words"]
    assert not seen[renderer]["moved"], seen[renderer]["boxes"]
    assert seen[renderer]["steps"] == 0


@pytest.mark.parametrize("moment", ["undone", "tabbed", "reloaded"])
@pytest.mark.parametrize("renderer", RENDERERS)
def test_results_are_still_there(seen: dict[str, Any], renderer: str, moment: str) -> None:
    assert seen[renderer][moment] == seen[renderer]["ran"]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_failure_stands_beneath_its_node_until_the_next_run(seen: dict[str, Any], renderer: str) -> None:
    assert seen[renderer]["failedEnd"]["event"] == "execution_error"
    for moment in ("failed", "failedReloaded"):
        failed = seen[renderer][moment]["CBImageClusters 5"]
        assert failed["error"] and "'name'" in failed["words"]
    assert seen[renderer]["mendedEnd"]["event"] == "execution_success"
    assert not any(node["error"] for node in seen[renderer]["mended"].values())


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_broken_graph_is_refused_and_the_node_says_why(seen: dict[str, Any], renderer: str) -> None:
    assert seen[renderer]["refusedEnd"]["event"] == "refused"
    refused = seen[renderer]["refused"]["CBSelectLayers 8"]
    assert refused["error"] and refused["words"].startswith("'pin'")
