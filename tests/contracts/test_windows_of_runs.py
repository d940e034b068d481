"""A run that takes no step in a condition's window says so; a stage of one, which has others beside it, does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import nodes
import pytest
import torch
from comfy_execution.utils import CurrentNodeContext
from style_case import HEIGHT, WIDTH, differ, gate, hidden, model, styled

from conditional_balance.engine.gates import windowed
from conditional_balance.runtime.inject.contrast import LayerContrast, contrast_layers
from conditional_balance.runtime.inject.layer_prompt import LayerPrompt, prompt_layers
from conditional_balance.runtime.inject.noise_blend import NoiseBlend, blend_prompts
from conditional_balance.runtime.inject.projection import Projection, project
from conditional_balance.runtime.inject.reference import StyleReference
from conditional_balance.runtime.inject.style import StyleInjection
from conditional_balance.runtime.runs.notices import told_in
from tiny import cond, latent

EARLY = windowed(gate("all"), 0.0, 0.3)
REFERENCE = latent(5, height=HEIGHT, width=WIDTH)["samples"]
CONDITIONS: dict[str, Callable[[Any], Any]] = {
    "style": lambda of: styled(of, EARLY, hidden(of)),
    "the first picture's style": lambda of: styled(of, EARLY),
    "a reference of its own window": lambda of: styled(of, "all", StyleReference(REFERENCE, end=0.3)),
    "contrast": lambda of: contrast_layers(of, LayerContrast(StyleInjection(EARLY, hidden(of)), 1.0)),
    "another prompt": lambda of: prompt_layers(of, LayerPrompt(EARLY, cond(of, 8)[0][0])),
    "two prompts": lambda of: blend_prompts(of, NoiseBlend(cond(of, 9), end=0.3)),
    "a layout": lambda of: project(of, Projection(REFERENCE, 3, end=0.3)),
}


def run(of: Any, name: str, **options: Any) -> tuple[torch.Tensor, tuple[str, ...]]:
    """What a sampler makes of two pictures, and what it says under the node."""
    prompt = uuid4().hex
    with CurrentNodeContext(prompt, "9"):
        patched = CONDITIONS[name](of) if name in CONDITIONS else of
    with torch.inference_mode(), CurrentNodeContext(prompt, "11"):
        settings = (0, 4, 4.0, "euler", "normal", cond(of, 1), cond(of, 2), latent(3, 2, HEIGHT, WIDTH))
        (out,) = nodes.common_ksampler(patched, *settings, **options)
    return out["samples"], told_in(prompt)[-1].texts if told_in(prompt) else ()


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_run_outside_of_the_window_is_told(name: str) -> None:
    of = model("sd15")
    (plain, _), (out, texts) = run(of, "plain", denoise=0.4), run(of, name, denoise=0.4)
    assert torch.equal(out, plain)
    (said,) = texts
    assert said.startswith("Nothing was done in this run, whose steps begin at 0.667 to 1 of the schedule, outside of")
    assert said.endswith("raise 'denoise' or the number of steps, or move 'start_percent' and 'end_percent'.")


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_run_inside_of_it_and_stages_are_not(name: str) -> None:
    of = model("sd15")
    out, texts = run(of, name)
    assert texts == () and differ(out, run(of, "plain")[0])
    for stage in ({"last_step": 2}, {"disable_noise": True, "start_step": 2, "force_full_denoise": True}):
        assert run(of, name, **stage)[1] == ()


def test_a_gate_that_is_closed_everywhere_needs_no_word() -> None:
    of = model("sd15")
    with CurrentNodeContext("closed", "9"):
        patched = styled(of, "all", hidden(of), strength=0.0)
    with torch.inference_mode(), CurrentNodeContext("closed", "11"):
        nodes.common_ksampler(
            patched, 0, 4, 4.0, "euler", "normal", cond(of, 1), cond(of, 2), latent(3, 2, HEIGHT, WIDTH), denoise=0.4
        )
    assert told_in("closed")[-1].texts == ()


def test_known_pictures_of_another_number_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    three = latent(5, 3, HEIGHT, WIDTH)["samples"]
    monkeypatch.setitem(CONDITIONS, "three", lambda of: project(of, Projection(three, 3)))
    _, (said,) = run(model("sd15"), "three")
    assert said == (
        "'latent' holds 3 rows for 2 pictures, so the last are left out: give one for all, or one for each."
    )
