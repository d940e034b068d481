"""Trajectories: recorded from any run, inverted and led back, and style references as they were painted."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import nodes
import pytest
import torch
from comfy_extras.nodes_custom_sampler import BasicGuider, SamplerCustomAdvanced
from style_case import assert_close, assert_same_traces, differ, empty, model, run, styled, traces
from test_transformers import run as run_transformer
from tiny_transformers import cond as cond_of
from tiny_transformers import latent as latent_of
from tiny_transformers import tiny_transformer

from conditional_balance.engine.inversion import decibels
from conditional_balance.engine.trajectory import Trajectory
from conditional_balance.nodes.style import FIRST, RENOISED, REPLAYED, CBStyleReference
from conditional_balance.nodes.trajectory import EXACT, PLAIN, CBInvertLatent, CBRecordTrajectory
from conditional_balance.runtime.inject.reference import StyleReference
from tiny import cond, latent, tiny_model

FLOW = ("sd3", "flux", "qwen")


def recorded(of: Any, **options: Any) -> tuple[Trajectory, torch.Tensor]:
    recording, trajectories = CBRecordTrajectory.execute(of).args
    out = run(recording, **options)
    return trajectories.of(out), out


@pytest.mark.parametrize("sampler", ["euler", "dpm_2", "uni_pc", "euler_ancestral", "dpmpp_2m_sde"])
def test_recording_changes_no_bit_and_holds_the_run(sampler: str) -> None:
    of = model("sd15")
    plain, before = run(of, batch=2, sampler=sampler, steps=3), traces(of)
    way, out = recorded(of, batch=2, sampler=sampler, steps=3)
    assert torch.equal(out, plain)
    assert_same_traces(before, traces(of))
    high, low = way.ends
    assert high == pytest.approx(float(of.get_model_object("model_sampling").sigma_max), rel=1e-3) and low < 0.0011
    assert_close(way.at(low), of.model.process_latent_in(out[0]))
    assert float(way.at(high).std()) == pytest.approx(high, rel=0.1)


@pytest.mark.parametrize("sampler", ["heun", "heunpp2", "dpmpp_2m"])
def test_a_level_that_is_called_twice_holds_the_state_that_was_reached(sampler: str) -> None:
    """Not where the sampler had guessed that it would be."""
    of, states = model("sd15"), {}
    recording, trajectories = CBRecordTrajectory.execute(of).args
    sigmas, noise = torch.tensor([8.0, 3.0, 1.0, 0.0]), torch.randn(1, 4, 8, 16)
    with torch.inference_mode():
        out = comfy.sample.sample_custom(
            recording, noise, 4.0, comfy.samplers.sampler_object(sampler), sigmas, cond(of, 1), cond(of, 2),
            torch.zeros_like(noise), callback=lambda step, denoised, x, total: states.__setitem__(step, x.clone()),
        )  # fmt: skip
    way = trajectories.of(out)
    assert all(torch.equal(way.at(float(sigmas[step])), x[0]) for step, x in states.items()) and len(states) == 3


@pytest.mark.parametrize("kind", ["sd15", "flux"])
@pytest.mark.parametrize("handed_on", [torch.float32, torch.float16])
def test_stages_of_one_schedule_are_one_way(kind: str, handed_on: torch.dtype) -> None:
    """As KSampler (Advanced) leaves noise for another one. A run with noise of its own has a way of its own."""
    flow = kind == "flux"
    of = tiny_transformer(kind) if flow else model(kind)
    start = latent_of(kind) if flow else latent(3)
    prompts = (cond_of(kind, 1), cond_of(kind, 2)) if flow else (cond(of, 1), cond(of, 2))
    recording, trajectories = CBRecordTrajectory.execute(of).args

    def staged(samples: torch.Tensor, **stage: Any) -> torch.Tensor:
        with torch.inference_mode():
            settings = (recording, 0, 4, 2.0, "euler", "normal", *prompts, {"samples": samples})
            return nodes.common_ksampler(*settings, **stage)[0]["samples"]

    whole = trajectories.of(staged(start["samples"]))
    begun = staged(start["samples"], last_step=2).to(handed_on)
    assert not trajectories.of(begun).reaches(0.01) and trajectories.of(begun).ends[0] == whole.ends[0]
    found = trajectories.of(staged(begun, disable_noise=True, start_step=2, force_full_denoise=True))
    torch.testing.assert_close(found.sigmas, whole.sigmas, rtol=1e-3, atol=0)
    assert_close(found.states[:3], whole.states[:3], 1e-2)  # what half precision does to the rest is its own
    other = trajectories.of(staged(begun, start_step=2, force_full_denoise=True))
    alone = trajectories.of(staged(begun + 1, disable_noise=True, start_step=2, force_full_denoise=True))
    assert other.ends[0] == alone.ends[0] < whole.ends[0]


def test_results_belong_to_their_run() -> None:
    recording, trajectories = CBRecordTrajectory.execute(model("sd15")).args
    first, second = run(recording, seed=1), run(recording, seed=2)
    again = trajectories.of(first)
    assert_close(again.at(0.0), model("sd15").model.process_latent_in(first[0]))
    assert not torch.equal(again.states[-1], trajectories.of(second).states[-1])
    with pytest.raises(ValueError, match="'latent' is not what a sampler made"):
        trajectories.of(first + 1)


def test_a_recorded_run_leads_as_the_first_row_led() -> None:
    """A hidden row at the recorded states, under its own prompt, is what the batch's first row was."""
    of = model("sd15")
    prompts = [[torch.cat((cond(of, 31)[0][0], cond(of, 1)[0][0])), {}]]
    together = run(styled(of), batch=2, positive=prompts, steps=3)
    way, alone = recorded(of, batch=2, positive=prompts, steps=3)
    assert_close(alone[:1], together[:1])
    reference = StyleReference(prompt=cond(of, 31), trajectory=way)
    noise = {**empty(1), "batch_index": [1]}
    led = run(styled(of, reference=reference), batch=1, latent=noise, steps=3, cfg=1.0)
    beside = run(styled(of), batch=2, positive=prompts, steps=3, cfg=1.0)
    recorded_plain, _ = recorded(of, batch=2, positive=prompts, steps=3, cfg=1.0)
    led = run(styled(of, reference=StyleReference(None, cond(of, 31), recorded_plain)), latent=noise, steps=3, cfg=1.0)
    assert_close(led, beside[1:], 1e-3)


