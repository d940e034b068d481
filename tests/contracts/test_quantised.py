"""Quantised weights: everything does what it does with full ones, to within what quantisation changes by itself."""

from __future__ import annotations

from functools import cache
from typing import Any

import comfy.model_management
import comfy.sd
import pytest
import test_transformers
import torch
from quantised import FORMS, quantised
from style_case import differ
from style_case import hidden as hidden_unet
from style_case import run as run_unet
from style_case import styled as styled_unet
from test_gate_lora import gate, lora_of
from test_transformer_style import hidden, styled
from test_transformers import hooks_of
from tiny_transformers import KINDS, cond, latent, tiny_transformer
from torch import nn

import tiny
from conditional_balance.engine.subject import Phrase
from conditional_balance.runtime.arch.fingerprint import fingerprint_of
from conditional_balance.runtime.arch.registry import architecture_of
from conditional_balance.runtime.attribution.find import ProbeSettings, find_subject
from conditional_balance.runtime.attribution.settings import AttributionSettings
from conditional_balance.runtime.attribution.subject import Subject
from conditional_balance.runtime.inject.lora import gate_lora

MODELS = ("sd15", "flux", "sd3")
SMALL = 0.3  # strength at which random patches leave finite pictures


@cache
def full(kind: str) -> Any:
    return tiny_transformer(kind) if kind in KINDS else tiny.tiny_model(kind)


@cache
def calm(kind: str, form: str) -> Any:
    """Quantised on a machine that puts weights back into numbers before it multiplies."""
    return quantised(full(kind), form)


def rounding(kind: str, form: str) -> Any:
    """Quantised on a machine that rounds what goes into a layer to fp8, as newer cards; PyTorch can do it here too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.model_management, "SUPPORT_FP8_OPS", True)
        return quantised(full(kind), form)


def run(model: Any, kind: str, batch: int = 1) -> torch.Tensor:
    return test_transformers.run(model, kind, batch) if kind in KINDS else run_unet(model, batch)


def find(model: Any, kind: str, method: str, **settings: Any) -> Any:
    picture, text = (latent(kind, 4), cond(kind, 1)) if kind in KINDS else (tiny.latent(4), tiny.cond(model, 1))
    subject, asked = Subject(text, (Phrase("fox", (2, 3)),)), AttributionSettings(method, **settings)
    with torch.inference_mode():
        return find_subject(model, picture["samples"], subject, ProbeSettings((0.5,)), asked)


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def state(model: Any) -> dict[str, Any]:
    """What a look could leave on a model's modules."""
    attributes = {name: dict(vars(module)) for name, module in model.model.diffusion_model.named_modules()}
    return {name: {key: repr(value) for key, value in own.items()} for name, own in attributes.items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MODELS)
def test_style_and_maps_are_those_of_full_weights_but_for_the_quantisation(kind: str, form: str) -> None:
    model = calm(kind, form)
    plain, style = (styled, hidden(kind)) if kind in KINDS else (styled_unet, hidden_unet(model))
    moved = run(plain(model, reference=style), kind)
    assert 0 < apart(moved, run(plain(full(kind), reference=style), kind)) < 0.3 and differ(moved, run(model, kind))
    for method in ("attention", "value_norm", "jvp", "grad_sam"):
        found = find(model, kind, method)
        assert found.method == method and not found.note
        assert 0 < apart(found.maps, find(full(kind), kind, method).maps) < 0.3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("kind", "method", "settings"),
    [
        ("flux", "jvp", {}),
        ("flux", "grad_sam", {}),
        ("flux", "attention", {"weighting": "by layer"}),
        ("sd15", "jvp", {}),
        ("sd15", "grad_sam_output", {}),
    ],
)
def test_layers_that_round_their_input_give_the_same_derivatives(
    kind: str, method: str, settings: dict[str, str], form: str
) -> None:
    """A small step drowns in the rounding to fp8, and no gradient passes through it."""
    model, expected = rounding(kind, form), find(calm(kind, form), kind, method, **settings)
    plain, before = run(model, kind), state(model)
    assert apart(plain, run(calm(kind, form), kind)) > 0.01  # it does round
    found = find(model, kind, method, **settings)
    assert found.method == method and not found.note
    assert apart(found.maps, expected.maps) < (0.1 if method == "attention" else 0.01)
    assert state(model) == before and torch.equal(run(model, kind), plain)


