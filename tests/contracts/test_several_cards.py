"""Newer ComfyUI shares a run between cards, each with a copy of the model and a thread of its own.

Tried without a card: two names of the same processor stand for two devices.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_patcher
import pytest
import torch
from gradsam_case import HALF, blended, subject_of
from gradsam_case import run as run_of_subject
from style_case import assert_close, differ, gate, hidden, model, run, styled, tiny_controlnet, with_control
from tiny_transformers import cond as transformer_cond
from tiny_transformers import latent as transformer_latent
from tiny_transformers import tiny_transformer

from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.recording_file import open_recording
from conditional_balance.engine.structure import PaperSchedule
from conditional_balance.runtime.arch.base import removed_afterwards
from conditional_balance.runtime.arch.transformer import uncompiled_calls
from conditional_balance.runtime.attribution.find import ProbeSettings, find_subject
from conditional_balance.runtime.attribution.settings import AttributionSettings
from conditional_balance.runtime.inject.contrast import LayerContrast, contrast_layers
from conditional_balance.runtime.inject.control import gate_control
from conditional_balance.runtime.inject.layer_prompt import LayerPrompt, prompt_layers
from conditional_balance.runtime.inject.noise_blend import NoiseBlend, blend_prompts
from conditional_balance.runtime.inject.reference import StyleReference
from conditional_balance.runtime.inject.style import StyleInjection
from conditional_balance.runtime.profile.recording import Series, record
from conditional_balance.runtime.runs.injector import CalledLayers
from tiny import cond, latent, sample, tiny_model

shares = pytest.mark.skipif(
    not hasattr(comfy.model_patcher.ModelPatcher, "match_multigpu_clones"),
    reason="This version of ComfyUI shares no run between cards.",
)
OTHER = torch.device("cpu", 0)


def shared(of: Any, copy: Any) -> Any:
    """The model, half of whose conditionings run on `copy`, as MultiGPU CFG Split prepares it."""
    other: Any = copy.clone()
    other.load_device, other.is_multigpu_base_clone = OTHER, True
    together = of.clone()
    together.set_additional_models("multigpu", [other])
    return together


@contextmanager
def threads_of(patched: Any) -> Iterator[set[str]]:
    """The threads in which a model and its copies run inside the block, filled in by runs."""
    seen: set[str] = set()
    with removed_afterwards([]) as handles:
        for each in (patched, *patched.get_additional_models_with_key("multigpu")):
            network = each.model.diffusion_model
            handles.append(network.register_forward_pre_hook(lambda *_: seen.add(threading.current_thread().name)))
        yield seen


CONDITIONS: dict[str, Callable[[Any], Any]] = {
    "a reference": lambda of: styled(of, "all", hidden(of)),
    "the first picture": lambda of: styled(of, "all"),
    "two references": lambda of: styled(
        of, "all", StyleReference(latent(7)["samples"], strength=0.5, previous=hidden(of))
    ),
    "contrast": lambda of: contrast_layers(of, LayerContrast(StyleInjection(gate("all"), hidden(of)), 1.0)),
    "a blend": lambda of: blended(of, mask=HALF, propagation=2)[0],
    "a blend by gradients": lambda of: blended(of, mask=HALF, method="grad_sam")[0],
    "another prompt": lambda of: prompt_layers(of, LayerPrompt(gate("all"), cond(of, 8)[0][0])),
    "two prompts": lambda of: blend_prompts(of, NoiseBlend(cond(of, 9), torch.eye(8, 16))),
}


@shares
@pytest.mark.parametrize("name", CONDITIONS)
def test_two_cards_paint_what_one_paints(name: str, caplog: pytest.LogCaptureFixture) -> None:
    of, condition = model("sd15"), CONDITIONS[name]
    two = shared(of, tiny_model("sd15"))
    alone = run_of_subject(condition(of), batch=2)
    caplog.clear()
    with threads_of(patched := condition(two)) as threads:
        assert_close(run_of_subject(patched, batch=2), alone)
    assert len(threads - {"MainThread"}) == 2 and differ(alone, run_of_subject(of, batch=2))
    assert not [message for message in caplog.messages if message.startswith(("Style", "Grad-SAM", "Layer"))]


@shares
def test_a_gated_control_acts_on_both() -> None:
    of = model("sd15")
    gated, _ = gate_control(tiny_controlnet("sd15"), PaperSchedule(0.4))
    positive, negative = with_control(gated, cond(of, 1), cond(of, 2))
    alone = run(of, positive=positive, negative=negative)
    assert_close(run(shared(of, tiny_model("sd15")), positive=positive, negative=negative), alone)


@shares
@pytest.mark.parametrize("kind", ["flux", "z-image", "qwen"])
def test_transformers_too_and_compiling_goes_on_afterwards(kind: str) -> None:
    of, copy = tiny_transformer(kind), tiny_transformer.__wrapped__(kind)
    reference = StyleReference(transformer_latent(kind, 5)["samples"], transformer_cond(kind, 31))
    given = (transformer_cond(kind, 1), transformer_cond(kind, 2), transformer_latent(kind, batch=2))
    stance = stance_of_torch()
    alone = sample(styled(of, "all", reference), *given)
    for _ in range(3):
        assert_close(sample(styled(shared(of, copy), "all", reference), *given), alone)
    assert stance_of_torch() == stance


@shares
def test_a_recording_holds_what_the_layers_of_both_prompts_made(tmp_path: Path) -> None:
    of = model("sd15")
    found = []
    for name, each in (("one", of), ("two", shared(of, tiny_model("sd15")))):
        run(record(each, Series(tmp_path / name, ("ink",), ("",), ("q", "k"), 4)), batch=2)
        found.append(open_recording(tmp_path / name))
    one, two = (recording.level(0, [0, 1]) for recording in found)
    assert one and one.keys() == two.keys()
    for layer, moments in one.items():
        assert moments.mean.shape == two[layer].mean.shape
        torch.testing.assert_close(moments.mean.sort(0).values, two[layer].mean.sort(0).values, rtol=1e-4, atol=1e-4)


@shares
@pytest.mark.parametrize("method", ["value_norm", "grad_sam"])
def test_a_subject_is_found_on_one_of_them(method: str) -> None:
    of, settings = model("sd15"), AttributionSettings(method, propagation=2)
    alone, together = (
        find_subject(each, latent(3)["samples"], subject_of(of), ProbeSettings((0.5,)), settings)
        for each in (of, shared(of, tiny_model("sd15")))
    )
    assert together.method == method and not together.note
    assert_close(together.maps, alone.maps)


def stance_of_torch() -> str:
    from torch._dynamo import eval_frame

    return eval_frame._stance.stance


def in_threads(*steps: Callable[[], Any]) -> None:
    """Run steps one after another, each in a thread of its own, as calls of two cards begin and end in any order."""
    for step in steps:
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()


def test_calls_that_overlap_put_back_what_was_before_the_first() -> None:
    before, first, second = stance_of_torch(), uncompiled_calls(), uncompiled_calls()
    in_threads(first.__enter__, second.__enter__)
    assert stance_of_torch() == "force_eager"
    in_threads(lambda: first.__exit__(None, None, None))
    assert stance_of_torch() == "force_eager"
    in_threads(lambda: second.__exit__(None, None, None))
    assert stance_of_torch() == before


def test_layers_count_for_the_call_of_their_own_thread() -> None:
    layer, no_caches = LayerId("output", 3, 0), SimpleNamespace(caches=())
    layers = CalledLayers([layer])
    first, second = (layers.during_call([layer], no_caches) for _ in range(2))
    with first:
        layers.call(layer)
        in_threads(second.__enter__)
    in_threads(lambda: second.__exit__(None, None, None))
    assert (layers.calls, layers.answered, layers.called) == (2, 1, {layer})  # the second's did not run
