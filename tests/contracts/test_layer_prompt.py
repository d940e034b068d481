"""Another prompt at gated layers: an empty gate is no node, a full one is the other prompt itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy.samplers import calc_cond_batch
from style_case import KINDS, assert_close, assert_same_traces, differ, gate, little_memory, model, run, traces

from conditional_balance.engine.gates import windowed
from conditional_balance.nodes.prompts import CBLayerPrompt
from conditional_balance.runtime.inject.layer_prompt import LayerPrompt, prompt_layers
from tiny import cond

__all__ = ["little_memory"]


def prompted(of, layers: str = "all", seed: int = 7, tokens: int = 77, **window: float):
    text = cond(of, seed, tokens=tokens)[0][0]
    return prompt_layers(of, LayerPrompt(windowed(gate(layers), *window.values()) if window else gate(layers), text))


def with_text(of, seed: int, tokens: int = 77):
    """The run's positive prompt with another text and its own pooled one."""
    return [[cond(of, seed, tokens=tokens)[0][0], cond(of, 1)[0][1]]]


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_gate_changes_no_bit_and_a_full_one_is_the_other_prompt(kind: str) -> None:
    of = model(kind)
    assert torch.equal(run(prompted(of, "-all")), run(of))
    assert torch.equal(run(prompted(of)), run(of, positive=with_text(of, 7)))


@pytest.mark.parametrize("tokens", [77, 154])
def test_texts_of_other_lengths_and_calls_of_one_conditioning(tokens: int, little_memory: None) -> None:
    of = model("sd15")
    assert_close(run(prompted(of, tokens=tokens)), run(of, positive=with_text(of, 7, tokens)))


def test_some_layers_lie_between_and_weights_mix() -> None:
    of = model("sd15")
    own, other = run(of), run(of, positive=with_text(of, 7))
    for layers in ("o", "all:0.5"):
        found = run(prompted(of, layers))
        assert differ(found, own) and differ(found, other)


def test_a_window_that_is_never_reached_changes_no_bit() -> None:
    of = model("sd15")
    assert torch.equal(run(prompted(of, "all", start=0.97, end=0.98)), run(of))


def test_two_prompts_share_the_layers_and_nothing_stays() -> None:
    of = model("sd15")
    before = traces(of)
    both = prompt_layers(prompted(of, "o"), LayerPrompt(gate("all, -o"), cond(of, 7)[0][0]))
    assert_close(run(both), run(of, positive=with_text(of, 7)))
    assert_same_traces(before, traces(of))


def test_text_of_another_model_and_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match="'conditioning' holds text of width 128, but this model reads 64"):
        prompt_layers(model("sd15"), LayerPrompt(gate("all"), cond(model("sdxl"), 1)[0][0]))
    with pytest.raises(ValueError, match="no layer"):
        prompted(model("sd15"), "o1.8")


def test_the_node_says_what_it_does() -> None:
    of = model("sd15")
    out = CBLayerPrompt.execute(of, cond(of, 7), gate("o3"), 0.2, 1.0)
    assert "20%" in out.ui["cb_summary"][0]
    with pytest.raises(ValueError, match="'conditioning' is empty"):
        CBLayerPrompt.execute(of, [], gate("o3"), 0.0, 1.0)


def test_a_call_of_the_negative_prompt_alone_keeps_it() -> None:
    """Self-attention guidance predicts the negative prompt once more, in a call of its own."""
    from comfy_extras.nodes_sag import SelfAttentionGuidance

    of = SelfAttentionGuidance.execute(model("sd15"), 0.5, 2.0)[0]
    large = {"latent": {"samples": torch.zeros(1, 4, 16, 32)}}
    assert_close(run(prompted(of), **large), run(of, positive=with_text(of, 7), **large))


def test_a_prompt_of_another_nodes_before_the_runs_own_is_left_alone() -> None:
    """As where a node predicts one more prompt in the sampler's call: the run's positive one is known among them."""

    def beside(args: dict[str, Any]) -> list[torch.Tensor]:
        conds = [[*args["conds"][1]], *args["conds"]]  # a list of its own, as another prompt has
        return calc_cond_batch(args["model"], conds, args["input"], args["sigma"], args["model_options"])[1:]

    of = model("sd15").clone()
    of.set_model_sampler_calc_cond_batch_function(beside)
    assert_close(run(prompted(of)), run(of, positive=with_text(of, 7)))
