"""Templates for families of transformers: the files that they name, and the whole graph run on a tiny model of each."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from devtools.examples import EXAMPLES
from devtools.families import KINDS, MODELS, WORKFLOWS
from devtools.server import Server
from devtools.workflow import to_prompt

OUTPUTS = {"UNETLoader": 0, "CLIPLoader": 1, "DualCLIPLoader": 1, "VAELoader": 2, "CheckpointLoaderSimple": 0}
"""Loader nodes, and which of the tiny node's outputs takes the place of their first."""
TINY = {"flux": ("flux", 0), "sd35": ("sd3", 38), "qwen": ("qwen", 0), "zimage": ("z-image", 0)}
SAID = {
    "flux": "Layers by a guess (s0, s1, s2 first), because no profile fits",
    "sd35": "Layers by the published ranking of SD3.5 Large",
    "qwen": "Layers by a guess (j0, j1, j2 first), because no profile fits",
    "zimage": "Layers by a guess (r0, j1, j2 first), because no profile fits",
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
    assert TINY.keys() == SAID.keys() == KINDS.keys()
    assert WORKFLOWS.keys() == {f"{job}_{kind}" for job in ("style_picture", "layers_do") for kind in KINDS}


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


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_runs_on_its_family_and_says_which_layers_it_took(
    kind: str, server: Server, object_info: dict
) -> None:
    prompt = on_a_tiny_model(to_prompt(graph_of(f"style_picture_{kind}"), object_info), *TINY[kind])
    styled = painted(server, prompt)
    assert styled.shape == (SIDE, SIDE, 3) and np.ptp(styled) > 20
    job = of_kind(prompt, "CBStyleFromPicture")
    assert output_of(server, job)["cb_about"][0].startswith(SAID[kind])
    prompt[job]["inputs"]["lambda"] = 0.0
    assert np.abs(painted(server, prompt) - styled).max() > 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_template_measures_is_what_the_job_takes_from_then_on(
    kind: str, server: Server, object_info: dict
) -> None:
    prompt = on_a_tiny_model(to_prompt(graph_of(f"layers_do_{kind}"), object_info), *TINY[kind])
    prompt[of_kind(prompt, "ImageScale")]["inputs"] |= {"width": SIDE, "height": SIDE}
    keeper = of_kind(prompt, "CBSaveSensitivityProfile")
    name = prompt[keeper]["inputs"]["name"]
    kept = server.base / "models" / "sensitivity_profiles" / f"{name}.safetensors"
    try:
        assert np.ptp(painted(server, prompt)) > 20
        assert kept.exists() and kept.name in str(output_of(server, keeper))
        job = on_a_tiny_model(to_prompt(graph_of(f"style_picture_{kind}"), object_info), *TINY[kind])
        painted(server, job)
        said = output_of(server, of_kind(job, "CBStyleFromPicture"))["cb_about"][0]
        assert said == f"Layers by {name}, measured on this checkpoint."
    finally:
        kept.unlink(missing_ok=True)


def painted(server: Server, prompt: dict[str, Any]) -> np.ndarray:
    """The picture of the last node that saves one."""
    last = [number for number, node in prompt.items() if node["class_type"] == "SaveImage"][-1]
    (picture,) = server.run(prompt)[last]["images"]
    return np.asarray(Image.open(io.BytesIO(server.fetch(picture))).convert("RGB"), dtype=float)


def output_of(server: Server, node: str) -> dict[str, Any]:
    """What a node showed when it last ran."""
    runs = json.loads(server.get("/history"))
    return next(run["outputs"][node] for run in reversed(runs.values()) if node in run["outputs"])
