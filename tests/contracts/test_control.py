"""A gated ControlNet keeps its promises, with ComfyUI's own apply nodes on real SD1.5 and SDXL models."""

from __future__ import annotations

import gc
import itertools
import logging
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.t2i_adapter.adapter
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_execution.utils import CurrentNodeContext
from comfy_extras.nodes_controlnet import SetUnionControlNetType
from nodes import ControlNetApply, ControlNetApplyAdvanced
from style_case import (
    HEIGHT,
    KINDS,
    WIDTH,
    assert_close,
    differ,
    free_memory,
    hidden,
    model,
    run,
    styled,
    tiny_controlnet,
)

from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.engine.structure import PaperSchedule, RankedSlots, parse_weights, scaled
from conditional_balance.runtime.arch.unet import attention_layers, unet_of
from conditional_balance.runtime.inject.control import GatedControl, gate_control, layout_of
from conditional_balance.runtime.runs.notices import told_in
from tiny import _fill, cond, tiny_model

SLOTS = {"sd15": 12, "sdxl": 9}
SAMPLERS = ("euler", "euler_ancestral", "dpmpp_2m_sde", "heun", "uni_pc", "ddim")


@cache
def adapter(kind: str) -> Any:
    """A real T2I adapter of the tiny model's widths."""
    with torch.inference_mode():
        net = comfy.t2i_adapter.adapter.Adapter(
            cin=192 if kind == "sd15" else 768, channels=[32, 32, 64, 64], nums_rb=2, ksize=1, sk=True, use_conv=False,
            xl=kind == "sdxl",
        )  # fmt: skip
        _fill(net, 4)
    return comfy.controlnet.T2IAdapter(net, net.input_channels, 8, "nearest-exact", torch.device("cpu"))


def control_lora(kind: str) -> Any:
    """A real Control-LoRA: the control's own layers, the rest borrowed from the UNet when a run begins."""
    own = ("input_hint_block", "zero_convs", "middle_block_out")
    weights = tiny_controlnet(kind).control_model.state_dict()
    return comfy.controlnet.ControlLora({name: value for name, value in weights.items() if name.startswith(own)})


def union(kind: str) -> Any:
    """A union ControlNet told what its hint is. Core fixes the width of its layers at SDXL's; here they are tiny."""
    cldm = comfy.cldm.cldm
    config = {**model(kind).model.model_config.unet_config, "dtype": torch.float32}
    for name in ("out_channels", "transformer_depth_output", "disable_unet_model_creation"):
        config.pop(name, None)
    with torch.inference_mode():
        net = cldm.ControlNet(
            hint_channels=3,
            operations=comfy.ops.manual_cast,
            device="cpu",
            union_controlnet_num_control_type=6,
            **config,
        )
        width = config["model_channels"]
        net.task_embedding = torch.nn.Parameter(torch.empty(6, width))
        net.transformer_layes = torch.nn.Sequential(
            cldm.ResBlockUnionControlnet(width, 2, operations=comfy.ops.manual_cast)
        )
        net.spatial_ch_projs = comfy.ops.manual_cast.Linear(width, width)
        _fill(net, 11)
    control = comfy.controlnet.ControlNet(net, load_device=torch.device("cpu"))
    control.set_extra_arg("control_type", [3])
    return control


