"""Nodes that take style from a reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io

from ..engine.gates import LayerGate
from ..engine.style import AUTO, POSITIONS, SHARINGS, StyleSettings
from ..engine.texts import bounded, counted
from ..engine.trajectory import Trajectory
from ..runtime.attribution.subject import Subject
from ..runtime.inject.picture import check_clip
from ..runtime.inject.prompts import encode_rows
from ..runtime.inject.reference import FIRST_ROW, Conditioning, StyleReference
from ..runtime.inject.style import StyleInjection, inject_style
from ..runtime.inject.trajectory import Trajectories
from .gate import Gate
from .schema import Schema, found_by, patched_model
from .shown import summary, timed
from .subject import Subject as SubjectOfPicture
from .widgets import advanced, check_window, in_window, one_mask, window_in_words, window_inputs

CATEGORY = "conditional balance/style"
Reference = io.Custom("STYLE_REFERENCE")
Way = io.Custom("TRAJECTORY")
LONGEST_PROMPTS = 100_000  # characters
FIRST, RENOISED, REPLAYED = "first row of the batch", "renoised latent", "trajectory"


class CBPromptBatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBPromptBatch",
            display_name="Prompt per Picture",
            category=CATEGORY,
            search_aliases=found_by("batch prompts", "multiple prompts", "prompt list", "several prompts"),
            description="Gives every picture of a batch its own prompt, one on each line.",
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP that came with the model."),
                io.String.Input(
                    "prompts",
                    default="a painting, in the style of ukiyo-e\na sailing ship, in the style of ukiyo-e",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="One prompt per line; empty lines are skipped. Set the latent's batch_size to the number "
                    "of lines. Name the style in every line. When Style Injection has no reference, line 1 is the "
                    "picture that the others take their style from.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning",
                    tooltip="Connect to the sampler's positive input; row i belongs to picture i.",
                )
            ],
        )

    @classmethod
    @timed
    def execute(cls, clip: CLIP, prompts: str) -> io.NodeOutput:
        lines = [line.strip() for line in bounded(prompts, "prompts", LONGEST_PROMPTS).splitlines() if line.strip()]
        if not lines:
            raise ValueError("'prompts' is empty: write one prompt per line.")
        check_clip(clip, "prompts")
        words = f"{counted(len(lines), 'prompt')}: set the latent's batch_size to {len(lines)}."
        return io.NodeOutput(encode_rows(clip, lines), ui=summary(words))


class CBStyleReference(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBStyleReference",
            display_name="Style Reference (style from image)",
            category=CATEGORY,
            search_aliases=found_by(
                "style from image", "style image", "reference image", "style picture", "ipadapter", "风格参考", "画風"
            ),
            description="Sets the picture that style is taken from: the batch's first picture, or one of your own.",
            inputs=[
                io.Combo.Input(
                    "mode",
                    options=[RENOISED, FIRST, REPLAYED],
                    default=RENOISED,
                    tooltip=f"{RENOISED}: a picture of your own, noised to match every step; it does not appear in the "
                    f"result. {FIRST}: the batch's first picture is the reference and appears in the result; it needs "
                    f"a batch of two or more. {REPLAYED}: a picture as it was at every step of an inversion or of its "
                    "own run.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The reference picture, encoded with the model's VAE; the first of a batch is used. "
                    "Encode it at the size you generate, or it is resized. With a recorded trajectory: the latent of "
                    "the sampler that painted it.",
                ),
                io.Conditioning.Input(
                    "prompt",
                    optional=True,
                    tooltip="A prompt that describes the reference picture, style included. Without one the sampler's "
                    "positive prompt is used for it, and less of its style comes over.",
                ),
                Way.Input(
                    "trajectory",
                    optional=True,
                    tooltip="From Invert Latent, or from Record Trajectory with its sampler's latent. Needed by the "
                    "mode of that name.",
                ),
                *_several_inputs(),
            ],
            outputs=[Reference.Output(display_name="reference", tooltip="Connect to Style Injection.")],
        )

    @classmethod
    @timed
    def execute(
        cls,
        mode: str,
        latent: dict[str, torch.Tensor] | None = None,
        prompt: Conditioning | None = None,
        trajectory: Trajectory | Trajectories | None = None,
        strength: float = 1.0,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        mask: torch.Tensor | None = None,
        previous: StyleReference | None = None,
        subject: Subject | None = None,
    ) -> io.NodeOutput:
        check_window(start_percent, end_percent)
        if prompt is None and subject is not None:
            prompt = subject.conditioning
        if mode == REPLAYED:
            taken = StyleReference(None, prompt, _way(trajectory, latent))
        elif trajectory is not None:
            raise ValueError(f"'trajectory' is connected and 'mode' is '{mode}': set it to '{REPLAYED}'.")
        elif mode == FIRST:
            if subject is not None:
                raise ValueError(
                    f"'subject' is connected, but 'mode' is '{FIRST}', which has no picture to find it in: choose "
                    "another mode."
                )
            taken = FIRST_ROW
        else:
            taken = StyleReference(_picture(latent), prompt)
        reference = replace(
            taken,
            strength=strength,
            start=start_percent,
            end=end_percent,
            mask=one_mask(mask),
            previous=previous,
            subject=subject,
        )
        return io.NodeOutput(reference, ui=summary(_taken_in_words(reference)))


def _picture(latent: dict[str, torch.Tensor] | None) -> torch.Tensor:
    if latent is None:
        raise ValueError(f"'latent' is empty: encode a reference picture and connect it, or set 'mode' to '{FIRST}'.")
    return latent["samples"][:1]


def _way(trajectory: Trajectory | Trajectories | None, latent: dict[str, torch.Tensor] | None) -> Trajectory:
    if trajectory is None:
        raise ValueError(
            f"'trajectory' is empty: connect Invert Latent or Record Trajectory, or set 'mode' to '{RENOISED}'."
        )
    if isinstance(trajectory, Trajectory):
        return trajectory
    return trajectory.of(None if latent is None else latent["samples"])


def _taken_in_words(reference: StyleReference) -> str:
    if reference.hidden:
        whose = "a prompt of its own" if reference.prompt is not None else "the sampler's prompt"
        words = f"Style comes from your picture, under {whose}"
    else:
        words = "Style comes from the batch's first picture"
    if reference.strength != 1:
        words += f", {reference.strength:.0%} of it" if reference.strength >= 0 else ", pushed away from"
    if reference.subject is not None:
        words += f", without its {', '.join(phrase.text for phrase in reference.subject.phrases)}"
    if reference.mask is not None:
        words += ", inside its mask"
    if (reference.start, reference.end) != (0.0, 1.0):
        words += f", {window_in_words(reference.start, reference.end)}"
    beside = len(reference.chain) - 1
    return f"{words}." if not beside else f"{words}; {beside} more beside it."


def _several_inputs() -> list[io.Input]:
    """How a reference acts, and what beside it."""
    for each in (window := window_inputs()):
        each.optional = True
        advanced(each)
    return [
        io.Float.Input(
            "strength",
            default=1.0,
            min=-1.0,
            max=2.0,
            step=0.05,
            optional=True,
            tooltip="How much of this reference is taken: 1 as much as Style Injection sets, 2 more, 0 nothing. Below "
            "0 pushes pictures away from it; start at -0.3. References that act on one place share it by strength.",
        ),
        *window,
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where in the picture this reference acts; it is scaled to the picture's size. Without one, "
            "everywhere.",
        ),
        Reference.Input(
            "previous",
            optional=True,
            tooltip="Another Style Reference that acts as well. Each one costs as much as one more picture.",
        ),
        SubjectOfPicture.Input(
            "subject",
            optional=True,
            tooltip="The reference's own subject, which your pictures should not take over, from Subject of the "
            "Prompt: write there a prompt that describes the reference, and its subject as phrase. Attention takes "
            "nothing from where that subject is found. The prompt also replaces 'prompt' if that is empty.",
        ),
    ]


def _strength_inputs() -> list[io.Input]:
    """How much of the reference the open layers take."""
    return [
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="How much style the chosen layers take. 1 is the paper's method, 0 is off. To weaken style, "
            "first lower the style amount, so that fewer layers take it.",
        ),
        io.Boolean.Input(
            "adain_q",
            default=True,
            tooltip="Give the queries the reference's statistics. On, as in the paper; turn off only to experiment.",
        ),
        io.Boolean.Input(
            "adain_k",
            default=True,
            tooltip="Give the keys the reference's statistics. On, as in the paper; turn off only to experiment.",
        ),
        advanced(
            io.Boolean.Input(
                "adain_v",
                default=False,
                tooltip="Give the values the reference's statistics too: stronger colour transfer, more of the "
                "reference's content. The paper leaves it off for SDXL.",
            )
        ),
        io.Float.Input(
            "share",
            default=1.0,
            min=0.0,
            max=4.0,
            step=0.05,
            tooltip="Weight of the reference's tokens in attention beside the picture's own. 1 is the paper's "
            "method, 2 suits faint references, 0 leaves statistics only. Lower it when the reference's content "
            "leaks in.",
        ),
    ]


def _transformer_inputs() -> list[io.Input]:
    """What differs between families of models; each family brings its own default."""
    return [
        advanced(
            io.Combo.Input(
                "position",
                options=list(POSITIONS),
                default=AUTO,
                optional=True,
                tooltip="Where the reference's tokens are placed in models with rotary positions (Flux, Qwen-Image, "
                "Z-Image). auto is right: shift puts the reference beside the picture, so that its layout is not "
                "copied. keep leaves it in the same place. untwist weighs frequencies. Other models ignore it.",
            )
        ),
        advanced(
            io.Combo.Input(
                "sharing",
                options=list(SHARINGS),
                default=AUTO,
                optional=True,
                tooltip="In which layers attention is shared: where queries or keys are selected, or where both are. "
                "auto is the published rule: q or k; for SD3.5 q and k, with adain_v. Change it only to compare.",
            )
        ),
    ]


STYLE_WORDS = (
    "style transfer", "stylealigned", "style aligned", "ipadapter", "ip-adapter", "style from image",
    "copy style", "art style", "风格迁移", "画風変換", "スタイル転写"
)  # fmt: skip


class CBStyleInjection(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBStyleInjection",
            display_name="Style Injection (style transfer)",
            category=CATEGORY,
            search_aliases=found_by(*STYLE_WORDS),
            description="Gives pictures the style of a reference in the chosen attention layers only; the other layers "
            "follow the prompt. Works with any sampler, ControlNet and LoRA.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="SD1.5, SDXL or a finetune of either. Experimental on transformers: SD3.5, Flux, Chroma, "
                    "Qwen-Image, Z-Image, Lumina2, AuraFlow, Wan, HunyuanVideo, Cosmos.",
                ),
                Gate.Input("gate", tooltip="The layers that take style, from Select Layers or Layer Gate."),
                *_strength_inputs(),
                *window_inputs(),
                Reference.Input(
                    "reference",
                    optional=True,
                    tooltip="What style is taken from. Without one it is the first picture of the batch.",
                ),
                *_transformer_inputs(),
                advanced(
                    io.Boolean.Input(
                        "remember",
                        default=True,
                        optional=True,
                        tooltip="Keeps what a connected reference brings to the layers: the next pictures with it then "
                        "cost hardly more than without a reference, and come out exactly the same. The memory is freed "
                        "when the model is unloaded; turn this off where memory is short. It has no effect where other "
                        "nodes have put patches inside the model.",
                    )
                ),
            ],
            outputs=[patched_model()],
        )

    @classmethod
    @timed
    def execute(
        cls,
        model: ModelPatcher,
        gate: LayerGate,
        strength: float,
        share: float,
        start_percent: float,
        end_percent: float,
        reference: StyleReference = FIRST_ROW,
        remember: bool = True,
        **adain: Any,
    ) -> io.NodeOutput:
        gate = in_window(gate, start_percent, end_percent)
        settings = StyleSettings(strength, share=share, **adain)
        injected = inject_style(model, StyleInjection(gate, reference, settings, remember=remember))
        return io.NodeOutput(injected, ui=summary(_in_words(settings, start_percent, end_percent)))


def _in_words(settings: StyleSettings, start_percent: float, end_percent: float) -> str:
    if settings.strength == 0:
        return "Off: strength is 0, so the model is unchanged."
    if not (settings.share or settings.adain_q or settings.adain_k or settings.adain_v):
        return "Off: share is 0 and no statistics are given, so the model is unchanged."
    when = window_in_words(start_percent, end_percent)
    return f"The gate's layers take {settings.strength:.0%} of the style, {when}."


NODES = [CBPromptBatch, CBStyleReference, CBStyleInjection]
