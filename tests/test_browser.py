"""The real front end in a real browser: our scripts make no complaint, the examples open tidily and run."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from conditional_balance.nodes.extension import ConditionalBalance
from devtools.examples import EXAMPLES
from devtools.server import ROOT, Server
from devtools.sheet import Sheet
from devtools.workflow import to_prompt
from visits import RENDERERS, needs_browser, visited

NODES = [node.GET_SCHEMA().node_id for node in asyncio.run(ConditionalBalance().get_node_list())]
WORKFLOWS = {"core_nodes": ROOT / "tests" / "workflows" / "core_nodes.json"} | EXAMPLES
RUN = ["core_nodes", "style_balanced_demo"]  # test_examples runs every demo workflow without a browser
BLUEPRINT = "Style + structure, balanced"

pytestmark = needs_browser


@pytest.fixture(scope="module")
def visit(server: Server) -> dict[str, Any]:
    """The front end's complaints, its nodes, and for each workflow its prompt, how it ended and what overlaps."""
    workflows = [{"name": name, "path": str(path), "run": name in RUN} for name, path in WORKFLOWS.items()]
    return visited("visit", server, workflows=workflows)


def test_our_scripts_do_not_complain(visit: dict) -> None:
    assert [complaint for complaint in visit["complaints"] if "conditional_balance" in complaint] == []


def test_every_node_is_in_the_menu(visit: dict) -> None:
    assert "KSampler" in visit["nodes"]
    assert set(NODES) <= set(visit["nodes"])


@pytest.mark.parametrize("name", RUN)
def test_workflow_runs(name: str, visit: dict) -> None:
    assert visit["workflows"][name]["end"] == {"event": "execution_success", "message": ""}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_front_end_and_dev_script_make_the_same_prompt(name: str, visit: dict, object_info: dict) -> None:
    ours = to_prompt(json.loads(WORKFLOWS[name].read_text(encoding="utf-8")), object_info)
    theirs = visit["workflows"][name]["prompt"]
    assert ours == {node: {key: part[key] for key in ("class_type", "inputs")} for node, part in theirs.items()}


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_nodes_of_an_example_do_not_cover_one_another(name: str, renderer: str, visit: dict) -> None:
    assert visit["workflows"][name]["overlaps"][renderer] == []


@pytest.fixture(scope="module")
def placed(server: Server, object_info: dict) -> dict[str, Any]:
    """What the blueprint offers where it was placed by searching for it, its prompt, and how it ran."""
    workflow, links = _around_the_blueprint(object_info)
    widgets = {"profile": "demo.style.safetensors", "style amount": 0.2, "structure amount": 0.5}
    return visited("blueprint", server, blueprint=BLUEPRINT, workflow=workflow, links=links, widgets=widgets)


def _around_the_blueprint(known: dict) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A workflow that lacks only the blueprint, and the links between the two by the names of its slots."""
    sheet = Sheet(known)
    sheet.next_column("Demo")
    model = sheet.add("CBLoadDemoModel")
    control = sheet.add("CBLoadDemoControlNet")
    scene = sheet.add("CBDemoPictures")
    text = sheet.add("CLIPTextEncode", clip=(model, 1), text="a cat in the city, flat drawing")
    sheet.next_column("Style")
    latent = sheet.add("VAEEncode", pixels=(scene, 0), vae=(model, 2))
    sampled = sheet.add("KSampler", latent_image=(latent, 0), steps=2)
    decoded = sheet.add("VAEDecode", samples=(sampled, 0), vae=(model, 2))
    sheet.add("SaveImage", images=(decoded, 0))
    into = {
        "model": (model, 0), "clip": (model, 1), "vae": (model, 2), "positive": (text, 0), "negative": (text, 0),
        "style picture": (scene, 0), "control_net": (control, 0), "control image": (scene, 2),
    }  # fmt: skip
    links = [{"from": node, "slot": slot, "to": "blueprint", "name": name} for name, (node, slot) in into.items()]
    out = ("model", "positive", "negative")
    return sheet.graph(), links + [{"from": "blueprint", "slot": name, "to": sampled, "name": name} for name in out]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_placed_subgraph_offers_what_it_says(renderer: str, placed: dict) -> None:
    sockets = ["model", "clip", "vae", "positive", "negative", "style picture", "control_net", "control image"]
    widgets = ["what the style picture shows", "profile", "style amount", "structure amount"]
    assert placed[renderer]["inputs"] == sockets + widgets
    assert placed[renderer]["outputs"] == ["model", "positive", "negative"]
    published = "sdxl-base-1.0.style.published.safetensors"
    offered = {"what the style picture shows": "a painting", "profile": published}
    assert placed[renderer]["offered"] == offered | {"style amount": 0.57, "structure amount": 0.15}


@pytest.mark.parametrize("renderer", RENDERERS)
def test_placed_subgraph_sends_its_widgets_and_runs(renderer: str, placed: dict) -> None:
    inside = {node["class_type"]: node["inputs"] for node in placed[renderer]["prompt"].values()}
    assert inside["CBLoadSensitivityProfile"]["profile"] == "demo.style.safetensors"
    assert inside["CBSelectLayers"]["lambda"] == 0.2 and inside["CBGateControlNet"]["kept"] == 0.5
    assert placed[renderer]["end"] == {"event": "execution_success", "message": ""}


def test_placed_subgraph_makes_no_complaint(placed: dict) -> None:
    assert [complaint for complaint in placed["complaints"] if "subgraph blueprint" in complaint] == []
