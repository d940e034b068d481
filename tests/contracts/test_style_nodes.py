"""The gate and style nodes: schemas for people, and one clear sentence for every bad input."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from comfy_api.latest import io
from style_case import assert_close, differ, empty, model, run

from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.nodes import gate as gate_nodes
from conditional_balance.nodes import style as style_nodes
from conditional_balance.runtime.arch.unet import attention_layers
from tiny import cond, latent, sample

NODES = [*gate_nodes.NODES, *style_nodes.NODES]
BY_ID = {node.define_schema().node_id: node for node in NODES}


def call(node_id: str, **inputs: Any) -> tuple[Any, ...]:
    """Execute a node as the server does: every widget that is not given has its default."""
    schema = BY_ID[node_id].define_schema()
    defaults = {each.id: each.default for each in schema.inputs if getattr(each, "default", None) is not None}
    return BY_ID[node_id].execute(**{**defaults, **inputs}).args


def profile_of(of: Any) -> SensitivityProfile:
    layers = tuple(attention_layers(of))
    scores = torch.rand(2, 3, len(layers), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return SensitivityProfile(layers, ("q", "k"), torch.tensor([12.0, 1.0, 0.05], dtype=torch.float64), scores)


@pytest.mark.parametrize("node", NODES, ids=list(BY_ID))
def test_schemas_speak_to_people(node: type[io.ComfyNode]) -> None:
    schema = node.GET_SCHEMA()
    assert schema.node_id.startswith("CB")
    assert schema.category.startswith("conditional balance/")
    assert schema.description.endswith(".")
    for socket in (*schema.inputs, *schema.outputs):
        assert socket.tooltip and socket.tooltip.endswith("."), socket


def test_ids_and_sockets_are_those_promised() -> None:
    assert set(BY_ID) == {
        "CBSelectLayers", "CBLayerGate", "CBCombineGates", "CBStyleReference", "CBPromptBatch", "CBStyleInjection",
    }  # fmt: skip
    sockets = {node_id: [each.io_type for each in BY_ID[node_id].define_schema().outputs] for node_id in BY_ID}
    assert sockets["CBSelectLayers"] == ["LAYER_GATE", "IMAGE", "STRING"]
    assert sockets["CBStyleReference"] == ["STYLE_REFERENCE"]


def test_the_whole_chain_with_defaults() -> None:
    of = model("sdxl")
    gate, picture, words = call("CBSelectLayers", profile=profile_of(of))
    assert picture.ndim == 4 and picture.shape[3] == 3 and 0 <= picture.min() and picture.max() <= 1
    assert words.startswith("7 of 17 layers, mostly ")
    (reference,) = call("CBStyleReference", latent=latent(3), prompt=cond(of, 4))
    (injected,) = call("CBStyleInjection", model=of, gate=gate, reference=reference)
    assert differ(run(injected, batch=1), run(of, batch=1))
    (injected,) = call("CBStyleInjection", model=of, gate=gate)
    assert torch.equal(run(injected)[0], run(of)[0])
    (injected,) = call("CBStyleInjection", model=of, gate=gate, strength=0.0)
    assert torch.equal(run(injected), run(of))


def test_lambda_zero_is_off() -> None:
    of = model("sdxl")
    gate, _, words = call("CBSelectLayers", profile=profile_of(of), **{"lambda": 0.0})
    assert words.startswith("0 of 17 layers")
    (injected,) = call("CBStyleInjection", model=of, gate=gate)
    assert torch.equal(run(injected), run(of))


def test_a_window_is_told() -> None:
    *_, words = call("CBSelectLayers", profile=profile_of(model("sd15")), start_percent=0.2, end_percent=0.8)
    assert words.endswith("Only from 20% to 80% of the schedule.")


def test_gates_are_combined() -> None:
    (some,) = call("CBLayerGate", layers="o3-5")
    (middle,) = call("CBLayerGate", layers="o5-8")
    layers = tuple(attention_layers(model("sd15")))
    for operation, count in (("and", 1), ("or", 6), ("minus", 2)):
        (combined,) = call("CBCombineGates", gate=some, other=middle, operation=operation)
        assert combined.weights(1.0, layers, float)[0].sum() == count
    (scaled,) = call("CBCombineGates", gate=some, operation="scale", factor=0.5)
    assert scaled.weights(1.0, layers, float)[0].sum() == 1.5


def test_a_prompt_for_every_picture(clip: Any) -> None:
    """Row i of a batch comes out as if prompt i were the only one."""
    of = model("sd15")
    prompts = ["a painting", "a ship", "a much " + "longer " * 90 + "prompt"]
    (stacked,) = call("CBPromptBatch", clip=clip, prompts="\n\n".join(prompts))
    assert stacked[0][0].shape == (3, 154, 64)
    assert stacked[0][1]["pooled_output"].shape[0] == 3
    together = run(of, positive=stacked)
    for index, prompt in enumerate(prompts):
        (alone,) = call("CBPromptBatch", clip=clip, prompts=prompt)
        single = sample(of, alone, cond(of, 2), {**empty(1), "batch_index": [index]}, steps=2)
        batched = sample(of, stacked, cond(of, 2), {**empty(3), "batch_index": [0, 1, 2]}, steps=2)
        assert_close(batched[index : index + 1], single)
    assert differ(together, run(of))


@pytest.mark.parametrize(
    ("node_id", "inputs", "says"),
    [
        ("CBLayerGate", {"layers": "o1.4-9, z"}, r"'layers': Expected a layer at character 9;.*\n.*\n {8}\^"),
        ("CBSelectLayers", {"pin": "m0:3"}, r"'pin': A weight is at most 1 at character 3;"),
    ],
)
def test_the_prompt_is_refused_before_it_runs(node_id: str, inputs: dict[str, str], says: str) -> None:
    assert re.match(says, BY_ID[node_id].validate_inputs(**inputs))


def test_linked_texts_are_checked_when_they_arrive() -> None:
    assert BY_ID["CBLayerGate"].validate_inputs(layers=None) is True
    assert BY_ID["CBSelectLayers"].validate_inputs(pin=None) is True
    with pytest.raises(ValueError, match="at character 1"):
        call("CBLayerGate", layers="?")


@pytest.mark.parametrize(
    ("says", "node_id", "inputs"),
    [
        ("'other' is empty.*connect one", "CBCombineGates", {"gate": "o", "operation": "and"}),
        ("'latent' is empty.*'mode'", "CBStyleReference", {}),
        ("'prompts' is empty", "CBPromptBatch", {"clip": None, "prompts": " \n "}),
        ("'end_percent'.*swap", "CBLayerGate", {"start_percent": 0.9, "end_percent": 0.1}),
        ("'end_percent'.*swap", "CBSelectLayers", {"profile": "sd15", "start_percent": 0.9, "end_percent": 0.1}),
        (
            "'end_percent'.*swap",
            "CBStyleInjection",
            {"model": "sd15", "gate": "o", "start_percent": 1.0, "end_percent": 0},
        ),
        ("no layer like", "CBStyleInjection", {"model": "sd15", "gate": "o1.8"}),
        ("no layer like", "CBSelectLayers", {"profile": "sd15", "pin": "o1.8"}),
        ("profile was measured on 17", "CBStyleInjection", {"model": "sd15", "gate": "of sdxl"}),
    ],
)
def test_bad_input_is_one_sentence(says: str, node_id: str, inputs: dict[str, Any]) -> None:
    made = dict(inputs)
    if "model" in made:
        made["model"] = model(made["model"])
    if "profile" in made:
        made["profile"] = profile_of(model(made["profile"]))
    if made.get("gate") == "of sdxl":
        (made["gate"], *_) = call("CBSelectLayers", profile=profile_of(model("sdxl")))
    elif "gate" in made:
        (made["gate"],) = call("CBLayerGate", layers=made["gate"])
    with pytest.raises(ValueError, match=says):
        call(node_id, **made)


def test_another_architecture_is_refused() -> None:
    (gate,) = call("CBLayerGate", layers="all")
    of = model("sd15").clone()
    of.model = torch.nn.Module()
    of.model.diffusion_model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="'model' cannot be used here: its network Linear"):
        call("CBStyleInjection", model=of, gate=gate)
