"""The common jobs by hand, from the graph that ComfyUI opens with or from nothing to a picture, every step counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from devtools.server import Server
from visits import needs_browser, visited

PICTURES = ("another.png", "edges.png", "picture.png")
LOADED = {"model": "MODEL", "clip": "CLIP", "vae": "VAE"}


def _taken(node: str, names: tuple[str, ...] = tuple(LOADED)) -> list[list[str]]:
    """What a job takes of the checkpoint."""
    return [["link", "CBLoadDemoModel", LOADED[name], node, name] for name in names]


PICTURE = [["node", "Load Image", "LoadImage"], ["choose", "LoadImage", "image", "picture.png"]]
PROMPT = ["type", "CLIPTextEncode", "text", "a fox in the forest, glossy drawing, comic style"]
STYLE = [
    *PICTURE,
    ["node", "Style from Picture", "CBStyleFromPicture"],
    *_taken("CBStyleFromPicture"),
    ["link", "LoadImage", "IMAGE", "CBStyleFromPicture", "image"],
    ["link", "CBStyleFromPicture", "model", "KSampler", "model"],
    ["type", "CBStyleFromPicture", "shows", "a house in the mountains, glossy drawing, comic style"],
    PROMPT,
]
SUBJECT = [
    *PICTURE,
    ["node", "Keep My Subject (back", "CBKeepSubject"],
    *_taken("CBKeepSubject"),
    ["link", "LoadImage", "IMAGE", "CBKeepSubject", "image"],
    ["link", "CBKeepSubject", "model", "KSampler", "model"],
    ["link", "CBKeepSubject", "latent", "KSampler", "latent_image"],
    ["link", "CBKeepSubject", "positive", "KSampler", "positive"],
    ["type", "CBKeepSubject", "prompt", "a fox in the forest"],
]
STRUCTURE = [
    *PICTURE,
    ["node", "Load Image", "LoadImage"],
    ["choose", "LoadImage 2", "image", "edges.png"],
    ["node", "Load Demo ControlNet", "CBLoadDemoControlNet"],
    ["node", "Style and Structure (with", "CBStyleAndStructure"],
    *_taken("CBStyleAndStructure"),
    ["link", "CBLoadDemoControlNet", "CONTROL_NET", "CBStyleAndStructure", "control_net"],
    ["link", "LoadImage", "IMAGE", "CBStyleAndStructure", "style_image"],
    ["link", "LoadImage 2", "IMAGE", "CBStyleAndStructure", "structure_image"],
    ["link", "CBStyleAndStructure", "model", "KSampler", "model"],
    ["link", "CBStyleAndStructure", "positive", "KSampler", "positive"],
    ["type", "CBStyleAndStructure", "prompt", "a fox in the forest, glossy drawing, comic style"],
]
SUGGESTED = [
    *STYLE,
    ["node", "Suggest Style Amount", "CBSuggestAmount"],
    ["link", "VAEDecode", "IMAGE", "CBSuggestAmount", "image"],
]
ALL_IN_ONE = {job: f"{name}, all in one" for job, name in {
    "style": "Style from a Picture", "subject": "Keep My Subject", "structure": "Style and Structure"
}.items()}  # fmt: skip
MODEL = ["node", "Load Demo Model", "CBLoadDemoModel"]


def _all_in_one(job: str, *steps: list[str]) -> list[list[str]]:
    """From an empty canvas: a checkpoint, a picture, the blueprint and what saves its picture."""
    name = ALL_IN_ONE[job]
    before = [MODEL, *PICTURE, ["node", name, name], *_taken(name)]
    return [*before, *steps, ["node", "Save Image", "SaveImage"], ["link", name, "picture", "SaveImage", "images"]]


EMPTY = {
    "style": _all_in_one("style", ["link", "LoadImage", "IMAGE", ALL_IN_ONE["style"], "picture"]),
    "subject": _all_in_one(
        "subject", ["link", "LoadImage", "IMAGE", ALL_IN_ONE["subject"], "picture of the surroundings"]
    ),
    "structure": _all_in_one(
        "structure",
        ["node", "Load Image", "LoadImage"],
        ["choose", "LoadImage 2", "image", "edges.png"],
        ["node", "Load Demo ControlNet", "CBLoadDemoControlNet"],
        ["link", "CBLoadDemoControlNet", "CONTROL_NET", ALL_IN_ONE["structure"], "control_net"],
        ["link", "LoadImage", "IMAGE", ALL_IN_ONE["structure"], "style picture"],
        ["link", "LoadImage 2", "IMAGE", ALL_IN_ONE["structure"], "structure picture"],
    ),
}
MEASURED = [
    ["template", "5 Measure your checkpoint (SDXL)"],
    ["choose", "CBLoadImageClusters", "folder", "my_styles"],
    MODEL,  # a test has no checkpoint to choose
    *_taken("CBProfileSensitivity", ("model", "vae")),
    ["link", "CBLoadDemoModel", "CLIP", "CLIPTextEncode", "clip"],
    ["link", "CBLoadDemoModel", "CLIP", "CLIPTextEncode 2", "clip"],
]
FROM_NOTHING = {
    **{job: (steps, ALL_IN_ONE[job], {"width": 96, "height": 96, "steps": 1}) for job, steps in EMPTY.items()},
    "measure": (MEASURED, "CBProfileSensitivity", {"size": 96, "noise_levels": 2}),
}
"""What is done for each job, and what makes its run short: values of a node."""
JOBS = {"style": (STYLE, 10), "subject": (SUBJECT, 11), "structure": (STRUCTURE, 16), "suggest": (SUGGESTED, 12)}
"""What is done for each job, and how many steps it may take: nodes, links and values."""

pytestmark = needs_browser


@pytest.fixture(scope="module")
def seen(server: Server) -> dict[str, Any]:
    """How many steps each job took; screenshots are in out/steps, to be looked at."""
    for number, name in enumerate(PICTURES):
        pixels = np.random.default_rng(number).integers(0, 256, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(server.base / "input" / name)
        for style in ("one", "other"):
            folder = server.base / "input" / "my_styles" / style
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.roll(pixels, 1, 0 if style == "one" else 2)).save(folder / name)
    jobs = [{"name": name, "steps": steps, "dials": name == "style"} for name, (steps, _) in JOBS.items()]
    jobs += [
        {"name": f"empty_{name}", "steps": steps, "empty": True, "quick": [node, values]}
        for name, (steps, node, values) in FROM_NOTHING.items()
    ]
    return visited("steps", server, jobs=jobs, pack="conditional_balance")


@pytest.mark.parametrize("name", JOBS)
def test_a_job_is_done_in_few_steps(seen: dict[str, Any], name: str) -> None:
    assert "problem" not in seen[name], seen[name]["problem"]
    assert seen[name]["end"] == {"event": "execution_success", "message": ""}
    # The ControlNet of a test comes from a loader without a list of files, which an artist would choose from.
    file = 1 if name == "structure" else 0
    assert seen[name]["node"] + seen[name]["link"] + seen[name]["value"] + file <= JOBS[name][1]


@pytest.mark.parametrize("name", FROM_NOTHING)
def test_a_job_is_done_from_an_empty_canvas(seen: dict[str, Any], name: str) -> None:
    done = seen[f"empty_{name}"]
    assert "problem" not in done, done["problem"]
    assert done["end"] == {"event": "execution_success", "message": ""}


def test_preset_slider_and_map_go_together(seen: dict[str, Any]) -> None:
    begun, named, moved, clicked = seen["style"]["dials"]
    assert (begun["amount"], begun["preset"]) == (0.43, "as style amount says") and "9 of 21 layers" in begun["line"]
    assert (named["amount"], named["preset"]) == (0.75, "strong 0.75") and named["line"] != begun["line"]
    assert (moved["amount"], moved["preset"]) == (0.3, "as style amount says") and moved["line"] != named["line"]
    assert clicked["pin"] and clicked["line"] != moved["line"]