def test_a_run_beyond_the_trajectory_and_another_size_are_refused() -> None:
    of = model("sd15")
    way, _ = recorded(of, batch=1, latent=latent(3, 1, 8, 16), denoise=0.4, steps=3)
    with pytest.raises(ValueError, match=r"'trajectory' goes from sigma .* and this run asks for"):
        run(styled(of, reference=StyleReference(trajectory=way)), batch=1)
    with pytest.raises(ValueError, match="'trajectory' is of a latent of shape"):
        run(styled(of, reference=StyleReference(trajectory=way)), batch=1, latent=empty(1, 16, 16))


def inverted(of: Any, positive: Any, picture: Any, **options: Any) -> Any:
    with torch.inference_mode():
        return CBInvertLatent.execute(
            of, positive, picture, **{"steps": 8, "scheduler": "normal", "mode": EXACT} | options
        )


def sampled(found: Any, positive: Any, size: Any, sampler: str = "euler") -> torch.Tensor:
    _, leading, noise, sigmas = found.args
    with torch.inference_mode():
        (guider,) = BasicGuider.execute(leading, positive).args
        chosen = comfy.samplers.sampler_object(sampler)
        out, _ = SamplerCustomAdvanced.execute(noise, guider, chosen, sigmas, {"samples": torch.zeros(size)}).args
    return out["samples"]


