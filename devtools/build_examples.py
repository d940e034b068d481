"""Writes example workflows and blueprints for the front end: python devtools/run.py devtools/build_examples.py

Node ids, slots and the order of widgets come from the node list of a running ComfyUI, so that a change of a schema
needs no editing by hand: build again. What each graph holds stands in `devtools/templates/` and `devtools/families.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devtools import comfyui, environment, examples, families, server
from devtools.comfyui import ROOT
from devtools.sheet import Blueprint, Sheet, save
from devtools.templates import measuring, mechanisms, structure, style, subject
from devtools.templates.blueprints import BLUEPRINTS, checkpoint_of
from devtools.templates.parts import BASE_SDXL
from devtools.templates.structure import CANNY_SDXL
from devtools.templates.subject import BASE_SD15

HUGGING_FACE = "https://huggingface.co"
MODELS = {
    BASE_SDXL: ("stabilityai/stable-diffusion-xl-base-1.0", "", "checkpoints"),
    BASE_SD15: ("Comfy-Org/stable-diffusion-v1-5-archive", "", "checkpoints"),
    CANNY_SDXL: ("lllyasviel/sd_control_collection", "", "controlnet"),
    **families.MODELS,
}
"""Repository, folder inside it, and folder of ComfyUI's models: the front end offers to download what is missing."""
WORKFLOWS = {
    **measuring.WORKFLOWS,
    **style.WORKFLOWS,
    **subject.WORKFLOWS,
    **structure.WORKFLOWS,
    **mechanisms.WORKFLOWS,
    **families.WORKFLOWS,
}
"""What draws each, by its name in `devtools/examples.py`."""


def _with_models(graph: dict[str, Any]) -> dict[str, Any]:
    """The graph with every loader knowing where its model comes from."""
    for node in graph["nodes"]:
        if named := [value for value in node["widgets_values"] if value in MODELS]:
            node["properties"]["models"] = [_source_of(name) for name in named]
    return graph


def _source_of(name: str) -> dict[str, str]:
    repository, inside, folder = MODELS[name]
    return {"name": name, "url": f"{HUGGING_FACE}/{repository}/resolve/main/{inside}{name}", "directory": folder}


def build(known: Mapping[str, Any], root: Path) -> None:
    """Write every workflow and blueprint below a folder; `known` is what a server answers at /object_info."""
    for name, describe in WORKFLOWS.items():
        sheet = Sheet(known)
        describe(sheet)
        save(_with_models(sheet.graph()), examples.file_of(name, root))
    for name, (about, draw) in BLUEPRINTS.items():
        blueprint = Blueprint(known, name, about)
        draw(blueprint, checkpoint_of(blueprint))
        save(blueprint.graph(), root / "subgraphs" / f"{name}.json")


def main() -> None:
    comfy = comfyui.find()
    env = environment.prepare(comfy, [])
    with server.started(env.python, comfy.path, comfyui.CACHE / "build", env.cpu) as running:
        build(json.loads(running.get("/object_info")), ROOT)


if __name__ == "__main__":
    main()
