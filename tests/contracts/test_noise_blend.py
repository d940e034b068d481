"""Two prompts in one run: off is off, everywhere is the other prompt; regions, noise levels, others beside it."""

from __future__ import annotations

import copy
from typing import Any

import node_helpers
import pytest
import torch
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from style_case import (
    HEIGHT,
    KINDS,
    WIDTH,
    assert_close,
    assert_same_traces,
    differ,
    little_memory,
    model,
    run,
    styled,
    tiny_controlnet,
    traces,
    with_control,
)
from test_transformers import EVERY
from test_transformers import run as run_transformer
from tiny_transformers import cond as transformer_cond
from tiny_transformers import tiny_transformer

from conditional_balance.nodes.noise_blend import CBNoiseBlend
from conditional_balance.runtime.runs import injector
from tiny import cond, tiny_model

__all__ = ["little_memory"]


def left(soft: bool = False) -> torch.Tensor:
    """A mask [1, 64, 128] of the left half of the pictures."""
    ramp = torch.linspace(1, 0, 8 * WIDTH)
    return (ramp if soft else (ramp > 0.5).float()).expand(1, 8 * HEIGHT, -1)


def blended(of: Any, other: Any = None, own: str = "gives way", strength: float = 1.0, **options: Any) -> Any:
    window = options.pop("start", 0.0), options.pop("end", 1.0)
    other = cond(of, 7) if other is None else other
    return CBNoiseBlend.execute(of, other, own, strength, *window, **options).args[0]


@pytest.mark.parametrize("kind", KINDS)
def test_off_is_off_and_everywhere_is_the_other_prompt(kind: str) -> None:
    of = model(kind)
    plain, before = run(of), traces(of)
    assert torch.equal(run(blended(of, strength=0.0)), plain)
    assert torch.equal(run(blended(of, mask=torch.zeros(1, 8, 8))), plain)
    assert torch.equal(run(blended(of, start=0.97, end=0.98)), plain)
    assert_close(run(blended(of)), run(of, positive=cond(of, 7)))
    assert_same_traces(before, traces(of))


@pytest.mark.parametrize("kind", EVERY)
def test_every_family_of_transformers(kind: str) -> None:
    of, other = tiny_transformer(kind), transformer_cond(kind, 7)
    led = run_transformer(blended(of, other), kind)
    assert_close(led, run_transformer(of, kind, positive=other), 1e-3)


