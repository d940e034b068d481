"""Suggest Style Amount on a real server, measured by a vision network instead of the model's own layers."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from test_browser_suggest import PROMPT

from devtools.server import Server

AMOUNTS = [0.0, 0.15, 0.3, 0.45, 0.6, 0.75]


@cache
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


def test_a_list_of_pictures_gets_one_amount_and_one_strip(server: Server) -> None:
    """Core hands on the first value of what the node's own copies give, and took those of a list for other outputs."""
    prompt = PROMPT | {
        "3": with_inputs(PROMPT["3"], image=["12", 0]),
        "6": with_inputs(PROMPT["6"], width=64, height=64),
        "9": with_inputs(PROMPT["9"], steps=1),
        "11": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 2, "color": 0xFF8000}},
        "12": {"class_type": "RebatchImages", "inputs": {"images": ["11", 0], "batch_size": 1}},
        "13": {"class_type": "PreviewImage", "inputs": {"images": ["9", 1]}},
        "14": {"class_type": "PreviewAny", "inputs": {"source": ["9", 0]}},
    }
    outputs = server.run(prompt)
    (shown,) = (each for each in outputs.values() if "cb_suggested" in each)
    (found,), (words,) = shown["cb_suggested"], shown["cb_summary"]
    assert len(found["files"]) == len(AMOUNTS) and "By 2 pictures of a list; the first is shown." in words
    assert len(outputs["13"]["images"]) == 1 and float(outputs["14"]["text"][0]) == found["suggested"]


def with_inputs(node: dict[str, Any], **inputs: Any) -> dict[str, Any]:
    return {**node, "inputs": {**node["inputs"], **inputs}}
