"""Example workflows and blueprints in a real server: offered, built from the schemas, run by their demo twins."""

from __future__ import annotations

import io
import json
import re
import urllib.parse
from pathlib import Path
from typing import Any

import comfyui_version
import numpy as np
import pytest
from PIL import Image

from devtools import build_examples, comfyui, examples, families
from devtools.server import ROOT, Server
from devtools.sheet import Sheet
from devtools.workflow import to_prompt

EXAMPLES = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in examples.EXAMPLES.items()}
BLUEPRINTS = {path.stem: path for path in (ROOT / "subgraphs").glob("*.json")}
DEMOS = sorted(name for name in EXAMPLES if name.endswith("_demo"))
CHECKPOINTS = sorted(EXAMPLES.keys() - set(DEMOS))
STANDS_FOR = {"CBLoadImageClusters": "CBImageClusters"}  # the demo draws its pictures, so it reads no folder


def test_workflows_are_offered(server: Server) -> None:
    offered = json.loads(server.get("/workflow_templates"))
    for pack, demos in {"conditional_balance": False, "conditional_balance_demo": True}.items():
        titles = {title for name, title in examples.TITLES.items() if (name in examples.DEMOS) == demos}
        assert set(offered[pack]) == titles


def test_templates_come_in_the_order_of_what_people_want() -> None:
    for demos in (False, True):
        titles = [title for name, title in examples.TITLES.items() if (name in examples.DEMOS) == demos]
        assert titles == sorted(titles) and titles[0].startswith("1 Style from a picture")


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - examples.DEMOS))
def test_a_plain_clone_shows_no_template_that_needs_the_demo(name: str) -> None:
    text = examples.EXAMPLES[name].read_text(encoding="utf-8")
    assert not re.search(r"CB\w*Demo|demo\.", text)
    assert examples.EXAMPLES[name].parent == ROOT / "example_workflows"


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_blueprint_is_offered(name: str, server: Server) -> None:
    offered = json.loads(server.get("/global_subgraphs"))
    (number,) = [number for number, entry in offered.items() if entry["name"] == name]
    assert offered[number]["info"]["node_pack"] == "custom_nodes.conditional_balance"
    served = json.loads(server.get(f"/global_subgraphs/{urllib.parse.quote(number)}"))
    assert served["data"] == BLUEPRINTS[name].read_text(encoding="utf-8")


@pytest.mark.skipif(
    comfyui_version.__version__ != comfyui.VERSION, reason="The files are built with the pinned release's nodes."
)
def test_files_are_as_the_builder_writes_them(object_info: dict, tmp_path: Path) -> None:
    build_examples.build(object_info, tmp_path)
    for folder in ("example_workflows", "demo/example_workflows", "subgraphs"):
        built = {path.name: path.read_text() for path in (tmp_path / folder).glob("*.json")}
        assert built == {path.name: path.read_text() for path in (ROOT / folder).glob("*.json")}


FILES = {path.stem: path for path in [*examples.EXAMPLES.values(), *BLUEPRINTS.values()]}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("part", "root_last", "inner_last"),
    [("nodes", "last_node_id", "lastNodeId"), ("links", "last_link_id", "lastLinkId"), ("groups", None, "lastGroupId")],
)
def test_a_file_uses_no_number_twice(name: str, part: str, root_last: str | None, inner_last: str) -> None:
    """Newer front ends renumber what a subgraph shares with the root, so that their prompt would name other nodes."""
    workflow = json.loads(FILES[name].read_text(encoding="utf-8"))
    inside = workflow.get("definitions", {}).get("subgraphs", [])
    numbered = [_numbers(graph, part) for graph in (workflow, *inside)]
    whole = [number for numbers in numbered for number in numbers]
    assert len(whole) == len(set(whole))
    assert root_last is None or workflow[root_last] == max(whole, default=0)
    for graph, numbers in zip(inside, numbered[1:], strict=True):
        assert graph["state"][inner_last] == max(numbers)