def test_a_region_holds_the_other_prompt_and_the_rest_the_own_one() -> None:
    """At the first prediction, before what is left of the edge has seen what is right of it."""
    of = model("sd15")
    half = run(blended(of, mask=left()), steps=1)
    assert_close(half[..., : WIDTH // 2], run(of, positive=cond(of, 7), steps=1)[..., : WIDTH // 2])
    assert_close(half[..., WIDTH // 2 :], run(of, steps=1)[..., WIDTH // 2 :])


def test_noise_levels_pass_from_one_prompt_to_the_other() -> None:
    of = model("sd15")
    own, other = run(of, steps=4), run(of, positive=cond(of, 7), steps=4)
    early, late = blended(of, start=0.0, end=0.5), blended(of, start=0.5, end=1.0)
    for found in (run(early, steps=4), run(late, steps=4)):
        assert not torch.equal(found, own) and not torch.equal(found, other)
    assert_close(run(blended(early, start=0.5, end=1.0), steps=4), other)


def test_a_prompt_beside_itself_counts_twice() -> None:
    of = model("sd15")
    twice = run(blended(of, cond(of, 1), "stays"), cfg=2.0, steps=1)
    assert_close(twice, run(of, cfg=4.0, steps=1), 1e-3)


def test_calls_of_one_conditioning_and_cfg_1(little_memory: None) -> None:
    of = model("sd15")
    assert_close(run(blended(of)), run(of, positive=cond(of, 7)))
    assert_close(run(blended(of), cfg=1.0), run(of, positive=cond(of, 7), cfg=1.0))
    added = run(blended(of, own="stays"), cfg=1.0)  # asks for the negative by itself
    assert differ(added, run(of, cfg=1.0))


def test_two_blends_style_and_perturbed_attention_beside() -> None:
    of = model("sd15")
    both = blended(blended(of, cond(of, 8)), cond(of, 7), mask=left(True))
    assert differ(run(both), run(of, positive=cond(of, 8))) and differ(run(both), run(of, positive=cond(of, 7)))
    assert_close(run(blended(blended(of, cond(of, 8)), cond(of, 7))), run(of, positive=cond(of, 7)))
    styles = run(blended(styled(of, "o")))
    assert_close(styles, run(styled(of, "o"), positive=cond(of, 7)))
    with torch.inference_mode():
        guided = PerturbedAttentionGuidance.execute(of, 3.0).args[0]
    assert_close(run(blended(guided)), run(guided, positive=cond(of, 7)), 1e-3)


def test_the_other_prompt_brings_its_own_controlnet() -> None:
    of = model("sd15")
    positive, _ = with_control(tiny_controlnet("sd15"), cond(of, 7), cond(of, 2))
    expected = run(of, positive=positive, negative=cond(of, 2))
    assert_close(run(blended(of, positive)), expected, 1e-3)
    assert differ(expected, run(of, positive=cond(of, 7)))


def test_the_other_prompt_brings_its_own_lora() -> None:
    """A hook of its conditioning, as Create Hook LoRA makes it: in every run, once, and on no other prompt."""
    of = tiny_model("sd15")
    with_lora = hooked(of, cond(of, 7))
    expected, plain = run(of, positive=with_lora), run(of)
    patched = blended(of, with_lora)
    assert_close(run(patched), expected)
    assert_close(run(patched), expected)
    assert differ(expected, run(of, positive=cond(of, 7))) and torch.equal(run(of), plain)
    assert_close(run(patched, positive=hooked(of, cond(of, 1), with_lora[0][1]["hooks"])), expected)


def test_a_model_whose_weights_are_streamed_is_loaded_anew_for_a_prompt_with_a_lora_of_its_own() -> None:
    """As ComfyUI does for the guider's own prompts: weights on their way to a card take no hooks."""
    import comfy.model_patcher

    if not hasattr(comfy.model_patcher, "ModelPatcherDynamic"):
        pytest.skip("This version of ComfyUI does not stream weights.")

    class Streamed(comfy.model_patcher.ModelPatcherDynamic):
        """Without the memory of a card, which it would ask for at once."""

        def register_load_device(self, device: torch.device) -> None: ...
        def unpin_all_weights(self) -> None: ...
        def detach(self, unpatch_all: bool = True) -> None: ...

    of = tiny_model("sd15")
    streamed = Streamed(copy.copy(of.model), torch.device("cuda", 0), torch.device("cpu"))
    streamed.cached_patcher_init = (lambda **asked: of, ())
    assert blended(streamed, cond(of, 7)).is_dynamic() and blended(streamed, strength=0.0).is_dynamic()
    other = blended(streamed, hooked(of, cond(of, 7)))
    assert not other.is_dynamic() and other.model is of.model and injector.injectors_of(other, injector.Injector)


def hooked(of: Any, prompt: Any, hooks: Any = None) -> Any:
    """The prompt under a LoRA of one weight, or under one that is given."""
    from comfy.hooks import HookGroup, WeightHook

    if hooks is None:
        key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_k.weight"
        hook, hooks = WeightHook(1.0, 0.0), HookGroup()
        hook.weights, hook.need_weight_init = {key: ("diff", (torch.ones_like(of.model.state_dict()[key]),))}, False
        hooks.add(hook)
    [[text, extra]] = prompt
    return [[text, {**extra, "hooks": hooks}]]


def test_without_a_negative_prompt_only_giving_way_is_possible() -> None:
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Guider_Basic, Noise_RandomNoise

    of = model("sd15")

    def sampled(patched: Any, prompt: Any) -> torch.Tensor:
        with torch.inference_mode():
            guider = Guider_Basic(patched)
            guider.set_conds(prompt)
            sigmas = comfy.samplers.calculate_sigmas(of.get_model_object("model_sampling"), "normal", 2)
            empty = {"samples": torch.zeros(1, 4, HEIGHT, WIDTH)}
            noise = Noise_RandomNoise(1).generate_noise(empty)
            return guider.sample(noise, empty["samples"], comfy.samplers.sampler_object("euler"), sigmas)

    assert_close(sampled(blended(of), cond(of, 1)), sampled(of, cond(of, 7)))
    with pytest.raises(ValueError, match="'own_prompt' stays needs"):
        sampled(blended(of, own="stays"), cond(of, 1))


def test_bad_input_is_one_sentence() -> None:
    of = model("sd15")
    with pytest.raises(ValueError, match="'conditioning' is empty"):
        CBNoiseBlend.execute(of, [], "stays", 1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="'mask' holds 2 masks"):
        blended(of, mask=torch.ones(2, 8, 8))
    with pytest.raises(ValueError, match="'conditioning' acts in an area"):
        blended(of, node_helpers.conditioning_set_values(cond(of, 7), {"start_percent": 0.2, "end_percent": 1.0}))
    with pytest.raises(ValueError, match="swap them"):
        blended(of, start=0.5, end=0.2)
    assert "50%" in CBNoiseBlend.execute(of, cond(of, 7), "stays", 1.0, 0.0, 1.0, left()).ui["cb_summary"][0]
