"""Workflows that people saved with 0.1.0 open and run as they did, whatever was added to the nodes since."""

from __future__ import annotations

import json
from typing import Any

import pytest

from devtools.server import ROOT, Server
from devtools.steps import Failed
from devtools.workflow import to_prompt

FOLDER = ROOT / "tests" / "workflows" / "saved_0.1.0"
SAVED = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}
PROMPTS = {name: json.loads((FOLDER / "prompts" / f"{name}.json").read_text(encoding="utf-8")) for name in SAVED}
DEMOS = [name for name in SAVED if name.endswith("_demo")]


PAINTED = {"hand": "flat", "medium": "plain", "seed": 0, "scenes": "a fox\na house in the hills"}
SLOTS = {0: 0, 2: 1, 3: 2}  # of what drew the demo's pictures then, on what paints them today


@pytest.mark.parametrize("name", SAVED)
def test_every_value_still_reaches_its_input(name: str, object_info: dict) -> None:
    assert in_todays_world(to_prompt(SAVED[name], object_info)) == in_todays_world(PROMPTS[name])


@pytest.mark.parametrize("name", DEMOS)
def test_it_still_runs(name: str, server: Server) -> None:
    outputs = server.run(changed(in_todays_world(PROMPTS[name]), KSampler={"steps": 2}))
    savers = {number for number, node in PROMPTS[name].items() if node["class_type"].startswith("Save")}
    assert len(savers) >= 1 and all(outputs[saver].get("images") for saver in savers)


def in_todays_world(prompt: dict[str, Any]) -> dict[str, Any]:
    """The prompt with today's demo pictures: the demo's nodes, which ship with no pack, follow the demo's world."""
    drawn = {name for name, node in prompt.items() if node["class_type"] == "CBDemoPictures"}

    def led(value: Any) -> Any:
        return [value[0], SLOTS[value[1]]] if isinstance(value, list) and value[0] in drawn else value

    found = {
        name: node | {"inputs": {key: led(value) for key, value in node["inputs"].items()}}
        for name, node in prompt.items()
    }
    return found | {name: prompt[name] | {"inputs": PAINTED} for name in drawn}


def changed(prompt: dict[str, Any], **inputs: dict[str, Any]) -> dict[str, Any]:
    """The prompt with other inputs for all nodes of some kinds."""
    return {
        name: node | {"inputs": node["inputs"] | inputs.get(node["class_type"], {})} for name, node in prompt.items()
    }


def select_layers(**values: Any) -> dict[str, Any]:
    """A prompt whose only result is what Select Layers says of the demo model's 21 layers."""
    selected = {"profile": ["1", 0], "lambda": 0.43, "policy": "per-step", "softness": 0.1, "start_percent": 0.0}
    selected |= {"end_percent": 1.0, "pin": "", "exclude": "", "random_seed": 0}
    return {
        "1": {"class_type": "CBLoadSensitivityProfile", "inputs": {"profile": "demo.style.safetensors"}},
        "2": {"class_type": "CBSelectLayers", "inputs": selected | values},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 1]}},
    }


@pytest.mark.parametrize("values", [{"lambda": 7.0}, {"number_of_layers": 7}, {"lambda": 7 / 21}])
def test_a_number_of_layers_is_read_as_lambda_and_as_itself(values: dict[str, Any], server: Server) -> None:
    (words,) = server.run(select_layers(**values))["2"]["cb_summary"]
    assert words.startswith("7 of 21 layers")


@pytest.mark.parametrize("number", [1, 21, 30])
def test_one_is_one_layer_and_more_than_there_are_is_all(number: int, server: Server) -> None:
    (words,) = server.run(select_layers(number_of_layers=number))["2"]["cb_summary"]
    assert words.startswith(f"{min(number, 21)} of 21 layers")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lambda": -0.1}, "lambda"),
        ({"lambda": 2000}, "number_of_layers"),
        ({"lambda": "many"}, "lambda"),
        ({"policy": "by luck"}, "policy"),
        ({"pin": "o9.99.9"}, "'pin': Expected a comma"),
        ({"exclude": "o9.99.9"}, "'exclude': Expected a comma"),
    ],
)
def test_what_is_wrong_is_still_refused(values: dict[str, Any], said: str, server: Server) -> None:
    with pytest.raises(Failed) as refused:
        server.run(select_layers(**values))
    assert str(refused.value).count(said) >= 1
    assert str(refused.value).count("Custom validation failed") <= 1