def _numbers(graph: dict[str, Any], part: str) -> list[int]:
    return [each[0] if isinstance(each, list) else each["id"] for each in graph.get(part, [])]


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_what_a_blueprint_shows_of_a_node_inside_is_there(name: str) -> None:
    workflow = json.loads(BLUEPRINTS[name].read_text(encoding="utf-8"))
    inside = {str(number) for graph in workflow["definitions"]["subgraphs"] for number in _numbers(graph, "nodes")}
    owners = {owner for owner, _ in workflow["nodes"][0]["properties"]["proxyWidgets"]}
    assert owners <= inside | {"-1"}


def nodes_of_ours(workflow: dict[str, Any]) -> set[str]:
    graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
    kinds = {node["type"] for graph in graphs for node in graph["nodes"]}
    return {STANDS_FOR.get(kind, kind) for kind in kinds if kind.startswith("CB")}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_workflow_has_a_demo_twin_with_the_same_nodes_of_ours(name: str) -> None:
    """But for what is run on a tiny model of its own family (test_family_templates): a demo saves no ranking."""
    twin = f"{name.rpartition('_')[0]}_demo"
    assert twin in EXAMPLES
    tried = {"CBSaveSensitivityProfile"} if name in families.WORKFLOWS else set()
    assert nodes_of_ours(EXAMPLES[name]) - tried <= nodes_of_ours(EXAMPLES[twin])


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_note_says_what_to_do(name: str) -> None:
    notes = [node["widgets_values"][0] for node in EXAMPLES[name]["nodes"] if node["type"] == "MarkdownNote"]
    assert len(notes) == 1 and "**Run**" in notes[0]


def _in_few_steps(prompt: dict[str, Any]) -> dict[str, Any]:
    """The same graph in half the time or less: whether it runs is asked here, not how well it paints or measures."""
    for node in prompt.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 6
        elif node["class_type"] == "CBProfileSensitivity":
            node["inputs"]["noise_levels"] = 3
    return prompt


CROSSED = "Crossed series: style and content scored"
SAYS = {  # beneath a node
    "profile_demo": CROSSED,
    "recorded_demo": CROSSED,
    "layers_do_demo": "21 layers at 2 noise levels",
}


@pytest.mark.parametrize("name", DEMOS)
def test_demo_workflow_runs(name: str, server: Server, object_info: dict) -> None:
    outputs = server.run(_in_few_steps(to_prompt(EXAMPLES[name], object_info)))
    assert SAYS.get(name, "") in str([shown.get("cb_summary") for shown in outputs.values()])
    savers = {str(node["id"]) for node in EXAMPLES[name]["nodes"] if node["type"] == "SaveImage"}
    assert savers and savers <= outputs.keys()
    for picture in (picture for saver in savers for picture in outputs[saver]["images"]):
        shown = Image.open(io.BytesIO(server.fetch(picture))).convert("L")
        low, high = shown.getextrema()
        assert high - low > 50, picture  # something is painted


def test_a_folder_of_folders_is_measured_as_the_template_says(server: Server, object_info: dict) -> None:
    """The checkpoint's workflow itself, with the demo model in its place and smaller pictures."""
    for style in range(3):
        (server.base / "input" / "styles" / f"style {style}").mkdir(parents=True)
        for subject in range(3):
            pixels = np.random.default_rng([style, subject]).integers(0, 256, (6, 6, 3), np.uint8)
            picture = Image.fromarray(pixels).resize((192, 192))
            picture.save(server.base / "input" / "styles" / f"style {style}" / f"{('cat', 'dog', 'owl')[subject]}.png")
    prompt = to_prompt(EXAMPLES["profile_sdxl"], object_info)
    for node in prompt.values():
        if node["class_type"] == "CheckpointLoaderSimple":
            node.update(class_type="CBLoadDemoModel", inputs={})
        elif node["class_type"] == "CBProfileSensitivity":
            node["inputs"] |= {"size": 192, "noise_levels": 2}
    outputs = server.run(prompt)
    said = str([shown.get("cb_summary") for shown in outputs.values()])
    assert CROSSED in said and "Saved as my-sdxl.style.safetensors" in said


def test_a_sheet_refuses_an_input_that_the_node_lacks(object_info: dict) -> None:
    sheet = Sheet(object_info)
    sheet.next_column("Only")
    with pytest.raises(KeyError, match="EmptyImage has no input colour"):
        sheet.add("EmptyImage", colour=3)
