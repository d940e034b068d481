"""Adapters of other packs under a gate: attached as IPAdapter_plus attaches its own, and never known by class."""

from __future__ import annotations

import logging
from typing import Any

import comfy.ldm.modules.attention
import pytest
import torch
from style_case import KINDS, assert_close, assert_same_traces, differ, gate, little_memory, model, run, styled, traces
from tiny_transformers import KINDS as TRANSFORMERS
from tiny_transformers import tiny_transformer as transformer

from conditional_balance.engine.gates import LayerGate, windowed
from conditional_balance.nodes.adapter import CBGateAdapter, CBGateToText
from conditional_balance.runtime.arch.registry import architecture_of
from conditional_balance.runtime.inject.adapter import gate_adapter

__all__ = ["little_memory"]


class Addition:
    """Replaces attn2 by attention to the text plus what each adapter that was added to it attends to."""

    def __init__(self) -> None:
        self.adapters: list[Any] = []

    def add(self, adapter: Any) -> None:
        self.adapters.append(adapter)

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        attend = comfy.ldm.modules.attention.optimized_attention
        out = attend(q, k, v, options["n_heads"])
        for tokens in self.adapters:
            rows = [tokens[kind] for kind in options["cond_or_uncond"]]
            each = len(q) // len(rows)
            keys = torch.cat([row.expand(each, -1, -1) for row in rows])[..., : q.shape[-1]].to(q)
            out = out + attend(q, keys, keys.flip(1), options["n_heads"])
        return out


def adapted(of: Any, seed: int = 3, whole_blocks: bool = False, strength: float = 1.0) -> Any:
    """A clone with an adapter in every cross-attention; the middle under a number that no model has, as there."""
    patched = of.clone()
    options = patched.model_options["transformer_options"] = dict(patched.model_options["transformer_options"])
    options["patches_replace"] = dict(options.get("patches_replace", {}))
    at = options["patches_replace"]["attn2"] = dict(options["patches_replace"].get("attn2", {}))
    tokens = strength * torch.randn(2, 1, 4, 256, generator=torch.Generator().manual_seed(seed))
    for layer in architecture_of(of).layers:
        key = (layer.block, 1 if layer.block == "middle" else layer.number)
        key = key if whole_blocks else (*key, layer.transformer)
        at.setdefault(key, Addition())
        if not any(tokens is each for each in at[key].adapters):
            at[key].add(tokens)
    return patched


def gated(of: Any, layers: str | LayerGate = "all") -> Any:
    return gate_adapter(of, gate(layers) if isinstance(layers, str) else layers)[0]