class _Advanced(comfy.controlnet.ControlNet):
    """As another pack's extended ControlNet: methods replaced on the instance, settings and a copy of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sub_idxs, self.latent_strength = None, 0.8
        self.weights_override: Any = None
        self.timestep_keyframes = SimpleNamespace(keyframes=[SimpleNamespace(control_weights=None)])
        self.control_merge, self.pre_run = self.merge_by_latent, self.pre_run_advanced
        self.ready = False

    def pre_run_advanced(self, model: Any, percent_to_timestep_function: Callable[[float], float]) -> None:
        comfy.controlnet.ControlNet.pre_run(self, model, percent_to_timestep_function)
        self.ready = True

    def merge_by_latent(self, control: Any, before: Any, output_dtype: Any) -> Any:
        assert self.ready
        weighed = {part: [self.latent_strength * one for one in slots] for part, slots in control.items()}
        return comfy.controlnet.ControlBase.control_merge(self, weighed, before, output_dtype)

    def cleanup(self) -> None:
        self.ready = False
        super().cleanup()

    def copy(self) -> _Advanced:
        copied = _Advanced(None, load_device=self.load_device)
        copied.control_model, copied.control_model_wrapped = self.control_model, self.control_model_wrapped
        copied.sub_idxs, copied.latent_strength = self.sub_idxs, self.latent_strength
        copied.weights_override, copied.timestep_keyframes = self.weights_override, self.timestep_keyframes
        self.copy_to(copied)
        return copied


def advanced(kind: str) -> Any:
    return _Advanced(tiny_controlnet(kind).control_model, load_device=torch.device("cpu"))


def everything(kind: str) -> str:
    return f"1x{SLOTS[kind]} m1"


def nothing(kind: str) -> str:
    return f"0x{SLOTS[kind]} m0"


def weighed(control: Any, text: str) -> Any:
    gated, note = gate_control(control, parse_weights(text))
    assert note == ""
    return gated


def profile_of(of: Any) -> SensitivityProfile:
    layers = tuple(attention_layers(of))
    scores = torch.rand(2, 3, len(layers), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return SensitivityProfile(layers, ("q", "k"), torch.tensor([12.0, 1.0, 0.05], dtype=torch.float64), scores)


def applied(
    of: Any, *controls: Any, strength: float = 1.0, start: float = 0.0, end: float = 1.0, tokens: int = 77
) -> dict[str, Any]:
    """Prompts with controls applied one after another by the core node, each on a hint of its own."""
    positive, negative = cond(of, 1, tokens=tokens), cond(of, 2, tokens=tokens)
    for number, control in enumerate(controls):
        hint = torch.rand(1, 8 * HEIGHT, 8 * WIDTH, 3, generator=torch.Generator().manual_seed(8 + number))
        positive, negative = ControlNetApplyAdvanced().apply_controlnet(
            positive, negative, control, hint, strength, start, end
        )
    return {"positive": positive, "negative": negative}


def controlled(of: Any, *controls: Any, **options: Any) -> torch.Tensor:
    known = {name: options.pop(name) for name in ("strength", "start", "end", "tokens") if name in options}
    return run(of, **applied(of, *controls, **known), **{"batch": 2, **options})


def prepared(kind: str, control: Any, hint_seed: int = 8) -> Any:
    """A control as it stands while a run goes on."""
    hint = torch.rand(1, 3, 8 * HEIGHT, 8 * WIDTH, generator=torch.Generator().manual_seed(hint_seed))
    ready = control.copy().set_cond_hint(hint)
    of = model(kind).model
    ready.pre_run(of, of.model_sampling.percent_to_sigma)
    return ready


def residuals(kind: str, control: Any, sigma: float = 1.0) -> Any:
    """One call of a prepared control, as the sampler calls it."""
    of = model(kind)
    [[text, options]] = cond(of, 1)
    asked = {"c_crossattn": text}
    if "pooled_output" in options:
        asked["y"] = torch.nn.functional.pad(options["pooled_output"], (0, 2816 - 1280))
    x = torch.randn(1, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return control.get_control(x, torch.tensor([sigma]), asked, 1, {})


CONTROLS: dict[str, Callable[[str], Any]] = {
    "ControlNet": tiny_controlnet,
    "Control-LoRA": control_lora,
    "T2I adapter": adapter,
    "union ControlNet": union,
    "another pack's": advanced,
}


# Off is off, all is all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_one_are_the_plain_control_and_of_zero_none(kind: str, name: str) -> None:
    of, control = model(kind), CONTROLS[name](kind)
    plain, none = controlled(of, control), run(of, batch=2)
    assert differ(plain, none)
    assert torch.equal(controlled(of, weighed(control, everything(kind))), plain)
    assert torch.equal(controlled(of, weighed(control, nothing(kind))), none)
    off, _ = gate_control(control, scaled(parse_weights(everything(kind)), 0.0))
    assert torch.equal(controlled(of, off), none)
    assert torch.equal(controlled(of, weighed(control, everything(kind)), strength=0.0), none)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_kept_is_the_plain_control_under_every_policy(kind: str) -> None:
    of, control = model(kind), tiny_controlnet(kind)
    plain = controlled(of, control)
    for gate in (PaperSchedule(1.0), RankedSlots(profile_of(of), 1.0), RankedSlots(profile_of(of), 1.0, 0.3)):
        assert torch.equal(controlled(of, gate_control(control, gate)[0]), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_half_the_weight_everywhere_is_half_the_strength(kind: str) -> None:
    of, control = model(kind), tiny_controlnet(kind)
    halved = controlled(of, weighed(control, everything(kind).replace("1x", "0.5x").replace("m1", "m0.5")))
    assert_close(halved, controlled(of, control, strength=0.5))
    gated, _ = gate_control(control, scaled(PaperSchedule(1.0), 0.5))
    assert_close(controlled(of, gated), halved)


def test_a_gate_that_is_closed_does_not_run_its_control(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, forward = [], comfy.cldm.cldm.ControlNet.forward
    monkeypatch.setattr(
        comfy.cldm.cldm.ControlNet, "forward", lambda net, *args, **kw: (calls.append(1), forward(net, *args, **kw))[1]
    )
    of = model("sd15")
    controlled(of, weighed(tiny_controlnet("sd15"), nothing("sd15")))
    assert not calls
    gated, _ = gate_control(tiny_controlnet("sd15"), PaperSchedule(0.5, 0.0))
    controlled(of, gated, steps=4)
    assert 0 < len(calls) < 4


# Which residual goes where ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_each_weight_reaches_the_skip_it_is_meant_for(kind: str) -> None:
    """Against the UNet itself: what output block N - 1 - i finds on its skip is block i's output and its residual."""
    of, slots = model(kind), SLOTS[kind]
    assert layout_of(unet_of(of)).slots == slots
    for slot in (0, slots // 2, slots - 1):
        text = " ".join(str(float(place == slot)) for place in range(slots)) + " m0"
        touched = _skips_touched(of, applied(of, weighed(tiny_controlnet(kind), text)))
        assert touched == {slots - 1 - slot}
    assert _skips_touched(of, applied(of, weighed(tiny_controlnet(kind), f"0x{slots} m1"))) == set()


def _skips_touched(of: Any, prompts: dict[str, Any]) -> set[int]:
    """Numbers of the output blocks whose skip is another than what the input block put there."""
    watched, left, touched = of.clone(), [], set()

    def leave(h: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        left.append(h.clone())
        return h

    def find(h: torch.Tensor, skip: torch.Tensor, options: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        if not torch.equal(skip, left.pop()):
            touched.add(options["block"][1])
        return h, skip

    watched.set_model_input_block_patch(leave)
    watched.set_model_output_block_patch(find)
    run(watched, batch=1, steps=1, **prompts)
    return touched


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapters_residuals_have_the_weight_of_their_input_block(kind: str) -> None:
    plain = residuals(kind, prepared(kind, adapter(kind)))["input"]
    carried = {len(plain) - 1 - place for place, one in enumerate(plain) if one is not None}
    assert carried == ({2, 5, 8, 11} if kind == "sd15" else {3, 5, 8})
    for slot in carried:
        text = " ".join(str(float(place == slot)) for place in range(SLOTS[kind])) + " m0"
        gated = residuals(kind, prepared(kind, weighed(adapter(kind), text)))["input"]
        assert {len(gated) - 1 - place for place, one in enumerate(gated) if one is not None} == {slot}


@pytest.mark.parametrize("kind", KINDS)
def test_the_paper_keeps_the_middle_alone_after_its_share_of_the_schedule(kind: str) -> None:
    gated, _ = gate_control(tiny_controlnet(kind), PaperSchedule(0.15))
    ready = prepared(kind, gated)
    border = model(kind).model.model_sampling.percent_to_sigma(0.15)
    plain = residuals(kind, prepared(kind, tiny_controlnet(kind)), border * 1.01)
    early, late = (residuals(kind, ready, sigma) for sigma in (border * 1.01, border * 0.99))
    assert all(torch.equal(one, other) for one, other in zip(early["output"], plain["output"], strict=True))
    assert late["output"] == [None] * SLOTS[kind] and late["middle"][0] is not None


@pytest.mark.parametrize("kind", KINDS)
def test_ranked_acts_and_changes_with_what_is_kept(kind: str) -> None:
    of, control = model(kind), tiny_controlnet(kind)
    results = [controlled(of, gate_control(control, RankedSlots(profile_of(of), kept))[0]) for kept in (0.0, 0.3, 0.7)]
    results += [controlled(of, control), run(of, batch=2)]
    results += [controlled(of, gate_control(control, RankedSlots(profile_of(of), 0.3, 0.5))[0])]
    assert all(differ(one, other) for n, one in enumerate(results) for other in results[:n])


# Chains -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [0, 1])
def test_earlier_and_later_controls_of_a_chain_are_never_gated(kind: str, order: int) -> None:
    of, other = model(kind), adapter(kind)
    closed = weighed(tiny_controlnet(kind), nothing(kind))
    chain = (other, closed) if order else (closed, other)
    hints = [torch.rand(1, 8 * HEIGHT, 8 * WIDTH, 3, generator=torch.Generator().manual_seed(8 + n)) for n in (0, 1)]
    alone = ControlNetApplyAdvanced().apply_controlnet(cond(of, 1), cond(of, 2), other, hints[1 - order], 1.0, 0.0, 1.0)
    expected = run(of, batch=2, positive=alone[0], negative=alone[1])
    assert torch.equal(controlled(of, *chain), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", list(itertools.permutations(("ControlNet", "T2I adapter", "another pack's"))))
def test_a_chain_of_open_gates_is_the_plain_chain_in_any_order(kind: str, names: tuple[str, ...]) -> None:
    of, controls = model(kind), [CONTROLS[name](kind) for name in names]
    plain = controlled(of, *controls)
    for gated in ([0], [1], [2], [0, 1, 2]):
        chain = [weighed(c, everything(kind)) if n in gated else c for n, c in enumerate(controls)]
        assert torch.equal(controlled(of, *chain), plain)
    half = everything(kind).replace("1x", "0.5x")
    chain = [controls[0], weighed(controls[1], half), controls[2]]
    assert differ(controlled(of, *chain), plain)


def test_a_gate_on_a_gate_multiplies() -> None:
    of, control = model("sd15"), tiny_controlnet("sd15")
    twice = weighed(weighed(control, "0.5x12 m0.5"), "0.5x12 m0.5")
    assert_close(controlled(of, twice), controlled(of, weighed(control, "0.25x12 m0.25")))


# The apply nodes and the sampler ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_positive_and_negative_share_one_object_and_one_call(kind: str) -> None:
    of, rows = model(kind).clone(), []
    prompts = applied(of, weighed(tiny_controlnet(kind), everything(kind)), weighed(adapter(kind), everything(kind)))
    heads = [prompts[name][0][1]["control"] for name in ("positive", "negative")]
    assert heads[0] is heads[1] and isinstance(heads[0], GatedControl)
    assert isinstance(heads[0].previous_controlnet, GatedControl)

    def count(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(x.shape[0])
        return executor(x, *args, **kwargs)

    of.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", count)
    run(of, batch=2, steps=2, **prompts)
    assert rows == [4, 4]


def test_the_plain_apply_node_takes_it_too() -> None:
    of, control = model("sd15"), tiny_controlnet("sd15")
    hint = torch.rand(1, 8 * HEIGHT, 8 * WIDTH, 3, generator=torch.Generator().manual_seed(8))
    (plain,) = ControlNetApply().apply_controlnet(cond(of, 1), control, hint, 0.7)
    (gated,) = ControlNetApply().apply_controlnet(cond(of, 1), weighed(control, everything("sd15")), hint, 0.7)
    assert torch.equal(run(of, positive=gated), run(of, positive=plain))


@pytest.mark.parametrize(("start", "end", "strength"), [(0.0, 0.4, 1.0), (0.3, 1.0, 0.6), (0.2, 0.6, 1.7)])
def test_strength_and_range_of_the_apply_node_hold(start: float, end: float, strength: float) -> None:
    of, control = model("sdxl"), tiny_controlnet("sdxl")
    given = {"start": start, "end": end, "strength": strength, "steps": 4}
    plain = controlled(of, control, **given)
    assert torch.equal(controlled(of, weighed(control, everything("sdxl")), **given), plain)
    assert differ(plain, controlled(of, control, steps=4))


def test_a_union_type_reaches_the_wrapped_control() -> None:
    control = weighed(tiny_controlnet("sdxl"), everything("sdxl"))
    chosen = SetUnionControlNetType.execute(control, "canny/lineart/anime_lineart/mlsd").args[0]
    assert isinstance(chosen, GatedControl)
    assert chosen.inner.extra_args == {"control_type": [3]} and control.inner.extra_args == {}
    assert chosen.copy().inner.extra_args == {"control_type": [3]}
    real = weighed(union("sdxl"), everything("sdxl"))
    other = SetUnionControlNetType.execute(real, "depth").args[0]
    assert differ(controlled(model("sdxl"), real), controlled(model("sdxl"), other))


def test_another_packs_settings_are_reached_and_survive_copies() -> None:
    of, plain = model("sd15"), advanced("sd15")
    gated = weighed(plain, everything("sd15"))
    gated.latent_strength, gated.sub_idxs = 0.3, [0, 1]
    copied = gated.copy()
    assert copied.sub_idxs == [0, 1] and hasattr(copied, "latent_strength") and "sub_idxs" not in vars(copied)
    assert plain.latent_strength == 0.8
    plain.latent_strength = 0.3
    assert torch.equal(controlled(of, copied), controlled(of, plain))


class ControlWeights:
    """As Advanced-ControlNet's: what kind of weights they are, and the weights."""

    def __init__(self, weight_type: str) -> None:
        self.weight_type, self.weights_output = weight_type, [0.5] * 12


ControlWeights.__module__ = "/comfy/custom_nodes/ComfyUI-Advanced-ControlNet.adv_control.utils"


@pytest.mark.parametrize("where", ["override", "keyframe"])
def test_another_packs_weights_by_residual_are_said_once_to_act_too(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    def weighing(kind: str) -> Any:
        control = weighed(advanced("sd15"), everything("sd15"))
        if where == "override":
            control.weights_override = ControlWeights(kind)
        else:
            control.timestep_keyframes.keyframes[0].control_weights = ControlWeights(kind)
        return control

    with caplog.at_level(logging.WARNING):
        controlled(model("sd15"), weighing("default"))
        assert "weights by residual" not in caplog.text
        controlled(model("sd15"), weighing("controlnet"))
    assert caplog.text.count("of its own (ControlWeights of ComfyUI-Advanced-ControlNet), and they act too") == 1


def test_a_run_after_one_that_was_cancelled_says_it_again() -> None:
    """Where ComfyUI is stopped, it cleans no control up."""
    base, control = model("sd15").model, advanced("sd15")
    control.weights_override = ControlWeights("controlnet")
    with CurrentNodeContext("patched", "9"):
        gated, _ = gate_control(control, PaperSchedule(0.5))
    for prompt in ("cancelled", "whole"):
        with CurrentNodeContext(prompt, "11"):
            for _ in range(2):  # once for each prompt
                gated.pre_run(base, base.model_sampling.percent_to_sigma)
        (told,) = told_in(prompt)
        assert (told.node, told.by, len(told.texts)) == ("9", "11", 1) and "weights by residual" in told.texts[0]


def test_settings_are_read_and_written_through_the_gate() -> None:
    control = weighed(tiny_controlnet("sd15"), everything("sd15"))
    assert control.compression_ratio == 8 and control.concat_mask is False and control.strength == 1.0
    hint = torch.rand(1, 3, 8, 8)
    assert control.set_cond_hint(hint, 0.5, (0.1, 0.9)) is control
    assert control.inner.strength == 0.5 and control.cond_hint_original is hint
    hook = object()
    control.extra_hooks = hook
    assert control.inner.extra_hooks is hook and control.get_extra_hooks() == [hook]
    assert not hasattr(control, "no_such_setting")


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_independent_and_share_the_weights(kind: str) -> None:
    control = weighed(tiny_controlnet(kind), everything(kind))
    one, two = control.copy(), control.copy()
    one.set_cond_hint(torch.zeros(1, 3, 8, 8), 0.3)
    one.set_previous_controlnet(adapter(kind).copy())
    assert two.strength == control.strength == 1.0 and two.cond_hint_original is None
    assert two.previous_controlnet is None and one.copy().previous_controlnet is None
    assert one.control_model is two.control_model is tiny_controlnet(kind).control_model
    assert one.gate is two.gate


@pytest.mark.parametrize("name", CONTROLS)
def test_models_and_memory_are_those_of_the_chain(name: str) -> None:
    inner, before = CONTROLS[name]("sdxl"), tiny_controlnet("sdxl").copy()
    plain = inner.copy().set_previous_controlnet(before)
    gated = weighed(inner, everything("sdxl")).set_previous_controlnet(before)
    assert gated.get_models() == plain.get_models()
    assert gated.inference_memory_requirements(torch.float16) == plain.inference_memory_requirements(torch.float16)


# Nothing is shared, nothing stays -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("text", ["1x12 m1", "0.5x12 m1", "1x6 0x6 m0"])
def test_lists_that_the_unet_empties_are_new_in_every_call(name: str, text: str) -> None:
    ready = prepared("sd15", weighed(CONTROLS[name]("sd15"), text))
    first = residuals("sd15", ready)
    kept = {part: [None if one is None else one.clone() for one in slots] for part, slots in first.items()}
    for slots in first.values():
        slots.clear()
    second = residuals("sd15", ready)
    assert second.keys() == kept.keys()
    for part, slots in kept.items():
        assert len(second[part]) == len(slots)
        for one, other in zip(second[part], slots, strict=True):
            assert (one is None) == (other is None) and (one is None or torch.equal(one, other))
    ready.cleanup()


@pytest.mark.parametrize("name", CONTROLS)
def test_nothing_of_a_run_stays_on_the_control(name: str) -> None:
    of, control = model("sd15"), weighed(CONTROLS[name]("sd15"), "0.5x12 m1")
    prompts = applied(of, control, weighed(adapter("sd15"), everything("sd15")))
    head = prompts["positive"][0][1]["control"]
    run(of, batch=1, **prompts)
    for each in (head, head.previous_controlnet):
        assert each.weights_at is None and each.cond_hint is None and each.timestep_range is None
        assert each.inner.previous_controlnet is None
    assert torch.equal(run(of, batch=1, **prompts), run(of, batch=1, **prompts))
    assert vars(control).keys() == vars(head).keys() and control.weights_at is None


def test_cancel_stops_within_one_call_and_the_next_run_is_as_ever() -> None:
    of, calls = model("sd15").clone(), []
    gated, _ = gate_control(tiny_controlnet("sd15"), PaperSchedule(0.5))
    prompts = applied(of, gated)
    plain = run(of, batch=1, **prompts)

    def cancelling(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            comfy.model_management.interrupt_current_processing(True)
        return executor(*args, **kwargs)

    cancelled = of.clone()
    cancelled.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", cancelling)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run(cancelled, batch=1, steps=5, **prompts)
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert len(calls) == 2
    assert torch.equal(run(of, batch=1, **prompts), plain)


def test_two_gates_on_one_control_never_meet() -> None:
    of, control = model("sdxl"), tiny_controlnet("sdxl")
    open_, half = (weighed(control, text) for text in ("1x9 m1", "0.5x9 m0.5"))
    alone = [controlled(of, each) for each in (open_, half, control)]
    again = [controlled(of, each) for each in (control, half, open_)]
    assert all(torch.equal(one, other) for one, other in zip(alone, again[::-1], strict=True))


def test_nothing_grows_from_run_to_run() -> None:
    of = model("sd15")
    prompts = applied(of, weighed(tiny_controlnet("sd15"), "0.5x12 m1"))
    options = {"latent": {"samples": torch.zeros(1, 4, HEIGHT, WIDTH)}, "steps": 1, "cfg": 1.0}

    def tensors_after(runs: int) -> int:
        for _ in range(runs):
            run(of, **prompts, **options)
        gc.collect()
        return sum(type(each) in (torch.Tensor, GatedControl) for each in gc.get_objects())

    assert tensors_after(5) == tensors_after(15)


# Every way to sample ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler(name: str) -> None:
    of, control = model("sd15"), tiny_controlnet("sd15")
    plain = controlled(of, control, sampler=name, steps=3)
    assert torch.equal(controlled(of, weighed(control, everything("sd15")), sampler=name, steps=3), plain)
    gated, _ = gate_control(control, PaperSchedule(0.3))
    assert differ(controlled(of, gated, sampler=name, steps=3), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_one_call_or_several_and_without_guidance(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of = model(kind)
    gated, _ = gate_control(tiny_controlnet(kind), RankedSlots(profile_of(of), 0.5))
    together = [controlled(of, gated, cfg=cfg, batch=3) for cfg in (4.0, 1.0)]
    free_memory(monkeypatch, 0)
    for cfg, expected in zip((4.0, 1.0), together, strict=True):
        assert_close(controlled(of, gated, cfg=cfg, batch=3), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype: torch.dtype) -> None:
    of = tiny_model("sd15", dtype=dtype)
    half = controlled(of, weighed(tiny_controlnet("sd15"), "0.5x12 m1"), steps=1)
    assert torch.isfinite(half).all()
    assert_close(half, controlled(model("sd15"), weighed(tiny_controlnet("sd15"), "0.5x12 m1"), steps=1), 0.3)


# With style injection -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_hidden_style_reference_gets_no_control_whatever_the_gate(kind: str) -> None:
    """Its rows come out as without any control; the pictures' rows feel the gate."""
    of, source, checked = model(kind).clone(), hidden(model(kind)), []

    def check(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        x, t, context, y, control, options = args
        for slots in control.values():
            assert all(one is None or bool((one[2::3] == 0).all()) for one in slots)
        assert any(one is not None and bool((one[0] != 0).any()) for slots in control.values() for one in slots)
        last, clean = slice(2, None, 3), {"cond_or_uncond": options["cond_or_uncond"]}
        out = executor(*args, **kwargs)
        own = executor.class_obj._forward(x[last], t[last], context[last], None if y is None else y[last], None, clean)
        assert_close(out[last], own)
        checked.append(1)
        return out

    of.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", check)
    injected = styled(of, "o", source)
    gated, _ = gate_control(tiny_controlnet(kind), PaperSchedule(0.5))
    controlled(injected, gated, steps=3)
    assert len(checked) == 3


def test_a_first_row_that_gives_style_gets_no_control() -> None:
    """It comes out as without any control while the others feel it; with no style taken it does too."""
    of, control = model("sd15"), weighed(tiny_controlnet("sd15"), "0.5x12 m1")
    injected = styled(of, "o")
    found, plain = controlled(injected, control, batch=3), run(injected, batch=3)
    assert torch.equal(found[0], plain[0])
    assert differ(found[1:], plain[1:])
    assert differ(controlled(of, control, batch=3)[0], plain[0])
    assert torch.equal(controlled(styled(of, "o", strength=0.0), control, batch=3), controlled(of, control, batch=3))


@pytest.mark.parametrize("kind", KINDS)
def test_style_and_structure_act_together(kind: str) -> None:
    of, control, steps = model(kind), tiny_controlnet(kind), {"steps": 4}
    injected = styled(of, "o", hidden(of))
    gated, _ = gate_control(control, PaperSchedule(0.3))
    plain, alone = controlled(injected, control, **steps), run(injected, batch=2, **steps)
    results = [controlled(injected, gated, **steps), plain, alone, controlled(of, gated, **steps)]
    assert all(differ(one, other) for n, one in enumerate(results) for other in results[:n])
    assert torch.equal(controlled(injected, weighed(control, everything(kind)), **steps), plain)
    assert torch.equal(controlled(injected, weighed(control, nothing(kind)), **steps), alone)


# What it does not know, and bad input -------------------------------------------------------------------------------


def test_another_kind_of_object_passes_through_with_a_note() -> None:
    stranger = object()
    found, note = gate_control(stranger, parse_weights("0x12"))
    assert found is stranger and note == "'control_net' is a object, not a ControlNet of ComfyUI: left as it is."


class _Extended(comfy.controlnet.ControlBase):
    """Another pack's control: it answers with a kind of residual that nobody else knows."""

    def get_control(self, x: torch.Tensor, *args: Any) -> dict[str, list[torch.Tensor]]:
        before = self.previous_controlnet.get_control(x, *args) if self.previous_controlnet else {"output": []}
        return {**before, "tokens": [x * 0]}

    def copy(self) -> _Extended:
        copied = _Extended()
        self.copy_to(copied)
        return copied


def test_unknown_residuals_pass_through_ungated_and_say_so_once(caplog: pytest.LogCaptureFixture) -> None:
    before = prepared("sd15", tiny_controlnet("sd15"))
    ready = prepared("sd15", weighed(_Extended(), "0.5x12 m0.5")).set_previous_controlnet(before)
    with caplog.at_level(logging.WARNING):
        found = [residuals("sd15", ready) for _ in range(3)]
    assert [set(each) for each in found] == [{"input", "middle", "output", "tokens"}] * 3
    plain = residuals("sd15", before)
    assert all(torch.equal(one, other) for one, other in zip(found[0]["output"], plain["output"], strict=True))
    assert caplog.text.count("residuals named tokens: this control acts ungated") == 1
    assert ready.inner.previous_controlnet is None


def test_on_a_model_of_another_kind_the_control_acts_ungated_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    gated = weighed(tiny_controlnet("sd15"), nothing("sd15"))
    ready = gated.copy().set_cond_hint(
        torch.rand(1, 3, 8 * HEIGHT, 8 * WIDTH, generator=torch.Generator().manual_seed(8))
    )
    base = model("sd15").model

    class Transformer(torch.nn.Module):
        pass

    class Other:
        diffusion_model, model_sampling = Transformer(), base.model_sampling

    with caplog.at_level(logging.WARNING):
        for _ in range(2):  # once for each prompt
            ready.pre_run(Other(), base.model_sampling.percent_to_sigma)
    assert caplog.text.count("this model is a Transformer: this control acts ungated") == 1
    plain = residuals("sd15", prepared("sd15", tiny_controlnet("sd15")))
    found = residuals("sd15", ready)
    assert all(torch.equal(one, other) for one, other in zip(found["output"], plain["output"], strict=True))


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        (
            parse_weights("1x9 m1"),
            "'weights' has 9 numbers .* and this model has 12 residual slots",
        ),
        (
            RankedSlots(profile_of(model("sdxl")), 0.5),
            "The profile was measured on 17 attention .* the model has 16",
        ),
    ],
)
def test_a_gate_for_another_model_is_refused_before_the_first_step(gate: Any, says: str) -> None:
    of, calls = model("sd15").clone(), []
    of.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", lambda executor, *a, **k: calls.append(1))
    with pytest.raises(ValueError, match=says):
        controlled(of, gate_control(tiny_controlnet("sd15"), gate)[0])
    assert not calls


class _OnAnyDevice(comfy.controlnet.ControlBase):
    """As newer ComfyUI's controls: one clone for each device."""

    def deepclone_multigpu(self, load_device: torch.device, autoregister: bool = False) -> _OnAnyDevice:
        return _OnAnyDevice()

    def copy(self) -> _OnAnyDevice:
        return _OnAnyDevice()


def test_newer_comfyui_can_clone_it_for_another_device() -> None:
    control = weighed(_OnAnyDevice(), "1x12")
    control.multigpu_clones = {}  # ControlBase itself makes one for each control where it knows of it
    clone = control.deepclone_multigpu(torch.device("cpu"), autoregister=True)
    assert isinstance(clone, GatedControl) and clone.gate is control.gate and clone.inner is not control.inner
    assert control.multigpu_clones == {torch.device("cpu"): clone}
    assert not getattr(control.inner, "multigpu_clones", None)