@pytest.mark.parametrize("form", FORMS)
def test_a_look_that_fails_leaves_layers_that_round_as_they_were(form: str) -> None:
    model = rounding("flux", form)
    plain, before = run(model, "flux"), state(model)
    last = model.model.diffusion_model.single_blocks[-1].linear2
    handle = last.register_forward_pre_hook(lambda *args: torch.zeros(1, 2).reshape(7))
    try:
        with pytest.raises(RuntimeError, match="shape"):
            find(model, "flux", "jvp")
    finally:
        handle.remove()
    assert state(model) == before and hooks_of(model) == 0 and torch.equal(run(model, "flux"), plain)


def test_a_layer_that_takes_no_hook_leaves_none_on_the_network() -> None:
    model = rounding("flux", FORMS[0])
    last = model.model.diffusion_model.single_blocks[-1].linear2

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("takes no hook")

    last.register_forward_hook = refuse
    try:
        with pytest.raises(RuntimeError, match="takes no hook"):
            find(model, "flux", "jvp")
    finally:
        del last.register_forward_hook
    assert hooks_of(model) == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_gated_lora_patches_quantised_weights_as_the_ordinary_loader_does(kind: str, form: str) -> None:
    model, lora = calm(kind, form), lora_of(full(kind))
    plain, first = run(model, kind), str(architecture_of(model).layers[0])
    off, one, every = (gate_lora(model, None, lora, gate(text), SMALL, 1.0) for text in ("-all", first, "all"))
    ordinary, _ = comfy.sd.load_lora_for_models(model, None, lora, SMALL, 1.0)
    assert off.acting == 0 and torch.equal(run(off.model, kind), plain)
    assert every.acting == every.weights > 20 and not every.unused
    found = run(every.model, kind)
    assert torch.equal(found, run(ordinary, kind)) and differ(found, plain) and differ(run(one.model, kind), plain)
    assert torch.equal(run(model, kind), plain)  # nothing stayed


@pytest.mark.parametrize("kind", MODELS)
def test_a_fingerprint_is_of_the_numbers_that_weights_stand_for(kind: str) -> None:
    """The same in every precision of computing, of either class that holds a checkpoint, and while a LoRA is loaded."""
    seen = set()
    for form in ("scaled", "mixed"):
        for compute in (torch.float32, torch.bfloat16, torch.float16):
            model = quantised(full(kind), form, compute)
            seen.add(fingerprint_of(model)["weights"])
            patched = gate_lora(model, None, lora_of(full(kind)), gate("all"), SMALL, 1.0).model
            with torch.inference_mode():
                comfy.model_management.load_models_gpu([patched])
                assert patched.backup
                seen.add(fingerprint_of(patched)["weights"])
            run(model, kind)
            seen.add(fingerprint_of(model)["weights"])
    assert len(seen) == 1 and seen.isdisjoint(
        fingerprint_of(each)["weights"] for each in (full(kind), calm(kind, "fp8"))
    )


def test_a_fingerprint_leaves_quantised_weights_as_they_are() -> None:
    model = quantised(full("flux"), "mixed", torch.bfloat16)
    before = state(model)
    weights = {name: repr(weight) for name, weight in model.model.named_parameters()}
    fingerprint_of(model)
    assert state(model) == before and {name: repr(each) for name, each in model.model.named_parameters()} == weights


@pytest.mark.parametrize("kind", MODELS)
def test_widths_are_the_layers_own_where_a_weight_is_packed(kind: str) -> None:
    """Other packs hold a weight of four bits as a column of bytes."""
    model = quantised(full(kind), "fp8")
    expected = fingerprint_of(full(kind))["widths"]
    for module in model.model.modules():
        if isinstance(module, nn.Linear):
            packed = torch.zeros(module.weight.numel() // 2, 1, dtype=torch.uint8)
            module.weight = nn.Parameter(packed, requires_grad=False)
    assert fingerprint_of(model)["widths"] == expected
