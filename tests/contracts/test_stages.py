"""Two samplers of one schedule, the second of which goes on where the first one stops, paint what one paints."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import nodes
import pytest
import torch
from gradsam_case import ALL_ZEROS, blended
from style_case import HEIGHT, WIDTH, assert_close, gate, hidden, model, styled, tiny_controlnet, with_control

from conditional_balance.engine.gates import windowed
from conditional_balance.engine.structure import PaperSchedule
from conditional_balance.runtime.inject.contrast import LayerContrast, contrast_layers
from conditional_balance.runtime.inject.control import gate_control
from conditional_balance.runtime.inject.layer_prompt import LayerPrompt, prompt_layers
from conditional_balance.runtime.inject.metadata import Change, Metadata, schedule_metadata
from conditional_balance.runtime.inject.noise_blend import NoiseBlend, blend_prompts
from conditional_balance.runtime.inject.projection import Projection, project
from conditional_balance.runtime.inject.style import StyleInjection
from tiny import cond, latent

LATE = windowed(gate("all"), 0.5, 1.0)
CONDITIONS: dict[str, Callable[[Any], Any]] = {
    "style": lambda of: styled(of, LATE, hidden(of)),
    "the first picture's style": lambda of: styled(of, LATE),
    "contrast": lambda of: contrast_layers(of, LayerContrast(StyleInjection(LATE, hidden(of)), 1.0)),
    "another prompt": lambda of: prompt_layers(of, LayerPrompt(LATE, cond(of, 8)[0][0])),
    "two prompts": lambda of: blend_prompts(of, NoiseBlend(cond(of, 9), start=0.5)),
    "a layout": lambda of: project(of, Projection(latent(4, 1, HEIGHT, WIDTH)["samples"], 3, end=0.5)),
    "sizes": lambda of: schedule_metadata(of, Metadata(original=Change(2.0, 1.0))),
    "a blend": lambda of: blended(of, "0.2-0.5, 0.6-1", mask=ALL_ZEROS)[0],
    "a blend as in the paper": lambda of: blended(of, "0.3", mask=ALL_ZEROS, mode="paper")[0],
}


def stages(of: Any, *split: int, controlled: bool = False) -> torch.Tensor:
    """What KSampler (Advanced) makes of two pictures in as many stages, of four steps in all."""
    positive, negative = cond(of, 1), cond(of, 2)
    if controlled:
        gated, _ = gate_control(tiny_controlnet("sdxl"), PaperSchedule(0.4))
        positive, negative = with_control(gated, positive, negative)
    samples, edges = latent(3, 2, HEIGHT, WIDTH)["samples"], (0, *split, 4)
    for begin, end in pairwise(edges):
        part = {"start_step": begin, "last_step": end, "disable_noise": begin > 0, "force_full_denoise": end == 4}
        with torch.inference_mode():
            (out,) = nodes.common_ksampler(
                of, 0, 4, 4.0, "euler", "normal", positive, negative, {"samples": samples}, **part
            )
        samples = out["samples"]
    return samples


@pytest.mark.parametrize("controlled", [False, True])
@pytest.mark.parametrize("name", CONDITIONS)
def test_two_stages_are_one_run(name: str, controlled: bool) -> None:
    of = model("sdxl")
    patched = CONDITIONS[name](of)
    whole = stages(patched, controlled=controlled)
    with pytest.raises(AssertionError, match="not close"):
        assert_close(stages(of, controlled=controlled), whole)
    assert_close(stages(patched, 2, controlled=controlled), whole)
