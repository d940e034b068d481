"""Saved workflows keep what they say: ids, inputs, defaults, order and outputs are those of tests/interface.json."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from devtools import face
from devtools.interface import CURE, SAVED, interface, losses

NOW = interface(face.schemas())


def test_saved_workflows_lose_nothing() -> None:
    saved = json.loads(SAVED.read_text(encoding="utf-8"))
    assert list(losses(saved, NOW)) == []
    assert saved == NOW, f"Something was added, which is allowed: {CURE}"


def node() -> dict[str, Any]:
    return {
        "inputs": [
            {"id": "model", "type": "MODEL", "optional": False},
            {"id": "strength", "type": "FLOAT", "optional": False, "default": 1.0, "min": 0.0, "max": 1.0},
            {"id": "rule", "type": "COMBO", "optional": True, "default": "a", "options": ["a", "b"]},
        ],
        "outputs": ["MODEL", "IMAGE"],
    }


def changed(inside: Callable[[dict[str, Any]], Any]) -> list[str]:
    now = {"CBOne": copy.deepcopy(node())}
    inside(now)
    return list(losses({"CBOne": node()}, now))


ADDED = {"id": "new", "type": "INT", "optional": True, "default": 0}


@pytest.mark.parametrize(
    "change",
    [
        lambda now: None,
        lambda now: now["CBOne"]["inputs"].append(ADDED),
        lambda now: now["CBOne"]["outputs"].append("STRING"),
        lambda now: now["CBOne"]["inputs"][2]["options"].insert(0, "c"),
        lambda now: now["CBOne"]["inputs"][1].update(max=2.0),
        lambda now: now.update(CBTwo=node()),
    ],
)
def test_what_may_be_added(change: Callable[[dict[str, Any]], Any]) -> None:
    assert changed(change) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda now: now.pop("CBOne"), "the node is gone"),
        (lambda now: now["CBOne"]["inputs"].pop(1), "input 'strength' is gone"),
        (lambda now: now["CBOne"]["inputs"][1].update(id="power"), "input 'strength' is gone"),
        (lambda now: now["CBOne"]["inputs"].insert(1, ADDED | {"optional": False}), "add new ones last"),
        (lambda now: now["CBOne"]["inputs"].insert(2, ADDED), "add new ones last"),
        (lambda now: now["CBOne"]["inputs"].append(ADDED | {"optional": False}), "new that are new are not optional"),
        (lambda now: now["CBOne"]["inputs"].reverse(), "add new ones last"),
        (lambda now: now["CBOne"]["inputs"][0].update(optional=True), "add new ones last"),
        (lambda now: now["CBOne"]["inputs"][1].update(type="INT"), "had the type 'FLOAT'"),
        (lambda now: now["CBOne"]["inputs"][1].update(default=0.5), "had the default 1.0 and has 0.5"),
        (lambda now: now["CBOne"]["inputs"][1].pop("default"), "had the default 1.0 and has None"),
        (lambda now: now["CBOne"]["inputs"][1].update(max=0.9), "took 0.0 to 1.0 and takes 0.0 to 0.9"),
        (lambda now: now["CBOne"]["inputs"][1].update(min=0.1), "takes 0.1 to 1.0 only"),
        (lambda now: now["CBOne"]["inputs"][1].update(control_after_generate=True), "control_after_generate"),
        (lambda now: now["CBOne"]["inputs"][2]["options"].remove("b"), "has lost 'b'"),
        (lambda now: now["CBOne"]["inputs"][2].update(optional=False), "no longer optional"),
        (lambda now: now["CBOne"]["outputs"].pop(), "output 1 was IMAGE"),
        (lambda now: now["CBOne"]["outputs"].reverse(), "output 0 was MODEL"),
        (lambda now: now["CBOne"]["outputs"].insert(0, "STRING"), "output 0 was MODEL"),
    ],
)  # fmt: skip
def test_what_would_be_lost_is_named(change: Callable[[dict[str, Any]], Any], words: str) -> None:
    assert any(words in sentence and sentence.startswith("CBOne: ") for sentence in changed(change))
