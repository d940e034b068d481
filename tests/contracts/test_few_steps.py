"""Runs of a few steps, as distilled models take: what a percent comes to there, and a word where that is another.

Steps of such runs are a quarter of the schedule and more, and begin where windows do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import comfy.samplers
import nodes
import pytest
import tiny_transformers
import torch
from comfy.patcher_extension import WrappersMP
from comfy_execution.utils import CurrentNodeContext
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from comfy_extras.nodes_model_advanced import (
    ModelSamplingContinuousEDM,
    ModelSamplingContinuousV,
    ModelSamplingDiscrete,
)
from gradsam_case import ALL_ZEROS, HALF, blended
from style_case import HEIGHT, WIDTH, assert_close, gate, hidden, model, styled, tiny_controlnet, with_control
from test_gate_adapter import adapted

from conditional_balance.engine.gates import CombinedGate, inside, windowed
from conditional_balance.engine.structure import PaperSchedule, scaled, stream_layout
from conditional_balance.engine.subject import Phrase
from conditional_balance.engine.windows import parse_windows
from conditional_balance.nodes.metadata import CBResolutionShift
from conditional_balance.runtime.attribution.find import ProbeSettings, ask_at_levels
from conditional_balance.runtime.attribution.methods import METHODS
from conditional_balance.runtime.attribution.prediction import Prediction
from conditional_balance.runtime.attribution.subject import Subject
from conditional_balance.runtime.inject.adapter import gate_adapter
from conditional_balance.runtime.inject.blend import Blend, blend_reference
from conditional_balance.runtime.inject.contrast import LayerContrast, contrast_layers
from conditional_balance.runtime.inject.control import gate_control
from conditional_balance.runtime.inject.inversion import Inversion, invert_latent
from conditional_balance.runtime.inject.layer_prompt import LayerPrompt, prompt_layers
from conditional_balance.runtime.inject.metadata import Change, Metadata, schedule_metadata
from conditional_balance.runtime.inject.noise_blend import NoiseBlend, blend_prompts
from conditional_balance.runtime.inject.projection import Projection, project
from conditional_balance.runtime.inject.reference import NOISE_SEED, StyleReference
from conditional_balance.runtime.inject.style import StyleInjection, inject_style
from conditional_balance.runtime.profile.recording import Series, record
from conditional_balance.runtime.runs.notices import told_in
from tiny import cond, latent, tiny_model

REFERENCE = latent(5, height=HEIGHT, width=WIDTH)["samples"]
FLOWS = ("flux", "sd3", "aura")
MODELS = [("sd15", "sgm_uniform"), *((flow, "simple") for flow in FLOWS)]
"""Models, and the scheduler of each whose steps are equal parts of the schedule."""
LATE = windowed(gate("all"), 0.1, 0.15)


def run(make: Callable[[Any], Any], name: str, of: Any = None, **options: Any) -> tuple[torch.Tensor, tuple[str, ...]]:
    """What a sampler of four even steps, without guidance, makes of two pictures, and what it says under the node."""
    of = of or model("sd15")
    with CurrentNodeContext(name, "9"):
        patched = make(of)
    values = {"steps": 4, "sampler": "euler", "scheduler": "sgm_uniform"} | options
    steps, sampler, scheduler = (values.pop(key) for key in ("steps", "sampler", "scheduler"))
    prompts = values.pop("prompts", (cond(of, 1), cond(of, 2)))
    with torch.inference_mode(), CurrentNodeContext(name, "11"):
        given = (0, steps, 1.0, sampler, scheduler, *prompts, latent(3, 2, HEIGHT, WIDTH))
        (out,) = nodes.common_ksampler(patched, *given, **values)
    return out["samples"], told_in(name)[-1].texts if told_in(name) else ()


def schedule(name: str, scheduler: str, steps: int) -> tuple[list[float], Callable[[float], float]]:
    """The levels at which steps begin, and percent to sigma."""
    of = model(name) if name == "sd15" else tiny_transformers.tiny_transformer(name)
    sampling = of.get_model_object("model_sampling")
    return comfy.samplers.calculate_sigmas(sampling, scheduler, steps)[:-1].tolist(), sampling.percent_to_sigma


# Steps that begin where a window does --------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 4, 8])
@pytest.mark.parametrize(("name", "scheduler"), MODELS)
def test_rounding_does_not_decide_whether_a_step_is_in_a_window(name: str, scheduler: str, steps: int) -> None:
    levels, to_sigma = schedule(name, scheduler, steps)
    for step in range(1, steps):
        later = [inside(level, step / steps, 1.0, to_sigma) for level in levels]
        earlier = [inside(level, 0.0, step / steps, to_sigma) for level in levels]
        assert later == [each >= step for each in range(steps)], step
        assert earlier == [each <= step for each in range(steps)], step
    assert not any(inside(level, 0.0, 0.0, to_sigma) for level in levels)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize(("name", "scheduler"), MODELS)
def test_a_structure_amount_is_as_large_a_part_of_the_steps(name: str, scheduler: str, steps: int) -> None:
    levels, to_sigma = schedule(name, scheduler, steps)
    for step in range(steps + 1):
        share, layout = PaperSchedule(step / steps), stream_layout([("output", 1)])
        kept = [share.weights(level, layout, to_sigma).skips[0] for level in levels]
        assert kept == [each < step for each in range(steps)], step


# Windows and whole steps ---------------------------------------------------------------------------------------------

UNTIL: dict[str, Callable[[float], Callable[[Any], Any]]] = {
    "style": lambda end: lambda of: styled(of, windowed(gate("all"), 0.0, end), hidden(of)),
    "another prompt": lambda end: (
        lambda of: prompt_layers(of, LayerPrompt(windowed(gate("all"), 0.0, end), cond(of, 8)[0][0]))
    ),
    "two prompts": lambda end: lambda of: blend_prompts(of, NoiseBlend(cond(of, 9), end=end)),
    "a layout": lambda end: lambda of: project(of, Projection(REFERENCE, 3, end=end)),
    "an adapter": lambda end: lambda of: gate_adapter(adapted(of), windowed(gate("all"), 0.0, end))[0],
}


@pytest.mark.parametrize("name", UNTIL)
def test_a_window_that_leaves_no_step_out_is_told(name: str) -> None:
    (whole, silent), (same, (said,)) = run(UNTIL[name](1.0), f"{name} 1"), run(UNTIL[name](0.8), f"{name} 0.8")
    assert torch.equal(same, whole) and silent == ()
    assert said == (
        "The window of this node leaves no step of this run out, as the last one begins at 0.75 of the schedule: end "
        "it before that, or take more steps."
    )
    shorter, texts = run(UNTIL[name](0.7), f"{name} 0.7")
    assert not torch.equal(shorter, whole) and texts == ()


BETWEEN: dict[str, Callable[[Any], Any]] = {
    "a second reference": lambda of: styled(
        of, "all", StyleReference(REFERENCE, start=0.1, end=0.15, previous=StyleReference(-REFERENCE))
    ),
    "a second gate": lambda of: styled(of, CombinedGate(gate("m0"), LATE, "or"), hidden(of)),
    "a second gate for a prompt": lambda of: prompt_layers(
        of, LayerPrompt(CombinedGate(gate("m0"), LATE, "or"), cond(of, 8)[0][0])
    ),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_one_of_several_windows_without_a_step_is_told(name: str) -> None:
    assert run(BETWEEN[name], name)[1] == (
        "Nothing was done in the window from 0.1 to 0.15, as the steps of this run begin at 0 to 0.75 of the schedule: "
        "take more steps, or move it.",
    )
    assert run(BETWEEN[name], f"{name} in twenty", steps=20)[1] == ()


def test_an_adapter_without_a_step_in_its_window_is_told() -> None:
    out, (said,) = run(lambda of: gate_adapter(adapted(of), LATE)[0], "adapter")
    assert torch.equal(out, run(lambda of: of, "no adapter")[0])
    assert said.startswith("Nothing was done in this run, whose steps begin at 0 to 0.75 of the schedule, outside of")


def test_a_sampler_that_might_have_stopped_in_the_window_and_did_not_is_told() -> None:
    """DPM++ SDE takes its last step at once, where earlier ones stop half way."""
    options = {"sampler": "dpmpp_sde", "scheduler": "beta", "steps": 2}
    out, (said,) = run(lambda of: blend_prompts(of, NoiseBlend(cond(of, 9), start=0.51)), "sde", **options)
    assert torch.equal(out, run(lambda of: of, "plain sde", **options)[0])
    assert said.startswith("Nothing was done in this run")


# A ControlNet's share of the schedule --------------------------------------------------------------------------------


def controlled(kept: float, name: str, **options: Any) -> tuple[torch.Tensor, tuple[str, ...]]:
    of = model("sd15")
    with CurrentNodeContext(name, "9"):
        gated, _ = gate_control(tiny_controlnet("sd15"), scaled(PaperSchedule(kept), 0.5))
    return run(lambda of: of, name, prompts=with_control(gated, cond(of, 1), cond(of, 2)), **options)


def test_a_structure_amount_between_two_steps_is_told() -> None:
    quarter, texts = controlled(0.25, "kept 0.25")
    assert texts == ()
    between, (said,) = controlled(0.15, "kept 0.15")
    assert torch.equal(between, quarter)
    assert said == (
        "'structure amount' 0.15 acts as 0.25 in this run, 1 of 4 steps: every amount above 0 and up to 0.25 does. "
        "Take more steps for one between."
    )


def test_a_structure_amount_that_is_the_whole_control_is_told() -> None:
    out, (said,) = controlled(0.15, "one step", steps=1)
    assert torch.equal(out, controlled(1.0, "whole", steps=1)[0])
    assert said == (
        "'structure amount' 0.15 is the whole ControlNet in this run, as every step begins in that share of the "
        "schedule: take more steps, or write 0 for the layout alone."
    )


@pytest.mark.parametrize(
    ("kept", "options"),
    [(0.0, {}), (1.0, {}), (0.15, {"steps": 20}), (0.15, {"last_step": 2}), (0.15, {"start_step": 2})],
)
def test_other_structure_amounts_need_no_word(kept: float, options: dict[str, Any]) -> None:
    assert controlled(kept, f"{kept} {options}", **options)[1] == ()


# Blends --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["x0", "paper"])
def test_a_blend_that_holds_the_last_step_is_told(mode: str) -> None:
    def until(end: float) -> Callable[[Any], Any]:
        return lambda of: blended(of, f"0.2-{end:g}", mask=HALF, mode=mode)[0]

    assert run(until(0.9), f"{mode} 0.9")[1] == (
        "0.2-0.9 acts in the last step, which begins at 0.75 of the schedule, so that nothing is left to mend seams: "
        "end it before that, take more steps, or raise 'feather'.",
    )
    assert run(until(0.4), f"{mode} 0.4", steps=2)[1] == (
        "0.2-0.4 acts in the last step, which begins at 0.5 of the schedule, so that nothing is left to mend seams: "
        "take more steps, or raise 'feather'.",
    )
    assert run(until(0.7), f"{mode} 0.7")[1] == run(until(1.0), f"{mode} 1")[1] == ()


def test_a_scheduler_that_begins_late_is_told() -> None:
    """Of an empty latent, such as the blend's own; ComfyUI's ddim_uniform begins at a quarter in four steps."""
    of = model("sd15")
    with CurrentNodeContext("ddim", "9"):
        patched, _ = blended(of, "0.3-1", mask=HALF)
    with torch.inference_mode(), CurrentNodeContext("ddim", "11"):
        given = (0, 4, 1.0, "euler", "ddim_uniform", cond(of, 1), cond(of, 2))
        nodes.common_ksampler(patched, *given, {"samples": torch.zeros(1, 4, HEIGHT, WIDTH)})
    assert told_in("ddim")[-1].texts == (
        "The run begins at 0.248 of the schedule with an empty latent: set 'denoise' to 1, or take a scheduler that "
        "begins at its start, which ddim_uniform does not in few steps.",
    )


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_the_latent_of_a_run_that_stopped_midway_is_looked_at_in_its_own_scale(name: str) -> None:
    """Flow models hand a noisy latent on divided by 1 - sigma."""
    of, prompt, shape = model("sd15"), cond(model("sd15"), 1), REFERENCE.shape
    if name == "flux":
        of, prompt = tiny_transformers.tiny_transformer(name), tiny_transformers.cond(name, 1)
        shape = tiny_transformers.latent(name, 4)["samples"].shape
    sampling, seen = of.get_model_object("model_sampling"), list[Prediction]()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(6))
    noise_level = torch.tensor([sampling.percent_to_sigma(0.6)])
    handed_on = of.model.process_latent_out(sampling.inverse_noise_scaling(noise_level, x))
    subject, probe = Subject(prompt, (Phrase("fox", (2, 3)),)), ProbeSettings((0.6,), noised=True)
    ask_at_levels(of, handed_on, subject, probe, METHODS["attention"], seen.append)
    torch.testing.assert_close(seen[0].x, x, rtol=1e-4, atol=1e-4)


# What else counts steps ----------------------------------------------------------------------------------------------


def test_metadata_that_comes_in_too_late_is_told() -> None:
    of = model("sdxl")
    changed = Metadata(original=Change(2.0, 3.0), top=Change(64.0, 1.0), left=Change(64.0, 0.0))
    _, texts = run(lambda of: schedule_metadata(of, changed), "sizes, one step", of, steps=1)
    assert texts == (
        "Only 0% of 'original_scale' took effect, as the last step of this run begins at 0 of the schedule: lower "
        "'original_curve' (0 acts all the time), or take more steps.",
        "Only 0% of 'crop_top' took effect, as the last step of this run begins at 0 of the schedule: lower "
        "'crop_curve' (0 acts all the time), or take more steps.",
    )
    assert len(run(lambda of: schedule_metadata(of, changed), "sizes, two steps", of, steps=2)[1]) == 1
    assert run(lambda of: schedule_metadata(of, changed), "sizes, four steps", of)[1] == ()
    assert run(lambda of: schedule_metadata(of, changed), "sizes, a stage", of, last_step=1)[1] == ()


def test_a_schedule_too_short_to_be_shifted_is_told() -> None:
    for sigmas in ([14.6, 0.0], [14.6, 3.0, 0.0]):
        found = CBResolutionShift.execute(model("sd15"), torch.tensor(sigmas), 1024, 1024, 512, 1.0)
        assert found.args[0].tolist() == torch.tensor(sigmas).tolist()
        assert found.ui["cb_summary"][0].startswith(
            "Off: the first and the last level stay, and there is none between. Take three steps or more."
        )


def test_a_recording_of_pure_noise_alone_is_told(tmp_path: Any) -> None:
    of = tiny_transformers.tiny_transformer("flux")
    series = Series(tmp_path / "series", ("ink",), ("fox",), ("q",), 4)
    with CurrentNodeContext("recording", "9"):
        patched = record(of, series)
    with torch.inference_mode(), CurrentNodeContext("recording", "11"):
        prompts = tiny_transformers.cond("flux", 1), tiny_transformers.cond("flux", 2)
        nodes.common_ksampler(patched, 0, 1, 1.0, "euler", "simple", *prompts, tiny_transformers.latent("flux", 3))
    assert told_in("recording")[-1].texts == (
        "Nothing was recorded: the only step of this run begins in pure noise, where pictures do not differ. "
        "Take more steps.",
    )


def test_a_schedule_that_repeats_levels_is_inverted() -> None:
    """LCM knows fifty levels, of which simple gives each twice in a hundred steps."""
    (lcm,) = ModelSamplingDiscrete().patch(tiny_model("sd15"), "lcm", False)
    with torch.inference_mode():
        found = invert_latent(lcm, REFERENCE, cond(lcm, 1), Inversion(100, "simple", 0))
    assert len(found.sigmas) == 51 and found.error > 60
    assert bool(found.noise.isfinite().all())


# Guiders that guide twice --------------------------------------------------------------------------------------------


def guided_twice(of: Any, nested: bool, *scales: float) -> torch.Tensor:
    guider = Guider_DualCFG(of)
    guider.set_conds(cond(of, 1), cond(of, 2), cond(of, 3))
    guider.set_cfg(*scales, nested=nested)
    noise, sigmas = torch.randn(1, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2)), [14.6, 3.0, 0.5, 0.0]
    with torch.inference_mode():
        sampler = comfy.samplers.sampler_object("euler")
        return guider.sample(noise, torch.zeros_like(noise), sampler, torch.tensor(sigmas), seed=0)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (4.0, 3.0)])
@pytest.mark.parametrize("nested", [False, True])
def test_a_blend_and_a_projection_come_after_both(nested: bool, scales: tuple[float, float]) -> None:
    of = model("sd15")
    kept, _ = blended(of, "0-1", mask=ALL_ZEROS)
    assert_close(guided_twice(kept, nested, *scales), REFERENCE, 1e-3)
    shrink = functools.partial(torch.nn.functional.adaptive_avg_pool2d, output_size=(HEIGHT // 4, WIDTH // 4))
    known = guided_twice(project(of, Projection(REFERENCE, 4)), nested, *scales)
    torch.testing.assert_close(shrink(known), shrink(REFERENCE), rtol=0, atol=1e-3)


def test_a_node_that_runs_the_sampler_twice_finds_it_as_it_was() -> None:
    """What goes round a guider's predictions ends with the run that it belongs to."""

    def twice(executor: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        executor(*args, **kwargs)
        return executor(*args, **kwargs)

    def half(of: Any) -> Any:
        return project(of, Projection(REFERENCE, 4, 0.5))

    other = model("sd15").clone()
    other.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "other", twice)
    assert torch.equal(run(half, "twice", other)[0], run(half, "once")[0])


