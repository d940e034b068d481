"""The real front end in a real browser: it loads our scripts without complaint, and the example workflows run in it."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from conditional_balance.nodes.extension import ConditionalBalance
from devtools import browser
from devtools.server import ROOT, Server
from devtools.workflow import to_prompt

NODES = [node.GET_SCHEMA().node_id for node in asyncio.run(ConditionalBalance().get_node_list())]
EXAMPLES = {path.stem: path for path in sorted((ROOT / "example_workflows").glob("*.json"))}
WORKFLOWS = {"core_nodes": ROOT / "tests" / "workflows" / "core_nodes.json"} | EXAMPLES
DEMOS = ["core_nodes", *(name for name in EXAMPLES if "demo" in name)]

pytestmark = pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))


@pytest.fixture(scope="module")
def visit(server: Server) -> dict:
    """What one visit saw: the front end's complaints, its nodes, and for each workflow its prompt and how it ended."""
    orders = {
        "playwright": str(browser.PLAYWRIGHT_MODULE),
        "browser": browser.find_browser(),
        "url": server.url,
        "workflows": [{"name": name, "path": str(path), "run": name in DEMOS} for name, path in WORKFLOWS.items()],
    }
    script = Path(__file__).parent / "browser" / "visit.mjs"
    done = subprocess.run(["node", script, json.dumps(orders)], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_our_scripts_do_not_complain(visit: dict) -> None:
    assert [complaint for complaint in visit["complaints"] if "conditional_balance" in complaint] == []


def test_every_node_is_in_the_menu(visit: dict) -> None:
    assert "KSampler" in visit["nodes"]
    assert set(NODES) <= set(visit["nodes"])


@pytest.mark.parametrize("name", DEMOS)
def test_workflow_runs(name: str, visit: dict) -> None:
    assert visit["workflows"][name]["end"] == {"event": "execution_success", "message": ""}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_front_end_and_dev_script_make_the_same_prompt(name: str, visit: dict, object_info: dict) -> None:
    ours = to_prompt(json.loads(WORKFLOWS[name].read_text(encoding="utf-8")), object_info)
    theirs = visit["workflows"][name]["prompt"]
    assert ours == {node: {key: part[key] for key in ("class_type", "inputs")} for node, part in theirs.items()}
