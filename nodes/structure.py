"""Nodes that say how much structure a ControlNet imposes, and where."""

from __future__ import annotations

from typing import Any

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..engine.ablation import agreement
from ..engine.combining import low_content
from ..engine.grammar import GrammarError
from ..engine.profile import NoContentScores, SensitivityProfile
from ..engine.structure import (
    NotRankable,
    PaperSchedule,
    RankedSlots,
    SlotLayout,
    StructureGate,
    WrittenSlots,
    parse_weights,
    scaled,
    slot_scores,
)
from ..engine.texts import counted
from ..render.ablation import ablation_report
from ..runtime.arch.registry import architecture_of
from ..runtime.inject.control import gate_control, layout_of
from ..runtime.profile.ablation import ablate_slots
from ..runtime.profile.profiling import noise_levels as levels_of
from ..runtime.runs.loaded import own_classes
from .gate import NO_CONTENT
from .profile import Profile
from .schema import Schema, found_by
from .shown import summary, timed
from .widgets import advanced

CATEGORY = "conditional balance/structure"
KEEP_CONTENT = "ranked by content"
POLICIES = ["paper", "ranked", "weights", KEEP_CONTENT]


class CBGateControlNet(io.ComfyNode):
    """One node between Load ControlNet and Apply ControlNet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBGateControlNet",
            display_name="Gate ControlNet (structure amount)",
            category=CATEGORY,
            search_aliases=found_by(
                "controlnet strength", "structure amount", "controlnet weight", "composition", "pose"
            ),
            description="Lets a ControlNet set the layout and leaves the drawing to the style: its residuals act only "
            "where, and only as long as, structure needs them. Put it between Load ControlNet and Apply ControlNet.",
            inputs=[*_what(), *_how_much(), *_by_hand()],
            outputs=[
                io.ControlNet.Output(display_name="control_net", tooltip="Connect to Apply ControlNet."),
                io.String.Output(display_name="summary", tooltip="What the gate does, in plain words."),
            ],
        )

    @classmethod
    @timed
    def execute(
        cls,
        control_net: Any,
        policy: str,
        kept: float,
        middle: float,
        strength: float,
        softness: float,
        weights: str,
        profile: SensitivityProfile | None = None,
    ) -> io.NodeOutput:
        gate, words = _gate(policy, kept, middle, softness, weights, profile)
        words = words if strength else "Off: strength is 0, so this control does nothing."
        gated, note = gate_control(control_net, scaled(gate, strength))
        return io.NodeOutput(gated, note or words, ui=summary(note or words))


def _gate(
    policy: str, kept: float, middle: float, softness: float, weights: str, profile: SensitivityProfile | None
) -> tuple[StructureGate, str]:
    """A policy's gate, and what it does in words."""
    if policy == "weights":
        written = _read(weights)
        return written, f"{len(written.written.skips)} slots by hand, the middle {written.written.middle:g}."
    alone = f"the middle one alone, times {middle:g}" if middle else "none"
    if policy == "paper":
        return PaperSchedule(kept, middle), f"Every residual for the first {kept:.0%} of the schedule, then {alone}."
    if profile is None:
        raise ValueError(
            "'profile' is empty, but policy ranked needs one: connect a profile of geometry, or use paper."
        )
    if policy == KEEP_CONTENT:
        try:
            ranking = low_content(profile)
        except NoContentScores as error:
            raise ValueError(NO_CONTENT) from error
        words = f"The {kept:.0%} of the slots whose layers follow content more than style, and the middle one"
        return RankedSlots(ranking, kept, softness, middle), f"{words} times {middle:g}."
    measured = profile.provenance.get("what", "what the profile measures")
    words = f"The {kept:.0%} of the slots that are least sensitive to {measured}, and the middle one times {middle:g}."
    return RankedSlots(profile, kept, softness, middle), words


def _read(weights: str) -> WrittenSlots:
    """Weights by hand, which only their policy reads: core could refuse them before the run for all policies alone."""
    try:
        return parse_weights(weights)
    except GrammarError as error:
        raise ValueError(f"'weights': {error}") from error


def _what() -> list[io.Input]:
    return [
        io.ControlNet.Input(
            "control_net",
            tooltip="Any ControlNet, Control-LoRA or T2I adapter for SD1.5 or SDXL; experimental: for SD3.5, Flux or "
            "Qwen-Image, where paper keeps nothing later and ranked does not work. Chain several as usual: each has a "
            "gate of its own, or none. Control that patches the model is not gated.",
        ),
        io.Combo.Input(
            "policy",
            options=POLICIES,
            default="paper",
            tooltip="paper: everything early, only the layout (middle residual) later. ranked: at every noise level "
            "the residuals that matter least to geometric style; needs a profile. weights: by hand. ranked by content: "
            "the residuals that reach layers which follow content and not style; needs a profile of a crossed series.",
        ),
    ]