def test_guidance_by_style_without_a_prediction_to_lead_is_told() -> None:
    of = model("sd15")
    with CurrentNodeContext("twice", "9"):
        led = contrast_layers(of, LayerContrast(StyleInjection(gate("all"), hidden(of)), 1.0))
    with CurrentNodeContext("twice", "11"):
        guided_twice(led, False, 1.0, 1.0)
    assert told_in("twice")[-1].texts[0].startswith("Nothing was done: this guider makes no prediction for the prompt")


# Other samplings -----------------------------------------------------------------------------------------------------

SAMPLINGS: dict[str, Callable[[Any], Any]] = {
    "v, zero terminal SNR": lambda of: ModelSamplingDiscrete().patch(of, "v_prediction", True)[0],
    "lcm": lambda of: ModelSamplingDiscrete().patch(of, "lcm", False)[0],
    "x0": lambda of: ModelSamplingDiscrete().patch(of, "x0", False)[0],
    "edm": lambda of: ModelSamplingContinuousEDM().patch(of, "edm_playground_v2.5", 120.0, 0.002)[0],
    "v, continuous": lambda of: ModelSamplingContinuousV().patch(of, "v_prediction", 500.0, 0.03)[0],
}


@pytest.mark.parametrize("sampler", ["euler", "lcm"])
@pytest.mark.parametrize("name", SAMPLINGS)
def test_a_reference_is_noised_as_the_run_is_whatever_comes_behind_the_node(name: str, sampler: str) -> None:
    source, seen = hidden(model("sd15")), list[tuple[torch.Tensor, ...]]()
    noise = torch.randn(1, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(NOISE_SEED))

    def look(executor: Any, x: torch.Tensor, t: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append((x[-1:], t[-1:], args[-1]["sigmas"][:1]))
        return executor(x, t, *args, **kwargs)

    of = SAMPLINGS[name](styled(model("sd15"), windowed(gate("all"), 0.2, 1.0), source))
    of.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", look)
    out, texts = run(lambda of: of, f"{name} {sampler}", of, sampler=sampler)
    assert bool(out.isfinite().all()) and texts == ()
    sampling = of.get_model_object("model_sampling")
    assert len(seen) == 4
    for x, t, sigma in seen[1:]:  # all but the first step are in the window
        noised = sampling.noise_scaling(sigma, noise.clone(), of.model.process_latent_in(source.latent))
        assert_close(x, sampling.calculate_input(sigma, noised))
        torch.testing.assert_close(t, sampling.timestep(sigma).float())


FLOW: dict[str, Callable[[Any], Any]] = {
    "style": lambda of: inject_style(of, StyleInjection(windowed(gate("all"), 0.5, 1.0), FLOWING)),
    "a blend": lambda of: flowing_blend(of, "0.25-0.5, 0.75-1", "x0"),
    "a blend as in the paper": lambda of: flowing_blend(of, "0.25", "paper"),
    "a layout": lambda of: project(of, Projection(FLOWING.latent, 3, end=0.5)),
}
FLOWING = StyleReference(tiny_transformers.latent("flux", 5)["samples"], tiny_transformers.cond("flux", 31))


def flowing_blend(of: Any, windows: str, mode: str) -> Any:
    subject = Subject(tiny_transformers.cond("flux", 1), (Phrase("fox", (2, 3)),))
    return blend_reference(of, Blend(FLOWING.latent, subject, parse_windows(windows), mode, mask=ALL_ZEROS))[0]


@pytest.mark.parametrize("name", FLOW)
def test_two_stages_of_a_flow_models_four_steps_are_one_run(name: str) -> None:
    """The first of them begins at sigma 1, where a flow model's latent is all noise."""
    plain = tiny_transformers.tiny_transformer("flux")

    def stages(of: Any, *edges: int) -> torch.Tensor:
        samples = tiny_transformers.latent("flux", 3)["samples"]
        prompts = tiny_transformers.cond("flux", 1), tiny_transformers.cond("flux", 2)
        for begin, end in pairwise((0, *edges, 4)):
            part = {"start_step": begin, "last_step": end, "disable_noise": begin > 0, "force_full_denoise": end == 4}
            with torch.inference_mode():
                given = (0, 4, 1.0, "euler", "simple", *prompts, {"samples": samples})
                samples = nodes.common_ksampler(of, *given, **part)[0]["samples"]
        return samples

    whole = stages(FLOW[name](plain))
    assert not torch.equal(whole, stages(plain))
    assert_close(stages(FLOW[name](plain), 2), whole, 1e-3)