@pytest.mark.parametrize("v_pred", [False, True])
def test_euler_comes_back_exactly_in_the_direct_mode(v_pred: bool) -> None:
    of = tiny_model("sd15", v_pred=v_pred)
    run(of)
    picture, prompt, before = latent(3, 2, 8, 16), cond(of, 1), traces(of)
    found = inverted(of, prompt, picture)
    assert "comes back exactly" in found.ui["cb_summary"][0]
    back = sampled(found, prompt, picture["samples"].shape)
    assert decibels(back, picture["samples"]) > 80  # what single precision leaves of weights that amplify
    assert_close(found.args[0].at(0.0), of.model.process_latent_in(picture["samples"][0]))
    assert differ(sampled(found, cond(of, 9), picture["samples"].shape), picture["samples"])
    assert_same_traces(before, traces(of))


def test_a_latent_in_half_precision_is_inverted_in_full() -> None:
    """As ComfyUI's --fp16-intermediates hands latents on."""
    of, prompt, picture = tiny_model("sd15"), cond(tiny_model("sd15"), 1), latent(3, 1, 8, 16)["samples"].half()
    found = inverted(of, prompt, {"samples": picture})
    assert decibels(sampled(found, prompt, picture.shape), picture.float()) > 80


@pytest.mark.parametrize("kind", FLOW)
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_flow_models_come_back_exactly_with_any_gamma(kind: str, gamma: float) -> None:
    of, prompt, picture = tiny_transformer(kind), cond_of(kind, 1), latent_of(kind, 3)
    found = inverted(of, prompt, picture, scheduler="simple", gamma=gamma)
    back = sampled(found, prompt, picture["samples"].shape)
    assert decibels(back, picture["samples"]) > 80
    led = run_transformer(
        styled(of, reference=StyleReference(trajectory=found.args[0])), kind, batch=1, latent=latent_of(kind)
    )
    assert bool(led.isfinite().all()) and differ(led, run_transformer(of, kind, batch=1, latent=latent_of(kind)))


def test_the_plain_mode_says_what_it_loses_and_refinements_lose_less() -> None:
    of, picture = model("sd15"), latent(3, 1, 8, 16)
    found = [inverted(of, cond(of, 1), picture, mode=PLAIN, steps=20, refinements=count) for count in (0, 3)]
    errors = [decibels(sampled(each, cond(of, 1), (1, 4, 8, 16)), picture["samples"]) for each in found]
    assert errors[1] > errors[0] + 3
    for each, error in zip(found, errors, strict=True):
        said = float(each.ui["cb_summary"][0].partition("to within ")[2].split()[0])
        assert said == pytest.approx(error, abs=0.6)


def test_what_cannot_be_inverted_is_refused() -> None:
    of = model("sd15")
    with pytest.raises(ValueError, match="'gamma' belongs to flow models"):
        inverted(of, cond(of, 1), latent(3), gamma=0.5)
    with pytest.raises(ValueError, match="'latent' holds a latent of shape"):
        inverted(of, cond(of, 1), {"samples": torch.zeros(1, 16, 8, 8)})
    found = inverted(of, cond(of, 1), latent(3, 1, 8, 16))
    with pytest.raises(ValueError, match=r"The noise of Invert Latent has the shape \[1, 4, 8, 16\]"):
        sampled(found, cond(of, 1), (2, 4, 8, 16))


def test_the_reference_node_takes_a_trajectory() -> None:
    of = model("sd15")
    recording, trajectories = CBRecordTrajectory.execute(of).args
    out = run(recording)
    (reference,) = CBStyleReference.execute(REPLAYED, {"samples": out}, trajectory=trajectories).args
    assert reference.trajectory is trajectories.of(out) and reference.hidden
    (given,) = CBStyleReference.execute(REPLAYED, trajectory=reference.trajectory).args
    assert given.trajectory is reference.trajectory
    for mode, inputs, says in (
        (REPLAYED, {}, "'trajectory' is empty"),
        (REPLAYED, {"trajectory": trajectories}, "'latent' is not what a sampler made"),
        (RENOISED, {"trajectory": trajectories}, "'trajectory' is connected and 'mode' is"),
        (FIRST, {"previous": reference}, "do not go together"),
    ):
        with pytest.raises(ValueError, match=says):
            CBStyleReference.execute(mode, **inputs)
