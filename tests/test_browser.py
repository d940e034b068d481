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


LOADED = ["model", "clip", "vae"]
BLUEPRINTS = {
    "Style from a Picture, all in one": ["picture"],
    "Keep My Subject, all in one": ["picture of the surroundings"],
    "Style and Structure, all in one": ["control_net", "style picture", "structure picture"],
}
"""Names of the blueprints, and what each takes beside a checkpoint."""
WITH_MAP = {"Style from a Picture, all in one", "Style and Structure, all in one"}
DIALS = {
    "prompt": "a red fox in the snow", "what it shows": "", "subject": "",
    "style amount": 0.43, "structure amount": 0.15,
    "width": 1024, "height": 1024, "seed": 10, "steps": 30, "cfg": 5.0,
}  # fmt: skip
QUICK = {"width": 96, "height": 96, "steps": 1, "structure amount": 0.5}


@pytest.fixture(scope="module", params=BLUEPRINTS)
def placed(request: pytest.FixtureRequest, server: Server, object_info: dict) -> dict[str, Any]:
    """What a blueprint offers where it was placed by searching for it, its prompt, and how it ran."""
    workflow, links = _around_the_blueprint(object_info, BLUEPRINTS[request.param])
    orders = {"blueprint": request.param, "workflow": workflow, "links": links, "widgets": QUICK}
    orders |= {"map": request.param in WITH_MAP, "changed": {"style amount": 0.2}}
    return {"name": request.param, **visited("blueprint", server, **orders)}


def _around_the_blueprint(known: dict, taken: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A workflow that lacks only the blueprint, and the links between the two by the names of its slots."""
    sheet = Sheet(known)
    sheet.next_column("Demo")
    sources = {
        name: (sheet.add("CBLoadDemoModel"), slot) if not slot else (1, slot) for slot, name in enumerate(LOADED)
    }
    scene = sheet.add("CBDemoPictures", scenes="a fox in the forest")
    sources |= {name: (scene, 0) for name in taken}
    if "control_net" in taken:
        sources |= {"control_net": (sheet.add("CBLoadDemoControlNet"), 0), "structure picture": (scene, 2)}
    sheet.next_column("Picture")
    shown = sheet.add("SaveImage")
    links = [{"from": node, "slot": slot, "to": "blueprint", "name": name} for name, (node, slot) in sources.items()]
    return sheet.graph(), [*links, {"from": "blueprint", "slot": "picture", "to": shown, "name": "images"}]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_placed_blueprint_takes_pictures_and_gives_one(renderer: str, placed: dict) -> None:
    inputs, offered = placed[renderer]["inputs"], placed[renderer]["offered"]
    assert inputs[: len(LOADED) + len(BLUEPRINTS[placed["name"]])] == LOADED + BLUEPRINTS[placed["name"]]
    assert placed[renderer]["outputs"] == ["picture"]
    amount = {"style amount": 0.57} if placed["name"] == "Style and Structure, all in one" else {}
    wanted = DIALS | amount
    assert {name: wanted[name] for name in offered if name in wanted} == {
        name: offered[name] for name in offered if name in wanted
    }
    assert {"prompt", "seed", "steps", "cfg"} <= set(offered)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_visit_of_a_blueprint_went_to_its_end(renderer: str, placed: dict) -> None:
    assert "problem" not in placed[renderer], placed[renderer]["problem"]


@pytest.mark.parametrize("moment", ["placed", "inside", "outside", "reloaded"])
@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_placed_blueprint_shows_one_layer_map_where_there_is_one(renderer: str, moment: str, placed: dict) -> None:
    seen = placed[renderer][moment]
    assert (seen["shown"], len(seen["maps"])) == ((1, 1) if placed["name"] in WITH_MAP else (0, 0))


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_copy_of_a_blueprint_shows_a_map_of_its_own(renderer: str, placed: dict) -> None:
    assert placed[renderer]["pasted"] == (
        {"both": 2, "copy": 1} if placed["name"] in WITH_MAP else {"both": 0, "copy": 0}
    )


@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_map_of_a_blueprint_follows_its_dials_and_pins_by_a_click(renderer: str, placed: dict) -> None:
    seen = placed[renderer]
    if placed["name"] not in WITH_MAP:
        assert "pinned" not in seen
        return
    first, turned, pinned, undone = (seen[moment] for moment in ("placed", "turned", "pinned", "undone"))
    assert turned["maps"] != first["maps"] and turned["maps"] != pinned["maps"]
    assert seen["layer"] and _pins(pinned["prompt"]) == [seen["layer"]]
    assert pinned["steps"] == turned["steps"] + 1
    assert (_pins(undone["prompt"]), undone["maps"]) == ([""], turned["maps"])
    assert undone["values"] == turned["values"]
    assert _pins(seen["reloaded"]["prompt"]) == [seen["layer"]]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_map_of_a_blueprint_says_what_is_wrong_before_a_run_and_after_it(renderer: str, placed: dict) -> None:
    if placed["name"] not in WITH_MAP:
        assert "wrong" not in placed[renderer]
        return
    wrong, failed = placed[renderer]["wrong"], placed[renderer]["failed"]
    assert wrong["end"] in ("refused", "execution_error")
    assert "nonsense" in wrong["maps"][0] and "nonsense" in failed["maps"][0]


def _pins(prompt: dict) -> list[str]:
    return [node["inputs"]["pin"] for node in prompt.values() if "pin" in node["inputs"]]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_blueprint_keeps_its_values_and_adds_no_step_of_undo_by_itself(renderer: str, placed: dict) -> None:
    before, after = placed[renderer]["outside"], placed[renderer]["reloaded"]
    assert after["values"] == before["values"] and after["values"]["steps"] == QUICK["steps"]
    assert after["steps"] == 0


@pytest.mark.parametrize("renderer", RENDERERS)
def test_nothing_of_a_blueprint_that_is_gone_is_looked_at(renderer: str, placed: dict) -> None:
    """Front end 1.32.9 does not tell nodes inside subgraphs that another workflow has been loaded."""
    left = placed[renderer]["left"]
    assert left["gone"] == 0 < left["here"]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_placed_blueprint_sends_its_widgets_and_runs(renderer: str, placed: dict) -> None:
    inside = {node["class_type"]: node["inputs"] for node in placed[renderer]["prompt"].values()}
    assert inside["KSampler"]["steps"] == 1
    if placed["name"] == "Style and Structure, all in one":
        assert inside["CBStyleAndStructure"]["kept"] == 0.5
    assert placed[renderer]["end"] == {"event": "execution_success", "message": ""}


def test_a_placed_blueprint_makes_no_complaint(placed: dict) -> None:
    assert [complaint for complaint in placed["complaints"] if "subgraph blueprint" in complaint] == []
