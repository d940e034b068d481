"""The node that blends another prompt in by region and noise level."""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..runtime.inject.noise_blend import NoiseBlend, blend_prompts
from ..runtime.inject.reference import Conditioning
from .projection import CATEGORY
from .schema import Schema, found_by, patched_model
from .shown import summary, timed
from .widgets import check_window, one_mask, window_in_words, window_inputs

GIVES_WAY, STAYS = "gives way", "stays"


class CBNoiseBlend(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBNoiseBlend",
            display_name="Blend Two Prompts by Region",
            category=CATEGORY,
            search_aliases=found_by("regional prompt", "noise blending", "composable diffusion", "prompt mask", "AND"),
            description="Blends another prompt into the run, in a region and for a part of the schedule. Where both "
            "prompts act, the part of each that opposes the other is left out, so that neither undoes the other.",
            inputs=[
                io.Model.Input("model", tooltip="Any model. Chain one for each further prompt."),
                io.Conditioning.Input(
                    "conditioning", tooltip="The other prompt, encoded with this model's CLIP, whole and without area."
                ),
                io.Combo.Input(
                    "own_prompt",
                    options=[GIVES_WAY, STAYS],
                    default=GIVES_WAY,
                    tooltip=f"What the sampler's own prompt does where the other one acts. {GIVES_WAY}: the other one "
                    f"takes its place, softly at the mask's edge. {STAYS}: both are followed there, added up; lower "
                    "CFG a little.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How strongly the other prompt is followed. 1 as strongly as the sampler's own, 0 is off.",
                ),
                *window_inputs(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the other prompt acts, white is fully. A soft edge blends best. Without one it acts "
                    "everywhere.",
                ),
            ],
            outputs=[patched_model()],
        )

    @classmethod
    @timed
    def execute(
        cls,
        model: ModelPatcher,
        conditioning: Conditioning,
        own_prompt: str,
        strength: float,
        start_percent: float,
        end_percent: float,
        mask: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        check_window(start_percent, end_percent)
        if not conditioning:
            raise ValueError("'conditioning' is empty: connect the prompt to blend in.")
        blend = NoiseBlend(conditioning, one_mask(mask), strength, own_prompt == STAYS, start_percent, end_percent)
        return io.NodeOutput(blend_prompts(model, blend), ui=summary(_in_words(blend)))


def _in_words(blend: NoiseBlend) -> str:
    if blend.strength == 0:
        return "Off: strength is 0, so the model is unchanged."
    if blend.mask is None:
        return f"The other prompt acts everywhere, {window_in_words(blend.start, blend.end)}."
    if not bool(blend.mask.any()):
        return "Off: the mask is empty, so the model is unchanged."
    part = float(blend.mask.float().mean())
    return f"The other prompt acts in {part:.0%} of the picture, {window_in_words(blend.start, blend.end)}."


NODES = [CBNoiseBlend]
