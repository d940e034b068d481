"""A LoRA under a gate on every family of transformers: an empty gate is none, a full one is ComfyUI's own loader."""

from __future__ import annotations

import comfy.sd
import comfy.utils
import pytest
import torch
from style_case import differ
from test_gate_lora import RANK, gate, lora_of
from test_transformers import EVERY, run
from tiny_transformers import KINDS, tiny_transformer

from conditional_balance.runtime.arch.registry import architecture_of
from conditional_balance.runtime.inject.lora import gate_lora

SMALL = 0.3  # strength at which random patches leave finite pictures


@pytest.mark.parametrize("kind", EVERY)
def test_an_empty_gate_is_no_lora_and_a_full_one_is_the_ordinary_loader(kind: str) -> None:
    model = tiny_transformer(kind)
    lora, plain = lora_of(model), run(model, kind, batch=1)
    off, full = (gate_lora(model, None, lora, gate(text), SMALL, 1.0) for text in ("-all", "all"))
    assert off.acting == 0 and torch.equal(run(off.model, kind, batch=1), plain)
    ordinary, _ = comfy.sd.load_lora_for_models(model, None, lora, SMALL, 1.0)
    assert full.acting == full.weights > 20 and not full.unused
    found = run(full.model, kind, batch=1)
    assert torch.equal(found, run(ordinary, kind, batch=1)) and bool(found.isfinite().all()) and differ(found, plain)
    assert torch.equal(run(model, kind, batch=1), plain)  # nothing stayed


@pytest.mark.parametrize("kind", EVERY)
def test_one_layer_changes_its_own_block_alone(kind: str) -> None:
    model = tiny_transformer(kind)
    architecture = architecture_of(model)
    inside = {name for layer in architecture.layers for name in architecture.parameters(layer)}
    for layer in architecture.layers:
        found = gate_lora(model, None, lora_of(model), gate(str(layer)), 1.0, 1.0)
        changed = {name.removeprefix("diffusion_model.") for name in found.model.patches} & inside
        assert architecture.projection(layer, "q") in changed <= set(architecture.parameters(layer))


@pytest.mark.parametrize("kind", ["flux", "sd3", "qwen", "z-image"])
def test_a_lora_with_the_names_of_diffusers_is_gated_too(kind: str) -> None:
    """Its queries, keys and values are parts of one fused weight where ComfyUI holds them so."""
    model = tiny_transformer(kind)
    layer = architecture_of(model).layers[-1]
    theirs = diffusers_lora(kind, model)
    full, one, off = (gate_lora(model, None, theirs, gate(text), SMALL, 1.0) for text in ("all", f"{layer}", "-all"))
    ordinary, _ = comfy.sd.load_lora_for_models(model, None, theirs, SMALL, 1.0)
    plain = run(model, kind, batch=1)
    assert torch.equal(run(full.model, kind, batch=1), run(ordinary, kind, batch=1))
    assert torch.equal(run(off.model, kind, batch=1), plain) and differ(run(one.model, kind, batch=1), plain)
    assert 0 < one.acting < full.acting and not full.unused


def diffusers_lora(kind: str, model) -> dict[str, torch.Tensor]:
    """A LoRA on queries, keys and values of every block, as diffusers names them."""
    options = KINDS[kind].options
    to_theirs = {
        "flux": lambda: comfy.utils.flux_to_diffusers(options, output_prefix="diffusion_model."),
        "sd3": lambda: comfy.utils.mmdit_to_diffusers(options, output_prefix="diffusion_model."),
        "z-image": lambda: comfy.utils.z_image_to_diffusers(options, output_prefix="diffusion_model."),
    }
    weights = model.model.state_dict()
    if kind == "qwen":
        named = {name.removeprefix("diffusion_model."): name for name in weights if name.endswith("weight")}
    else:
        named = to_theirs[kind]()
    generator, found = torch.Generator().manual_seed(3), {}
    for name, ours in named.items():
        held = ours if isinstance(ours, str) else ours[0]
        if not name.endswith((".to_q.weight", ".to_k.weight", ".to_v.weight")) or held not in weights:
            continue
        weight = weights[held]
        rows = weight.shape[0] if isinstance(ours, str) else ours[1][2]
        key = f"{'diffusion_model' if kind == 'z-image' else 'transformer'}.{name.removesuffix('.weight')}"
        found[f"{key}.lora_A.weight"] = torch.randn(RANK, weight.shape[1], generator=generator) / weight.shape[1] ** 0.5
        found[f"{key}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator) / 4
    assert found
    return found


def test_the_second_attention_of_a_block_has_a_gate_of_its_own() -> None:
    model = tiny_transformer("sd35-medium")
    for text, acts in (("j0", "attn.qkv"), ("x0", "attn2.qkv")):
        found = gate_lora(model, None, lora_of(model, "qkv"), gate(text), 1.0, 1.0).model.patches
        picture = [name for name in found if "joint_blocks.0.x_block" in name]
        assert picture == [f"diffusion_model.joint_blocks.0.x_block.{acts}.weight"]
