"""The pictures that the repository ships: they are there, small, and carry the workflow that they were made by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from devtools import figures, pictures
from devtools.comfyui import ROOT
from devtools.examples import EXAMPLES
from devtools.steps import Failed

DEMOS = {name: path for name, path in EXAMPLES.items() if name.endswith("_demo")}
CURE = "run `python dev.py pictures`"


def nodes(graph: dict[str, Any]) -> dict[Any, tuple[str, Any]]:
    """What a workflow computes: its nodes and their values, wherever they stand, those inside subgraphs too."""
    graphs = [graph, *graph.get("definitions", {}).get("subgraphs", [])]
    return {
        node["id"]: (node["type"], node.get("widgets_values"))
        for each in graphs
        for node in each["nodes"]
        if "Note" not in node["type"]
    }


def makers() -> dict[str, Path]:
    """The demo workflow that makes docs/NAME.png, by NAME."""
    saved = {
        str(node["widgets_values"][0]).removeprefix("demo_"): path
        for path in DEMOS.values()
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]
        if node["type"] == "SaveImage"
    }
    return saved | {name: DEMOS[each.of] for name, each in figures.OVERVIEWS.items()}


@pytest.mark.parametrize("name", [name for name in makers() if (ROOT / "docs" / f"{name}.png").exists()])
def test_a_picture_in_docs_carries_the_workflow_as_it_is_now(name: str) -> None:
    with Image.open(ROOT / "docs" / f"{name}.png") as picture:
        assert "workflow" in picture.info and "prompt" in picture.info, CURE
        carried = json.loads(picture.info["workflow"])
    assert nodes(carried) == nodes(json.loads(makers()[name].read_text(encoding="utf-8"))), CURE


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_workflow_has_its_thumbnail(name: str) -> None:
    with Image.open(EXAMPLES[name].with_suffix(".jpg")) as picture:
        assert max(picture.size) <= 512 and picture.format == "JPEG"


def test_a_workflow_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(Failed, match=r"There is no demo workflow no_such_demo; there are .*style_balanced_demo"):
        pictures._chosen(["no_such_demo"])
