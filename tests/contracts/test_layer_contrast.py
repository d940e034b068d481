"""Style as guidance: nothing at strength 0, the styled prediction at 1 without CFG, and other guidance beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy_extras.nodes_cfg import CFGNorm
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from style_case import (
    KINDS,
    assert_close,
    assert_same_traces,
    differ,
    free_memory,
    gate,
    hidden,
    model,
    run,
    styled,
    traces,
)
from test_transformer_style import hidden as hidden_of
from test_transformers import EVERY
from test_transformers import run as run_transformer
from tiny_transformers import tiny_transformer

from conditional_balance.nodes.contrast import CBLayerContrast
from conditional_balance.runtime.inject.reference import FIRST_ROW


def contrasted(of: Any, layers: str = "all", strength: float = 1.0, reference: Any = FIRST_ROW, **options: Any) -> Any:
    window = options.pop("start", 0.0), options.pop("end", 1.0)
    return CBLayerContrast.execute(of, gate(layers), strength, *window, reference, **options).args[0]


@pytest.mark.parametrize("kind", KINDS)
def test_off_is_off(kind: str) -> None:
    of = model(kind)
    plain, before = run(of), traces(of)
    assert torch.equal(run(contrasted(of, strength=0.0)), plain)
    assert torch.equal(run(contrasted(of, "-all", reference=hidden(of))), plain)
    assert torch.equal(run(contrasted(of, start=0.97, end=0.98)), plain)
    assert_same_traces(before, traces(of))


@pytest.mark.parametrize("kind", KINDS)
def test_at_one_without_cfg_it_is_the_styled_prediction(kind: str) -> None:
    of = model(kind)
    for reference in (FIRST_ROW, hidden(of)):
        assert_close(
            run(contrasted(of, reference=reference), cfg=1.0), run(styled(of, reference=reference), cfg=1.0), 1e-3
        )


@pytest.mark.parametrize("kind", EVERY)
def test_every_family_of_transformers(kind: str) -> None:
    of, reference = tiny_transformer(kind), hidden_of(kind)
    led = run_transformer(styled(of, reference=reference), kind, cfg=1.0)
    assert_close(run_transformer(contrasted(of, reference=reference), kind, cfg=1.0), led, 1e-2)


def test_the_first_picture_is_left_alone_and_prompts_are_still_followed() -> None:
    of = model("sd15")
    plain, found = run(of), run(contrasted(of, strength=2.0))
    assert torch.equal(found[0], plain[0]) and differ(found[1:], plain[1:])
    assert differ(run(contrasted(of, strength=-1.0))[1:], plain[1:])
    assert differ(run(contrasted(of, strength=2.0, rescale=0.7))[1:], found[1:])


@pytest.mark.parametrize("other", ["pag", "cfg norm", "style injection"])
def test_other_guidance_lives_beside_it(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of, reference = model("sd15"), hidden(model("sd15"))
    with torch.inference_mode():
        beside = {
            "pag": lambda given: PerturbedAttentionGuidance.execute(given, 3.0).args[0],
            "cfg norm": lambda given: CFGNorm.execute(given, 1.0).args[0],
            "style injection": lambda given: styled(given, "o", reference=reference),
        }[other]
        one, two = contrasted(beside(of), reference=reference), beside(contrasted(of, reference=reference))
    found = run(one)
    assert (
        bool(found.isfinite().all())
        and differ(found, run(beside(of)))
        and differ(found, run(contrasted(of, reference=reference)))
    )
    assert_close(run(two), found, 1e-3)
    free_memory(monkeypatch, 0)
    assert_close(run(one), found, 1e-3)


def _held_against(strength: float) -> Any:
    """Attention output that moves away from the negative prompt's, where both run in one call, as NAG's does."""

    def patch(out: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        kinds = options["cond_or_uncond"]
        if set(kinds) != {0, 1}:
            return out
        chunks = out.unflatten(0, (len(kinds), -1)).clone()
        chunks[kinds.index(0)] += strength * (chunks[kinds.index(0)] - chunks[kinds.index(1)])
        return chunks.flatten(0, 1)

    return patch


def guided_in_attention(of: Any, how: str, strength: float = 5.0) -> Any:
    if how == "nag":
        node = pytest.importorskip("comfy_extras.nodes_nag", reason="this ComfyUI has no NAG").NAGuidance
        return node.execute(of, strength, 0.5, 1.5).args[0]
    patched = of.clone()
    patched.set_model_attn1_output_patch(_held_against(strength - 1))
    patched.model_options["disable_cfg1_optimization"] = True
    return patched


@pytest.mark.parametrize("how", ["nag", "another pack's"])
@pytest.mark.parametrize("kind", ["sd15", "flux"])
def test_attention_that_holds_prompts_against_each_other_guides_both_predictions(kind: str, how: str) -> None:
    """Else guidance by style would lead away from it: at one without CFG it is the styled prediction, as ever."""
    if kind == "flux" and how != "nag":
        pytest.skip("the patch of this test knows a UNet's rows")
    of = model(kind) if kind == "sd15" else tiny_transformer(kind)
    reference = hidden(of) if kind == "sd15" else hidden_of(kind)

    def painted(given: Any) -> torch.Tensor:
        return run(given, cfg=1.0) if kind == "sd15" else run_transformer(given, kind, cfg=1.0)

    with torch.inference_mode():
        nag = guided_in_attention(of, how)
        led, shared = contrasted(nag, reference=reference), styled(nag, reference=reference)
    found = painted(shared)
    assert differ(found, painted(nag)) and differ(found, painted(styled(of, reference=reference)))
    assert_close(painted(led), found, 1e-2)


@pytest.mark.parametrize("how", ["nag", "another pack's"])
def test_style_beside_attention_that_holds_prompts_against_each_other(how: str) -> None:
    """Rows of references stand where such a patch expects rows: at strength 1, where it changes nothing, as without."""
    of = model("sd15")
    for reference in (FIRST_ROW, hidden(of)):
        with torch.inference_mode():
            nag = guided_in_attention(of, how)
            assert torch.equal(run(styled(nag, "-all", reference=reference)), run(nag))
            idle = styled(guided_in_attention(of, how, 1.0), reference=reference)
        assert_close(run(idle), run(styled(of, reference=reference)), 1e-3)


def test_two_contrasts_and_samplers() -> None:
    of, reference = model("sd15"), hidden(model("sd15"))
    once = run(contrasted(of, strength=2.0, reference=reference), steps=1)
    twice = run(contrasted(contrasted(of, reference=reference), reference=reference), steps=1)
    assert_close(twice, once, 1e-3)
    for sampler in ("dpm_2", "uni_pc", "euler_ancestral"):
        assert bool(run(contrasted(of, reference=reference), sampler=sampler).isfinite().all())


def test_bad_input_is_one_sentence() -> None:
    of = model("sd15")
    with pytest.raises(ValueError, match="no layer"):
        contrasted(of, "o1.8")
    with pytest.raises(
        ValueError, match="takes style from the first picture of the batch, and this batch has only one"
    ):
        run(contrasted(of), batch=1)


def test_a_sampling_function_that_leaves_out_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """AutomaticCFG puts its own in ComfyUI's place, for every model from then on, and tells less than ComfyUI does."""
    import comfy.samplers

    of, own = model("sd15"), comfy.samplers.cfg_function
    both = contrasted(of, reference=hidden(of))
    expected = run(both)

    def telling_less(base: Any, *args: Any, model_options: Any, **kwargs: Any) -> Any:
        def poorer(function: Any) -> Any:
            return lambda given: function({name: value for name, value in given.items() if name != "cond_scale"})

        functions = [poorer(each) for each in model_options["sampler_post_cfg_function"]]
        return own(base, *args, model_options={**model_options, "sampler_post_cfg_function": functions}, **kwargs)

    monkeypatch.setattr(comfy.samplers, "cfg_function", telling_less)
    assert torch.equal(run(both), expected)
