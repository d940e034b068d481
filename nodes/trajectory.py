"""Nodes that give a picture's path through the noise levels: recorded while it was painted, or inverted."""

from __future__ import annotations

import math

import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import SCHEDULER_NAMES
from comfy_api.latest import io

from ..runtime.inject.inversion import FixedNoise, Inversion, invert_latent
from ..runtime.inject.reference import Conditioning, check_latent, framed
from ..runtime.inject.trajectory import Trajectories, record_trajectory
from .schema import Schema, found_by
from .shown import summary, timed
from .style import CATEGORY, Way
from .widgets import advanced

EXACT, PLAIN = "direct", "plain"


class CBRecordTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBRecordTrajectory",
            display_name="Record Trajectory",
            category=CATEGORY,
            search_aliases=found_by(
                "record sampling", "latent history", "reference features", "visual style prompting"
            ),
            description="Records a run step by step, from noise to picture, so that other pictures can take its style "
            "as it was at every noise level.",
            inputs=[io.Model.Input("model", tooltip="The model that paints the reference, with all that acts on it.")],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="Connect to the sampler that paints the reference. It paints the same.",
                ),
                Way.Output(
                    display_name="trajectory",
                    tooltip="Connect to Style Reference, together with that sampler's latent.",
                ),
            ],
        )

    @classmethod
    @timed
    def execute(cls, model: ModelPatcher) -> io.NodeOutput:
        trajectories = Trajectories()
        words = "Records the first picture of every run; connect the sampler's latent to Style Reference too."
        return io.NodeOutput(record_trajectory(model, trajectories), trajectories, ui=summary(words))


def _picture_and_schedule() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The model that will paint, of any kind: eps, v or flow."),
        io.Conditioning.Input(
            "positive", tooltip="A prompt that describes the picture; an empty one will do. CFG is 1."
        ),
        io.Latent.Input("latent", tooltip="The picture, through VAE Encode."),
        io.Int.Input(
            "steps",
            default=50,
            min=2,
            max=1000,
            tooltip="Steps of the schedule, on the way up and back. 50 is good; fewer lose more.",
        ),
        io.Combo.Input(
            "scheduler",
            options=list(SCHEDULER_NAMES),
            default="normal",
            tooltip="The schedule of the noise. Use the one that you sample with, or the output 'sigmas'.",
        ),
        io.Combo.Input(
            "mode",
            options=[EXACT, PLAIN],
            default=EXACT,
            tooltip=f"{EXACT}: the model adds at each step what inversion lost there, so that the picture "
            f"comes back exactly. {PLAIN}: the model is handed on as it is.",
        ),
    ]


def _rarely_changed() -> list[io.Input]:
    return [
        advanced(
            io.Int.Input(
                "refinements",
                default=1,
                min=0,
                max=20,
                optional=True,
                tooltip="How often each step is improved; each costs as much as the steps. 0 is plain DDIM "
                "inversion, 1 is good, 3 comes back almost exactly also in the plain mode.",
            )
        ),
        advanced(
            io.Float.Input(
                "gamma",
                default=0.0,
                min=0.0,
                max=1.0,
                step=0.05,
                optional=True,
                tooltip="Flow models only: how far each step is led straight to random noise. 0 keeps the "
                "picture best, 0.5 leaves more freedom to another prompt, 1 is that noise itself.",
            )
        ),
        advanced(
            io.Int.Input(
                "seed",
                default=0,
                min=0,
                max=0xFFFFFFFFFFFFFFFF,
                optional=True,
                control_after_generate=False,
                tooltip="The random noise that 'gamma' leads to. Without gamma it changes nothing.",
            )
        ),
    ]


class CBInvertLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBInvertLatent",
            display_name="Invert Latent (DDIM inversion)",
            category=CATEGORY,
            search_aliases=found_by("ddim inversion", "unsampler", "rf inversion", "image to noise", "null text"),
            description="Finds the noise from which the model paints a given picture, and says how near it comes back.",
            inputs=[*_picture_and_schedule(), *_rarely_changed()],
            outputs=[
                Way.Output(display_name="trajectory", tooltip="Connect to Style Reference: the picture at each noise."),
                io.Model.Output(
                    display_name="model", tooltip="The model for the way back. Connect to a guider with CFG 1 to check."
                ),
                io.Noise.Output(
                    display_name="noise",
                    tooltip="Connect to SamplerCustomAdvanced, with an empty latent of the picture's size.",
                ),
                io.Sigmas.Output(display_name="sigmas", tooltip="The schedule; use it with the euler sampler."),
            ],
        )

    @classmethod
    @timed
    def execute(
        cls,
        model: ModelPatcher,
        positive: Conditioning,
        latent: dict[str, torch.Tensor],
        steps: int,
        scheduler: str,
        mode: str,
        refinements: int = 1,
        gamma: float = 0.0,
        seed: int = 0,
    ) -> io.NodeOutput:
        check_latent(model, latent["samples"], "latent")
        pictures = framed(model, latent["samples"], "latent")
        how = Inversion(steps, scheduler, refinements, gamma, seed, mode == EXACT)
        found = invert_latent(model, pictures, positive, how)
        words = f"{steps} steps up and back: {_in_words(found.error)}."
        noise = FixedNoise(found.noise, seed)
        return io.NodeOutput(found.trajectory, found.model, noise, found.sigmas, ui=summary(words))


def _in_words(error: float) -> str:
    """How near the way back came, measured by walking it."""
    if math.isinf(error) or error > 120:
        return "the picture comes back exactly"
    return f"the picture comes back to within {error:.0f} dB of its latent's range"


NODES = [CBRecordTrajectory, CBInvertLatent]
