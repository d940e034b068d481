"""The pack in a real server: it loads without complaint, and every node explains itself."""

from __future__ import annotations

import asyncio
import io
import json

import pytest
from PIL import Image

from conditional_balance.nodes.extension import ConditionalBalance
from devtools.server import PACKS, ROOT, Server
from devtools.steps import Failed

NODES = [node.GET_SCHEMA().node_id for node in asyncio.run(ConditionalBalance().get_node_list())]


def test_no_complaint_about_the_pack(server: Server) -> None:
    log = server.log.read_text(encoding="utf-8")
    loaded = [name for name, pack in PACKS.items() if (pack / "__init__.py").exists()]
    for name in loaded:
        assert f"custom_nodes/{name}" in log.replace("\\", "/")
    complaints = [line for line in log.splitlines() if "IMPORT FAILED" in line or "Cannot import" in line]
    assert not [line for line in complaints if "conditional_balance" in line], log


def test_every_node_is_there(object_info: dict) -> None:
    assert set(NODES) <= set(object_info)


@pytest.mark.parametrize("node_id", NODES)
def test_every_input_and_output_explains_itself(node_id: str, object_info: dict) -> None:
    node = object_info[node_id]
    assert node["description"]
    assert node["category"].split("/")[0] == "conditional balance"
    inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
    assert [name for name, (_, options) in inputs.items() if not options.get("tooltip")] == []
    assert all(node["output_tooltips"]) and len(node["output_tooltips"]) == len(node["output"])


def test_front_end_gets_our_scripts(server: Server) -> None:
    served = json.loads(server.get("/extensions"))
    ours = sorted(path.relative_to(ROOT / "js").as_posix() for path in (ROOT / "js").rglob("*.js"))
    assert sorted(path for path in served if path.startswith("/extensions/conditional_balance/")) == [
        f"/extensions/conditional_balance/{name}" for name in ours
    ]
    assert all(server.get(path) for path in served if "conditional_balance" in path)


def test_runs_a_prompt_and_hands_out_the_picture(server: Server) -> None:
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 8, "batch_size": 1, "color": 255}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "blue"}},
    }
    (picture,) = server.run(prompt)["2"]["images"]
    assert server.fetch(picture).startswith(b"\x89PNG")
    assert (server.base / "output" / picture["filename"]).exists()


def test_a_saved_picture_carries_the_workflow(server: Server) -> None:
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 7}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "carrier"}},
    }
    (picture,) = server.run(prompt, workflow={"nodes": [], "links": []})["2"]["images"]
    carried = Image.open(io.BytesIO(server.fetch(picture))).info
    assert json.loads(carried["workflow"]) == {"nodes": [], "links": []} and json.loads(carried["prompt"]) == prompt


def test_a_refused_prompt_says_why(server: Server) -> None:
    prompt = {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}}
    with pytest.raises(Failed, match="SaveImage: Required input is missing"):
        server.run(prompt)


def test_a_failing_node_is_named(server: Server) -> None:
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 0}},
        "2": {"class_type": "ImageScaleBy", "inputs": {"image": ["1", 0], "upscale_method": "area", "scale_by": 0.01}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}},
    }
    with pytest.raises(Failed, match="The node SaveImage failed: cannot write empty image"):
        server.run(prompt)
