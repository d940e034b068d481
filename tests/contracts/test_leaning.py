"""What this pack leans on in ComfyUI that ComfyUI does not promise, one test each: a new release fails here first.

Each failure names what was relied on and which file of the pack reads it.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import comfy.conds
import comfy.controlnet
import comfy.ldm.modules.attention
import comfy.model_base
import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers
import folder_paths
import pytest
import torch

import tiny
from conditional_balance.runtime.runs import keys, samplers
from conditional_balance.runtime.runs.model_call import ModelCall

WRAPPERS = comfy.patcher_extension.WrappersMP


@pytest.fixture
def seen(sd15_model) -> dict[str, Any]:
    """One guided run of two pictures, and what every hook was handed in it."""
    found: dict[str, Any] = {"apply": [], "attention": [], "conds": [], "sampler": []}
    model = sd15_model.clone()

    def apply_model(executor, *args, **kwargs):
        found["apply"].append((executor.class_obj, args, kwargs))
        return executor(*args, **kwargs)

    def calc_cond_batch(executor, base, conds, *args, **kwargs):
        found["conds"].append((conds, found["guider"].conds))
        return executor(base, conds, *args, **kwargs)

    def sampler_sample(executor, guider, *args, **kwargs):
        found["guider"] = guider
        prompts = {cond["uuid"] for side in guider.conds.values() for cond in side}
        found["sampler"].append((executor.class_obj, guider, guider.inner_model, prompts, args))
        return executor(guider, *args, **kwargs)

    def attn1(q, k, v, extra):
        found["attention"].append((q, k, v, extra))
        return comfy.ldm.modules.attention.optimized_attention(q, k, v, heads=extra["n_heads"])

    model.add_wrapper_with_key(WRAPPERS.APPLY_MODEL, "test", apply_model)
    model.add_wrapper_with_key(WRAPPERS.CALC_COND_BATCH, "test", calc_cond_batch)
    model.add_wrapper_with_key(WRAPPERS.SAMPLER_SAMPLE, "test", sampler_sample)
    model.set_model_attn1_replace(attn1, "middle", 0, 0)
    tiny.sample(model, tiny.cond(model, 1), tiny.cond(model, 2), tiny.latent(batch=2), steps=2)
    assert all(found.values()), [hook for hook, calls in found.items() if not calls]
    return found


def test_apply_model_is_handed_six_arguments_and_the_model(seen) -> None:
    """runtime/runs/model_call.py"""
    for base, args, kwargs in seen["apply"]:
        assert isinstance(base, comfy.model_base.BaseModel)
        call = ModelCall.of(*args, **kwargs)
        assert call.x.ndim == 4 and call.sigma.shape == call.x.shape[:1]
        assert call.c_crossattn.shape[0] == call.x.shape[0] and isinstance(call.options, dict)
    names = list(inspect.signature(comfy.model_base.BaseModel.apply_model).parameters)
    assert names[1:7] == ["x", "t", "c_concat", "c_crossattn", "control", "transformer_options"]


def test_a_call_says_which_conditionings_and_prompts_its_rows_are(seen) -> None:
    """runtime/runs/keys.py: cond_or_uncond, uuids"""
    (*_, prompts, _) = seen["sampler"][0]
    for _, args, _ in seen["apply"]:
        kinds, ids = keys.kinds_of(args[5]), keys.prompts_of(args[5])
        assert len(kinds) == len(ids) and args[0].shape[0] == 2 * len(kinds)
        assert sorted(kinds) == [0, 1] and set(ids) <= prompts


def test_an_attention_call_knows_its_grid_its_heads_and_its_rows(seen) -> None:
    """runtime/runs/keys.py, runtime/arch/attention.py: activations_shape, n_heads, attn_precision"""
    for q, _, _, extra in seen["attention"]:
        height, width = keys.grid_of(extra)
        assert q.shape[1] == height * width and q.shape[0] == keys.rows_of(extra)
        assert q.shape[2] % extra["n_heads"] == 0 and "attn_precision" in extra
        assert len(keys.kinds_of(extra)) == len(keys.prompts_of(extra)) == 2


def test_a_call_knows_its_noise_level_and_its_runs_schedule(seen) -> None:
    """runtime/runs/keys.py: sigmas, sample_sigmas"""
    sigmas = seen["sampler"][0][-1][0]
    for place, (_, args, _) in enumerate(seen["apply"]):
        assert torch.equal(keys.schedule_of(args[5]), sigmas)
        assert keys.sigmas_of(args[5]).tolist() == [float(sigmas[place])] * 2


READERS = (keys.kinds_of, keys.prompts_of, keys.grid_of, keys.rows_of, keys.sigmas_of, keys.schedule_of)


@pytest.mark.parametrize("read", READERS)
def test_a_missing_key_is_an_error_that_names_it(read) -> None:
    names = "cond_or_uncond|uuids|activations_shape|sigmas|sample_sigmas"
    with pytest.raises(keys.MissingKey, match=rf"called without '({names})'"):
        read({})


def test_positive_prompts_are_found_by_the_identity_of_their_list(seen) -> None:
    """runtime/runs/injector.py, runtime/inject/reference.py"""
    assert all(conds[0] is held["positive"] and conds[1] is held["negative"] for conds, held in seen["conds"])


def test_the_sampler_wrapper_is_handed_guider_sigmas_options_callback_noise(seen) -> None:
    """runtime/runs/injector.py"""
    for sampler, guider, model, _, (sigmas, extra_args, callback, noise, *_) in seen["sampler"]:
        assert sampler.sampler_function.__name__ == "sample_euler"
        assert isinstance(guider, comfy.samplers.CFGGuider) and isinstance(model, comfy.model_base.BaseModel)
        assert sigmas.ndim == 1 and noise.shape == (2, 4, 16, 16) and callable(callback)
        assert "transformer_options" in extra_args["model_options"]


@pytest.mark.parametrize("name", comfy.samplers.SAMPLER_NAMES)
def test_samplers_keep_to_the_schedule_or_are_known_not_to(sd15_model, name: str) -> None:
    """runtime/runs/samplers.py: a gate is looked up at the levels where the model can be called"""
    model, called, schedules = sd15_model.clone(), [], []

    def apply_model(executor, *args, **kwargs):
        called.append(float(args[1][0]))
        schedules.append(keys.schedule_of(args[5]))
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WRAPPERS.APPLY_MODEL, "test", apply_model)
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    tiny.sample(model, tiny.cond(model, 1), tiny.cond(model, 2), latent, steps=4, cfg=1.0, sampler=name)
    assert called
    if samplers.stays_on_schedule(comfy.samplers.sampler_object(name)):
        assert set(called) <= set(schedules[0].tolist())


def test_a_copy_of_a_model_may_answer_for_its_memory(sd15_model) -> None:
    """runtime/runs/injector.py: counting_hidden_rows"""
    view = copy.copy(sd15_model.model)
    view.memory_required = lambda shape, *args, **kwargs: 7.0
    assert view.memory_required([1, 4, 8, 8]) == 7.0 and sd15_model.model.memory_required([1, 4, 8, 8]) != 7.0
    assert view.diffusion_model is sd15_model.model.diffusion_model
    source = inspect.getsource(comfy.samplers._calc_cond_batch)
    assert "model.memory_required(" in source


def test_a_prompt_can_be_read_by_the_model_outside_a_run(sd15_model) -> None:
    """runtime/inject/reference.py: convert_cond, encode_model_conds, process_cond"""
    prompts = comfy.sampler_helpers.convert_cond(tiny.cond(sd15_model, 1))
    latent = torch.zeros(1, 4, 16, 16)
    read = comfy.samplers.encode_model_conds(
        sd15_model.model.extra_conds, prompts, latent, latent.device, "positive", latent_image=latent, seed=0
    )
    cond = read[0]["model_conds"]["c_crossattn"]
    assert cond.process_cond(batch_size=1, area=None).cond.shape == (1, 77, 64)


def test_a_guider_can_be_given_conditionings_by_name(sd15_model) -> None:
    """runtime/runs/probe.py"""
    guider = comfy.samplers.CFGGuider(sd15_model)
    guider.inner_set_conds({"positive": tiny.cond(sd15_model, 1)})
    assert list(guider.original_conds) == ["positive"]


def test_controls_have_the_attributes_that_are_read() -> None:
    """runtime/inject/control.py"""
    control = comfy.controlnet.ControlBase()
    for name in ("strength", "timestep_percent_range", "previous_controlnet", "global_average_pooling", "cond_hint"):
        assert hasattr(control, name), name
    for name in ("copy", "get_control", "pre_run", "cleanup", "get_models", "inference_memory_requirements"):
        assert callable(getattr(comfy.controlnet.ControlNet, name)), name


def test_models_tell_their_precision_and_their_vector(sd15_model, sdxl_model) -> None:
    """runtime/attribution/prediction.py, runtime/profile/clusters.py: manual_cast_dtype, adm_in_channels"""
    assert sd15_model.model.manual_cast_dtype is None and sd15_model.model.get_dtype() == torch.float32
    assert sd15_model.model.model_config.unet_config["adm_in_channels"] is None
    assert sdxl_model.model.model_config.unet_config["adm_in_channels"] == 2816


def test_attention_can_be_overridden_and_replaced_by_key(sd15_model) -> None:
    """runtime/arch/: patches_replace with three-part keys, optimized_attention_override"""
    called: list[str] = []

    def override(func, *args, **kwargs):
        called.append("override")
        return func(*args, **kwargs)

    def replace(q, k, v, extra):
        called.append("replace")
        return comfy.ldm.modules.attention.optimized_attention(q, k, v, heads=extra["n_heads"])

    model = sd15_model.clone()
    options = model.model_options["transformer_options"]
    options["optimized_attention_override"] = override
    options["patches_replace"] = {"attn1": {("middle", 0, 0): replace}}
    tiny.sample(model, tiny.cond(model, 1), tiny.cond(model, 2), tiny.latent(), steps=1)
    assert called.count("replace") == 1 and called.count("override") > 20


def test_tokenizers_spell_their_tokens(clip) -> None:
    """runtime/attribution/subject.py: tokenizer.clip_l.inv_vocab, return_word_ids"""
    (chunk,) = clip.tokenize("a fox", return_word_ids=True)["l"]
    spelled = [clip.tokenizer.clip_l.inv_vocab[token] for token, *_ in chunk[:3]]
    assert spelled == ["<|startoftext|>", "a</w>", "fox</w>"]


def test_model_folders_can_be_added() -> None:
    """nodes/profile.py: folder_names_and_paths"""
    folders, endings = folder_paths.folder_names_and_paths["sensitivity_profiles"]
    assert len(folders) == 2 and endings == {".safetensors"}


def test_the_executing_node_is_known() -> None:
    """runtime/runs/notices.py"""
    from comfy_execution.utils import CurrentNodeContext

    from conditional_balance.runtime.runs.notices import fresh_node

    assert fresh_node() is None
    with CurrentNodeContext("prompt", "12:5"):
        assert fresh_node() == "12:5"


def without(key: str):
    """An APPLY_MODEL wrapper that leaves a key out of the options, as a release that drops it would."""

    def apply_model(executor, x, t, c_concat, c_crossattn, control, options, **kwargs):
        kept = {name: value for name, value in options.items() if name != key}
        return executor(x, t, c_concat, c_crossattn, control, kept, **kwargs)

    return apply_model


def test_profiling_without_prompts_of_rows_is_an_error_and_not_an_empty_profile(sd15_model) -> None:
    from conditional_balance.runtime.profile.capture import measure

    model = sd15_model.clone()
    model.add_wrapper_with_key(WRAPPERS.APPLY_MODEL, "test", without("uuids"))
    with pytest.raises(keys.MissingKey, match="'uuids'"):
        measure(
            model, torch.zeros(2, 4, 8, 8), tiny.cond(model, 1), None, torch.tensor([1.0]), ("q",), "jensen_shannon", 0,
            lambda count: None, lambda *tile: None,
        )  # fmt: skip


@pytest.mark.parametrize("method", ["attention", "value_norm", "jvp", "grad_sam"])
def test_attribution_without_prompts_of_rows_is_an_error_and_not_an_empty_map(sd15_model, method: str) -> None:
    from conditional_balance.engine.subject import Phrase
    from conditional_balance.runtime.attribution.find import ProbeSettings, find_subject
    from conditional_balance.runtime.attribution.settings import AttributionSettings
    from conditional_balance.runtime.attribution.subject import Subject

    model = sd15_model.clone()
    model.add_wrapper_with_key(WRAPPERS.APPLY_MODEL, "test", without("uuids"))
    subject = Subject(tiny.cond(model, 1), (Phrase("fox", (2, 3)),))
    latent = tiny.latent()["samples"]
    with torch.inference_mode(), pytest.raises(keys.MissingKey, match="'uuids'"):
        find_subject(model, latent, subject, ProbeSettings((0.5,)), AttributionSettings(method))
