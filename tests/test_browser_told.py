"""What a sampler's run says of a node stands beneath it, also inside a subgraph, and stays there."""

from __future__ import annotations

from typing import Any

import pytest

from devtools.server import Server
from visits import RENDERERS, needs_browser, visited

PICTURE = {"hand": "flat", "medium": "plain", "seed": 0, "scenes": "a cat in the city"}
PROMPT = {
    "1": {"class_type": "CBLoadDemoModel", "inputs": {}},
    "2": {"class_type": "CBDemoPictures", "inputs": PICTURE},
    "3": {"class_type": "VAEEncode", "inputs": {"pixels": ["2", 0], "vae": ["1", 2]}},
    "4": {"class_type": "CBSubject", "inputs": {"clip": ["1", 1], "prompt": "a cat, flat drawing", "phrase": "cat"}},
    "6": {
        "class_type": "CBGradSAMBlend",
        "inputs": {"model": ["1", 0], "reference": ["3", 0], "subject": ["4", 1], "windows": "0.3-0.4, 0.6-0.9"},
    },
    "7": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["6", 0], "positive": ["4", 0], "negative": ["4", 0], "latent_image": ["6", 1], "seed": 5,
            "steps": 4, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.5,
        },
    },
    "8": {"class_type": "SaveLatent", "inputs": {"samples": ["7", 0], "filename_prefix": "told"}},
}  # fmt: skip
"""Its first window lies before the run's steps."""
WORDS = "Nothing was done in 0.3-0.4"

pytestmark = needs_browser


@pytest.fixture(scope="module")
def seen(server: Server) -> dict[str, Any]:
    """What one visit saw; its screenshots are in out/told, to be looked at."""
    return visited("told", server, prompt=PROMPT)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_visit_went_to_its_end(seen: dict[str, Any], renderer: str) -> None:
    assert "problem" not in seen[renderer], seen[renderer]["problem"]
    assert [complaint for complaint in seen["complaints"] if "conditional_balance" in complaint] == []


@pytest.mark.parametrize("moment", ["ran", "cached", "undone", "tabbed", "reloaded", "inside", "insideReloaded"])
@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_warning_of_the_run_stands_beneath_the_node(seen: dict[str, Any], renderer: str, moment: str) -> None:
    assert WORDS in seen[renderer][moment]["words"]
    assert seen[renderer][moment]["warning"] and not seen[renderer][moment]["error"]


@pytest.mark.parametrize("moment", ["mended", "mendedReloaded"])
@pytest.mark.parametrize("renderer", RENDERERS)
def test_it_goes_with_a_run_without_it(seen: dict[str, Any], renderer: str, moment: str) -> None:
    assert "Nothing was done" not in seen[renderer][moment]["words"] and not seen[renderer][moment]["warning"]


@pytest.mark.parametrize("moment", ["failed", "failedReloaded"])
@pytest.mark.parametrize("renderer", RENDERERS)
def test_an_error_while_sampling_stands_beneath_our_node_too(seen: dict, renderer: str, moment: str) -> None:
    assert seen[renderer]["failedEnd"]["event"] == "execution_error"
    assert seen[renderer][moment]["words"].startswith("'mode' paper stops the sampler")
    assert seen[renderer][moment]["error"]
