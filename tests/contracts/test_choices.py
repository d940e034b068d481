"""A value that a dropdown does not offer is refused: by core before the graph runs, by the node where a link brings it.

The core is ComfyUI's own validate_prompt; ComfyUI 0.3.75 checks no dropdown of a node of version 3 by itself.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from typing import Any

import pytest
import torch
from comfy_api.latest import io
from comfy_extras.nodes_preview_any import PreviewAny

from conditional_balance.nodes.extension import ConditionalBalance

NODES = {node.define_schema().node_id: node for node in asyncio.run(ConditionalBalance().get_node_list())}
CHOICES = {
    (node_id, each.id): each
    for node_id, node in NODES.items()
    for each in node.define_schema().inputs
    if isinstance(each, io.Combo.Input)
}
FILES = {
    ("CBLoadSensitivityProfile", "profile"),
    ("CBLoadImageClusters", "folder"),
    ("CBGateLoRA", "lora_name"),
}
OWN = [choice for choice in CHOICES if choice not in FILES]
BOGUS, MISSING = "no such choice", object()

Errors = list[dict[str, Any]]


class Links:
    """A node of another pack that hands out a choice."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("COMBO", "COMBO,STRING", "STRING", "INT"), "give", "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import nodes

    for name, node in {**NODES, "PreviewAny": PreviewAny, "Links": Links}.items():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, node)


def refused(node_id: str, **inputs: Any) -> Errors:
    """What core says against a node with these values, all other widgets at their defaults, sockets aside."""
    return [each for each in errors_of(node_id, **inputs) if each["type"] != "required_input_missing"]


def errors_of(node_id: str, **inputs: Any) -> Errors:
    import execution

    schema = NODES[node_id].define_schema()
    defaults = {each.id: each.default for each in schema.inputs if getattr(each, "default", None) is not None}
    graph = {"links": {"class_type": "Links", "inputs": {}}}
    given = {name: value for name, value in {**defaults, **inputs}.items() if value is not MISSING}
    graph["node"] = {"class_type": node_id, "inputs": given}
    if schema.outputs:
        graph["shown"] = {"class_type": "PreviewAny", "inputs": {"source": ["node", 0]}}
    *_, errors = asyncio.run(execution.validate_prompt("it", graph, None))
    return errors.get("node", {}).get("errors", [])


@pytest.mark.parametrize(("node_id", "name"), CHOICES, ids=str)
def test_core_refuses_a_choice_that_is_not_offered_once(node_id: str, name: str) -> None:
    (error,) = refused(node_id, **{name: BOGUS})
    assert error["extra_info"]["input_name"] == name and BOGUS in error["details"]


@pytest.mark.parametrize(("node_id", "name"), CHOICES, ids=str)
@pytest.mark.parametrize("value", [5, None, "", "../../etc/passwd", {"a": 1}, 1e308, True, "x" * 9_000], ids=repr)
def test_core_refuses_anything_else_too(node_id: str, name: str, value: Any) -> None:
    assert {each["type"] for each in refused(node_id, **{name: value})} <= {
        "value_not_in_list",
        "custom_validation_failed",
    }


@pytest.mark.parametrize("node_id", NODES)
def test_core_says_by_itself_that_a_value_is_missing(node_id: str) -> None:
    inputs = {each.id: each for each in NODES[node_id].define_schema().inputs}
    found = errors_of(node_id, **dict.fromkeys(inputs, MISSING))
    assert {each["type"] for each in found} <= {"required_input_missing"}
    assert {each["details"] for each in found} == {name for name, each in inputs.items() if not each.optional}


@pytest.mark.parametrize(("node_id", "name"), OWN, ids=str)
def test_core_takes_every_choice_that_is_offered(node_id: str, name: str) -> None:
    assert not any(refused(node_id, **{name: option}) for option in CHOICES[node_id, name].options)


@pytest.mark.parametrize(("node_id", "name"), CHOICES, ids=str)
@pytest.mark.parametrize(("output", "fits"), [(0, True), (1, True), (2, False), (3, False)])
def test_to_links_a_dropdown_is_a_combo(node_id: str, name: str, output: int, fits: bool) -> None:
    found = refused(node_id, **{name: ["links", output]})
    assert [each["type"] for each in found] == ([] if fits else ["return_type_mismatch"])


@pytest.mark.parametrize(("node_id", "name"), OWN, ids=str)
def test_a_choice_from_a_link_is_refused_when_the_node_runs(node_id: str, name: str) -> None:
    offered = ", ".join(CHOICES[node_id, name].options)
    with pytest.raises(ValueError) as caught, torch.inference_mode():
        NODES[node_id].execute(**{name: BOGUS})
    assert str(caught.value) == f"'{name}': there is no '{BOGUS}': choose one of {offered}."


def test_a_long_list_of_files_is_not_read_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import folder_paths

    files = [f"{number}.safetensors" for number in range(500)]
    monkeypatch.setattr(folder_paths, "get_filename_list", lambda kind: files)
    with pytest.raises(ValueError, match=r"^'lora_name': there is no 'x': choose one of the list\.$"):
        NODES["CBGateLoRA"].execute(lora_name="x")


@pytest.mark.parametrize("node_id", NODES)
def test_pages_get_every_dropdown_with_its_options(node_id: str) -> None:
    """As a server of any age sends them: the options are the type, or beside it."""
    told = json.loads(json.dumps(NODES[node_id].INPUT_TYPES()))
    for name in (name for of, name in CHOICES if of == node_id):
        kind, about = {**told["required"], **told.get("optional", {})}[name]
        assert (kind if isinstance(kind, list) else about["options"]) == CHOICES[node_id, name].options


@pytest.mark.parametrize("node_id", NODES)
def test_a_bad_text_is_reported_once(node_id: str) -> None:
    """Core repeats what validate_inputs says for every name that it declares, so it declares one."""
    read = inspect.signature(NODES[node_id].validate_inputs).parameters
    assert len(read) == 1


@pytest.mark.parametrize(
    ("node_id", "name", "text"),
    [
        ("CBSelectLayers", "pin", "y"),
        ("CBLayerGate", "layers", "y"),
        ("CBGradSAMMask", "noise_levels", "7"),
        ("CBGradSAMBlend", "windows", "0.9-0.1"),
        ("CBStyleFromPicture", "pin", "y"),
        ("CBStyleAndStructure", "pin", "y"),
        ("CBKeepSubject", "windows", "0.9-0.1"),
        ("CBProfileFromRecording", "series", "../up"),
    ],
)
def test_core_reports_a_bad_text_once(node_id: str, name: str, text: str) -> None:
    (error,) = refused(node_id, **{name: text})
    assert error["extra_info"]["input_name"] == name and f"'{name}'" in error["details"]


def test_weights_by_hand_concern_their_own_policy_only() -> None:
    assert not refused("CBGateControlNet", policy="paper", weights="1x9 oops")