@pytest.mark.parametrize("whole_blocks", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_full_gate_is_the_adapter_and_an_empty_one_is_none_bit_for_bit(kind: str, whole_blocks: bool) -> None:
    of = model(kind)
    with_adapter = adapted(of, whole_blocks=whole_blocks)
    plain, ungated = run(of), run(with_adapter)
    assert differ(plain, ungated)
    assert torch.equal(run(gated(with_adapter)), ungated)
    assert torch.equal(run(gated(with_adapter, "-all")), plain)


def adding(amount: float) -> Any:
    """An attn2 replace that adds so much of its own to the attention to the text."""

    def replaced(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        return comfy.ldm.modules.attention.optimized_attention(q, k, v, options["n_heads"]) + amount * q.flip(1)

    return replaced


def test_weights_scale_what_the_adapter_adds() -> None:
    of = model("sd15")
    whole, half = of.clone(), of.clone()
    whole.set_model_attn2_replace(adding(1.0), "output", 5)
    half.set_model_attn2_replace(adding(0.5), "output", 5)
    assert_close(run(gated(whole, "all:0.5")), run(half))
    assert differ(run(whole), run(half))


def test_chosen_layers_and_calls_of_one_conditioning(little_memory: None) -> None:
    of = model("sd15")
    with_adapter = adapted(of)
    some = run(gated(with_adapter, "o"))
    assert differ(some, run(of)) and differ(some, run(with_adapter))
    outputs_only = of.clone()
    at = with_adapter.model_options["transformer_options"]["patches_replace"]["attn2"]
    for key, function in at.items():
        if key[0] == "output":
            outputs_only.set_model_attn2_replace(function, *key)
    assert torch.equal(some, run(outputs_only))


def test_a_window_that_is_over_is_no_adapter_from_there_on() -> None:
    of = model("sd15")
    with_adapter = adapted(of)
    assert torch.equal(run(gated(with_adapter, windowed(gate("all"), 0.97, 0.98))), run(of))
    early = run(gated(with_adapter, windowed(gate("all"), 0.0, 0.3)), steps=4)
    assert differ(early, run(of, steps=4)) and differ(early, run(with_adapter, steps=4))


def test_two_adapters_each_under_a_gate_of_its_own() -> None:
    """The pack adds its second adapter to the first one's object; each gate takes its own adapter, in any branch."""
    of = model("sd15")
    assert_close(run(gated(adapted(gated(adapted(of, 3), "-all"), 4), "all")), run(adapted(of, 4)), 1e-3)
    assert_close(run(gated(adapted(gated(adapted(of, 3)), 4), "-all")), run(adapted(of, 3)), 1e-3)
    assert torch.equal(run(gated(adapted(gated(adapted(of, 3)), 4))), run(adapted(adapted(of, 3), 4)))
    assert_close(run(adapted(gated(adapted(of, 3), "-all"), 4)), run(adapted(of, 4)), 1e-3)


def test_what_came_in_behind_the_gate_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """A replace cannot be told from one that has thrown the adapter away, so the gate takes it as a whole."""
    of = model("sd15")
    patched = gated(adapted(of), "-o5")

    def another(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        return q

    patched.set_model_attn2_replace(another, "output", 5, 0)
    with caplog.at_level(logging.WARNING):
        run(patched)
    said = [record.getMessage() for record in caplog.records if "o5.0" in record.getMessage()]
    assert len(said) == 1 and "another of test_gate_adapter" in said[0]


def test_style_beside_an_adapter_and_nothing_stays() -> None:
    of = adapted(model("sd15"))
    before = traces(of)
    both = run(styled(gated(of, "o"), "i"))
    assert differ(both, run(gated(of, "o"))) and torch.isfinite(both).all()
    assert_same_traces(before, traces(of))


def test_models_without_an_adapter_and_transformers_are_refused() -> None:
    with pytest.raises(ValueError, match="'model' has no adapter"):
        gated(model("sd15"))
    with pytest.raises(ValueError, match="no other gate has yet"):
        gated(gated(adapted(model("sd15"))))
    with pytest.raises(ValueError, match="no layer"):
        gated(adapted(model("sd15")), "o1.8")
    with pytest.raises(ValueError, match="'model' is a Flux: adapters for transformers"):
        gated(transformer("flux"))


def test_the_node_says_where_the_adapter_is() -> None:
    of = model("sd15")
    words = CBGateAdapter.execute(adapted(of), gate("o"), 0.2, 1.0).ui["cb_summary"][0]
    assert "i1.0" in words and "nothing in m0.0" in words and "middle 1" in words and "20%" in words


def test_a_gate_becomes_a_text_for_its_model_and_formats_of_other_families_are_refused() -> None:
    of = model("sdxl")
    out = CBGateToText.execute(gate("o1, i8:0.5"), of, "IPAdapter layer weights")
    assert out.args[0] == "3:0.5,6:1" and out.ui["cb_summary"][0] == "3:0.5,6:1"
    changing = CBGateToText.execute(windowed(gate("o1"), 0.0, 0.5), of, "LoRA block weights")
    assert changing.args[0].split(",")[7] == "0.5" and "mean over the run" in changing.ui["cb_summary"][0]
    assert "flux" in TRANSFORMERS
    assert CBGateToText.execute(gate("all"), transformer("flux"), "LoRA block weights").args[0] == "1,1,1,1,1,1"
    for name, form in (("flux", "IPAdapter"), ("flux", "Advanced-ControlNet"), ("sd3", "LoRA")):
        (form,) = (each for each in CBGateToText.define_schema().inputs[2].options if each.startswith(form))
        with pytest.raises(ValueError, match=f"'format' {form} does not fit this"):
            CBGateToText.execute(gate("all"), transformer(name), form)
