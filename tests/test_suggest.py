"""Suggest Style Amount on a real server, measured by a vision network instead of the model's own layers."""

from __future__ import annotations

from typing import Any

import pytest
from test_browser_suggest import PROMPT

from devtools.server import Server

AMOUNTS = [0.0, 0.15, 0.3, 0.45, 0.6, 0.75]


def suggested(server: Server, kind: str | None) -> tuple[dict[str, Any], str]:
    """What the node shows of its tries by a vision network of a kind, or by the model without one; and its words."""
    prompt = PROMPT
    if kind:
        tried = PROMPT["9"] | {"inputs": {**PROMPT["9"]["inputs"], "clip_vision": ["10", 0]}}
        prompt = PROMPT | {"9": tried, "10": {"class_type": "TinyClipVision", "inputs": {"kind": kind}}}
    (shown,) = (each for each in server.run(prompt).values() if "cb_suggested" in each)
    return shown["cb_suggested"][0], shown["cb_summary"][0]


@pytest.mark.parametrize("kind", ["clip_vision_model", "siglip_vision_model"])
def test_a_connected_vision_network_measures_style_and_content(kind: str, server: Server) -> None:
    found, words = suggested(server, kind)
    assert found["amounts"] == AMOUNTS and len(found["files"]) == len(AMOUNTS)
    assert found["style"][0] == 0 and found["content"][0] == 1
    assert len(set(found["style"])) > 2 and all(-1 <= each <= 1 for each in [*found["style"], *found["content"]])
    assert words.startswith(("Suggests", "By these numbers"))
    assert AMOUNTS[1] <= found["suggested"] <= AMOUNTS[-1] or words.startswith("By these numbers")


def test_its_numbers_are_others_than_those_of_the_model(server: Server) -> None:
    by_network, _ = suggested(server, "clip_vision_model")
    by_model, _ = suggested(server, None)
    assert by_network["style"] != by_model["style"] and by_network["content"] != by_model["content"]
