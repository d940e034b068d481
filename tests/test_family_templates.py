"""Templates for families of transformers: the files that they name, and the whole graph run on a tiny model of each."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from devtools.examples import EXAMPLES
from devtools.families import MODELS, WORKFLOWS
from devtools.server import Server
from devtools.workflow import to_prompt

OUTPUTS = {"UNETLoader": 0, "CLIPLoader": 1, "DualCLIPLoader": 1, "VAELoader": 2, "CheckpointLoaderSimple": 0}
"""Loader nodes, and which of the tiny node's outputs takes the place of their first."""
TINY = {
    "style_picture_flux": ("flux", 0),
    "style_picture_sd35": ("sd3", 38),
    "style_picture_qwen": ("qwen", 0),
    "style_picture_zimage": ("z-image", 0),
}
SAID = {
    "style_picture_flux": "Layers by a guess (s0, s1, s2 first), because no profile fits",
    "style_picture_sd35": "Layers by the published ranking of SD3.5 Large",
    "style_picture_qwen": "Layers by a guess (j0, j1, j2 first), because no profile fits",
    "style_picture_zimage": "Layers by a guess (r0, j1, j2 first), because no profile fits",
}
SIDE = 128


def graph_of(name: str) -> dict[str, Any]:
    return json.loads(EXAMPLES[name].read_text(encoding="utf-8"))


def on_a_tiny_model(prompt: dict[str, Any], kind: str, blocks: int) -> dict[str, Any]:
    """The same graph behind a tiny model, small and in few steps."""
    prompt = json.loads(json.dumps(prompt))
    loaders = {number for number, node in prompt.items() if node["class_type"] in OUTPUTS}
    for node in prompt.values():
        for given, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in loaders:
                node["inputs"][given] = ["tiny", value[1] + OUTPUTS[prompt[value[0]]["class_type"]]]
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 2
        if node["class_type"].startswith("Empty"):
            node["inputs"] |= {"width": SIDE, "height": SIDE}
    prompt["tiny"] = {"class_type": "TinyFamily", "inputs": {"kind": kind, "blocks": blocks}}
    return {number: node for number, node in prompt.items() if number not in loaders}


def of_kind(prompt: dict[str, Any], kind: str) -> str:
    return next(number for number, node in prompt.items() if node["class_type"] == kind)


def test_every_family_with_a_template_is_tried() -> None:
    assert TINY.keys() == SAID.keys() == WORKFLOWS.keys()


@pytest.mark.parametrize("name", WORKFLOWS)
def test_loaders_say_where_their_files_come_from_and_know_their_choices(name: str, object_info: dict) -> None:
    graph = graph_of(name)
    loaders = [node for node in graph["nodes"] if node["type"] in OUTPUTS]
    assert loaders and all(MODELS.keys() & set(node["widgets_values"]) for node in loaders)
    for node in loaders:
        named = {each["name"]: each for each in node["properties"]["models"]}
        assert named.keys() == MODELS.keys() & set(node["widgets_values"])
        for file, about in named.items():
            repository, inside, folder = MODELS[file]
            assert about["url"] == f"https://huggingface.co/{repository}/resolve/main/{inside}{file}"
            assert about["directory"] == folder
    for node in to_prompt(graph, object_info).values():
        told = object_info[node["class_type"]]["input"]["required"].get("type")
        assert told is None or node["inputs"]["type"] in told[0]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_template_runs_on_its_family_and_says_which_layers_it_took(
    name: str, server: Server, object_info: dict
) -> None:
    prompt = on_a_tiny_model(to_prompt(graph_of(name), object_info), *TINY[name])
    styled = painted(server, prompt)
    assert styled.shape == (SIDE, SIDE, 3) and np.ptp(styled) > 20
    job = of_kind(prompt, "CBStyleFromPicture")
    said = json.loads(server.get("/history"))
    told = next(entry["outputs"][job] for entry in reversed(said.values()) if job in entry["outputs"])
    assert told["cb_about"][0].startswith(SAID[name]), told
    prompt[job]["inputs"]["lambda"] = 0.0
    assert np.abs(painted(server, prompt) - styled).max() > 2


def painted(server: Server, prompt: dict[str, Any]) -> np.ndarray:
    (picture,) = server.run(prompt)[of_kind(prompt, "SaveImage")]["images"]
    return np.asarray(Image.open(io.BytesIO(server.fetch(picture))).convert("RGB"), dtype=float)
