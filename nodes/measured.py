"""The node that measures what each layer does, not what it responds to."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..engine.agreement import spearman
from ..engine.profile import SensitivityProfile
from ..runtime.inject.reference import StyleReference
from ..runtime.profile.effect import measure_layers
from .profile import CATEGORY, Profile, profile_outputs, shown_profile
from .schema import Schema, found_by
from .shown import timed, warning

Reference = io.Custom("STYLE_REFERENCE")
NOTHING_BROUGHT = (
    "No layer by itself brings the pictures nearer to the reference, so this ranking says nothing about style: choose "
    "a reference that looks unlike what the prompt gives by itself, and do not keep this profile."
)
LEAST_GAIN = 1e-3  # of the way to the reference's style; less is rounding


class CBMeasureLayers(io.ComfyNode):
    """Opens one layer at a time to a reference and looks at what changes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBMeasureLayers",
            display_name="Measure Layers (what does each layer do?)",
            category=CATEGORY,
            search_aliases=found_by("layer effect", "which layers matter", "ablation", "style layers", "test layers"),
            description="Applies the style of a reference in one attention layer at a time and measures what that does "
            "to the picture: how far it moves toward the reference's look, and how much of its layout it loses.",
            inputs=[
                io.Model.Input("model", tooltip="The model to measure, with the LoRAs that you will use."),
                Reference.Input(
                    "reference",
                    tooltip="The reference whose style is applied: a Style Reference with a picture, best one that "
                    "looks unlike what the prompt gives by itself.",
                ),
                io.Latent.Input(
                    "latent",
                    tooltip="Pictures painted without the reference, such as a sampler's latent; four or more give a "
                    "steadier ranking.",
                ),
                io.Conditioning.Input("positive", tooltip="The prompt that those pictures were painted with."),
                io.Int.Input(
                    "noise_levels",
                    default=4,
                    min=1,
                    max=20,
                    tooltip="Noise levels, each for an equal part of the sampling. A model call for every layer and "
                    "level: 4 are enough to compare layers, more show when a layer acts.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Draws the noise that the pictures are put under.",
                ),
                Profile.Input(
                    "profile",
                    optional=True,
                    tooltip="A profile of Profile Sensitivity to compare with: the report says how far both agree.",
                ),
            ],
            outputs=profile_outputs(),
        )

    @classmethod
    @timed
    def execute(
        cls,
        model: Any,
        reference: StyleReference,
        latent: dict[str, torch.Tensor],
        positive: list,
        noise_levels: int,
        seed: int,
        profile: SensitivityProfile | None = None,
    ) -> io.NodeOutput:
        found = measure_layers(model, reference, latent["samples"], positive, noise_levels, seed)
        agreed = _agreement(found, profile) if profile is not None else ""
        return shown_profile(found, agreed, warning(None if _brings_style(found) else NOTHING_BROUGHT))


def _brings_style(found: SensitivityProfile) -> bool:
    """Whether any layer brings the pictures nearer to the reference; scores are 1 - gain."""
    return bool((1 - found.scores.mean((0, 1)) > LEAST_GAIN).any())


def _agreement(found: SensitivityProfile, profile: SensitivityProfile) -> str:
    """How far the measured effect ranks the layers as a profile does. Raises LayersDiffer for other layers."""
    order = profile.aligned(found.layers)
    features = [feature for feature in found.features if feature in profile.features] or [profile.features[0]]
    agreed = []
    for level, sigma in enumerate(found.sigmas.tolist()):
        others = torch.stack([profile.at(sigma, feature)[order] for feature in features]).mean(0)
        agreed.append(spearman(found.scores[0, level], others))
    mean = sum(agreed) / len(agreed)
    return f"Agrees with '{profile.provenance.get('what', 'the profile')}' at {mean:.2f} (Spearman, over noise levels)."


NODES = [CBMeasureLayers]