def _how_much() -> list[io.Input]:
    return [
        io.Float.Input(
            "kept",
            display_name="structure amount",
            default=0.15,
            min=0.0,
            max=1.0,
            step=0.01,
            display_mode=io.NumberDisplay.slider,
            tooltip="How much structure is kept: 1 is the ordinary ControlNet, 0 leaves the middle residual only. For "
            "paper it is the first share of the schedule, and 0.15 equals the official code's removed share 0.85. For "
            "ranked it is the share of residuals; start at 0.5. Not used by weights.",
        ),
        io.Float.Input(
            "middle",
            default=1.0,
            min=0.0,
            max=2.0,
            step=0.05,
            tooltip="Weight of the middle residual, which holds the overall layout, where others are left out. 1 as in "
            "the paper; 0 frees the layout too. Not used by weights.",
        ),
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=2.0,
            step=0.05,
            tooltip="Scales what the gate lets through, on top of the apply node's own strength. Leave it at 1, and "
            "turn structure amount first; 0 switches this control off.",
        ),
    ]


def _by_hand() -> list[io.Input]:
    return [
        advanced(
            io.Float.Input(
                "softness",
                default=0.0,
                min=0.0,
                max=1.0,
                step=0.01,
                tooltip="Width of a soft edge for ranked, in standard deviations of the scores: residuals near the "
                "edge act in part. 0 keeps them whole or not at all. Other policies ignore it.",
            )
        ),
        io.String.Input(
            "weights",
            default="1x3 0.5x3 0x3 m1",
            tooltip="For policy weights: one number for each residual from the finest to the deepest, 9 for SDXL and "
            "12 for SD1.5; 0.5x3 is three of 0.5; m1 the middle one. Other policies ignore it.",
        ),
        Profile.Input(
            "profile",
            optional=True,
            tooltip="For policy ranked: a sensitivity profile of geometry, measured on clusters that are each drawn by "
            "one hand (same way of drawing, different subjects). Must fit the model.",
        ),
    ]


class CBProfileControlSlots(io.ComfyNode):
    """Cross-checks a ranking by leaving residuals out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBProfileControlSlots",
            display_name="Measure ControlNet Slots",
            category=CATEGORY,
            search_aliases=found_by("measure controlnet", "controlnet blocks"),
            description="Leaves out each residual of the applied ControlNets in turn and measures how much the "
            "prediction changes, at several noise levels. Compares that with a profile's ranking.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that the ControlNet belongs to."),
                io.Conditioning.Input(
                    "positive", tooltip="A prompt with ControlNets applied: the output of Apply ControlNet."
                ),
                io.Latent.Input(
                    "latent", tooltip="Pictures that fit prompt and control, through VAE Encode. Four are enough."
                ),
                io.Int.Input(
                    "noise_levels",
                    default=6,
                    min=1,
                    max=50,
                    tooltip="Noise levels to measure at, in even steps from most noise to least. 6 are enough; time "
                    "grows with it.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Draws the noise that is added. Any number does.",
                ),
                Profile.Input(
                    "profile",
                    optional=True,
                    tooltip="A profile to compare with, such as one of geometry. Leave it open to measure only.",
                ),
            ],
            outputs=[io.String.Output(display_name="report", tooltip="Change by slot and noise level, and agreement.")],
        )

    @classmethod
    @timed
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        latent: dict[str, torch.Tensor],
        noise_levels: int,
        seed: int,
        profile: SensitivityProfile | None = None,
    ) -> io.NodeOutput:
        with own_classes(model):
            layout = layout_of(model.model.diffusion_model)
        if profile is not None:
            _check_comparable(profile, model, layout)
        sigmas = levels_of(model, noise_levels).float()
        bar = comfy.utils.ProgressBar(len(sigmas) * (layout.slots + 3))
        found = ablate_slots(model, latent["samples"], positive, sigmas, seed, lambda: bar.update(1))
        text = ablation_report(found, None if profile is None else agreement(found, profile, layout))
        middle = ", a transformer has no middle one," if layout.parts else " and the middle one"
        words = f"{layout.slots} residuals{middle} at {counted(len(sigmas), 'noise level')}."
        return io.NodeOutput(text, ui=summary(words) | ui.PreviewText(text).as_dict())


def _check_comparable(profile: SensitivityProfile, model: ModelPatcher, layout: SlotLayout) -> None:
    """Raises ValueError, before anything is measured, for a profile that does not rank this model's slots."""
    profile.aligned(architecture_of(model).layers)
    try:
        slot_scores(profile, float(profile.sigmas[0]), layout)
    except NotRankable as error:
        raise ValueError(f"'profile' cannot be compared here, as {error.why}: leave it open.") from error


NODES = [CBGateControlNet, CBProfileControlSlots]
