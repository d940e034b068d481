"""Nodes that keep a picture's metadata apart from what it means: sizes by noise level, noise levels by resolution."""

from __future__ import annotations

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import CONST
from comfy_api.latest import io

from ..engine.conditioning import resolution_ratio, shifted_sigmas
from ..runtime.inject.metadata import Change, Metadata, NoSuchMetadata, schedule_metadata
from .schema import Schema, found_by, patched_model
from .shown import summary, timed
from .widgets import advanced

CATEGORY = "conditional balance/metadata"
CURVE = "How late it enters: 0 acts all the time, 1 from the middle on, 3 in the last third."
NAMES = {
    "original": "original_scale", "target": "target_scale", "top": "crop_top", "left": "crop_left",
    "guidance": "guidance_scale", "pooled": "pooled_scale",
}  # fmt: skip
VALUES, EMBEDDINGS = "numbers", "embeddings"


def _factor(name: str, low: float, high: float, tooltip: str) -> io.Input:
    return io.Float.Input(name, default=1.0, min=low, max=high, step=0.05, tooltip=tooltip)


def _curve(name: str, default: float) -> io.Input:
    return advanced(io.Float.Input(name, default=default, min=0.0, max=8.0, step=0.25, tooltip=CURVE))


def _crop(name: str, side: str) -> io.Input:
    return io.Int.Input(
        name,
        default=0,
        min=0,
        max=4096,
        step=8,
        tooltip=f"SDXL: pixels cut off at the {side}, as the model is told. 0 changes nothing and centres the subject; "
        "200 moves it out of the frame.",
    )


def _side(name: str) -> io.Input:
    return io.Int.Input(name, default=1536, min=16, max=16384, step=8, tooltip=f"The picture's {name} in pixels.")


def _sizes_and_crops() -> list[io.Input]:
    """The model, and what SDXL is told of a picture."""
    return [
        io.Model.Input("model", tooltip="SDXL or a finetune of it for sizes and crops; Flux for guidance."),
        _factor(
            "original_scale",
            0.1,
            8.0,
            "SDXL: the original picture's size late in the schedule, as a factor of the prompt's. 2 to 4 "
            "sharpens detail, 0.5 softens it, 1 changes nothing.",
        ),
        _curve("original_curve", 3.0),
        _crop("crop_top", "top"),
        _crop("crop_left", "left"),
        _curve("crop_curve", 1.0),
        advanced(
            _factor(
                "target_scale",
                0.1,
                8.0,
                "SDXL: the target size as a factor of the prompt's. It drives the layout, so leave it at 1.",
            )
        ),
        _curve("target_curve", 0.0),
    ]


def _guidance_and_text() -> list[io.Input]:
    return [
        _factor(
            "guidance_scale",
            0.0,
            4.0,
            "Flux: the guidance late in the schedule, as a factor of FluxGuidance's. 1 changes nothing.",
        ),
        _curve("guidance_curve", 1.0),
        advanced(
            _factor(
                "pooled_scale",
                0.0,
                2.0,
                "The pooled text late in the schedule, as a factor. 0 leaves detail to the prompt's words "
                "alone, 1 changes nothing.",
            )
        ),
        _curve("pooled_curve", 1.0),
        advanced(
            io.Combo.Input(
                "interpolate",
                options=[VALUES, EMBEDDINGS],
                default=VALUES,
                tooltip=f"{VALUES}: the sizes themselves change, so that every size on the way is one that exists. "
                f"{EMBEDDINGS}: the embeddings of the first and the last size are mixed. Leave it at numbers.",
            )
        ),
    ]


class CBMicroConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBMicroConditioning",
            display_name="Size and Crop by Noise Level",
            category=CATEGORY,
            search_aliases=found_by("sdxl size", "crop", "target size", "micro conditioning"),
            description="Changes what the model is told about a picture's size and crop (SDXL), guidance (Flux) or "
            "pooled text over the schedule, so that it acts on detail and leaves the layout to the prompt.",
            inputs=[*_sizes_and_crops(), *_guidance_and_text()],
            outputs=[patched_model()],
        )

    @classmethod
    @timed
    def execute(cls, model: ModelPatcher, **values: Any) -> io.NodeOutput:
        metadata = _read(values)
        try:
            patched = schedule_metadata(model, metadata)
        except NoSuchMetadata as error:
            raise ValueError(_refusal(error)) from error
        return io.NodeOutput(patched, ui=summary(_in_words(metadata)))


def _read(values: dict[str, Any]) -> Metadata:
    crop = values["crop_curve"]
    return Metadata(
        original=Change(values["original_scale"], values["original_curve"]),
        target=Change(values["target_scale"], values["target_curve"]),
        top=Change(values["crop_top"], crop),
        left=Change(values["crop_left"], crop),
        guidance=Change(values["guidance_scale"], values["guidance_curve"]),
        pooled=Change(values["pooled_scale"], values["pooled_curve"]),
        by_value=values["interpolate"] == VALUES,
    )


def _refusal(error: NoSuchMetadata) -> str:
    neutral = 0 if error.group in ("top", "left") else 1
    return f"'{NAMES[error.group]}' is set, but a {error.model} model takes no such number: set it to {neutral}."


def _in_words(metadata: Metadata) -> str:
    if not metadata.changed:
        return "Off: every factor is 1 and every crop is 0, so the model is unchanged."
    said = (f"{NAMES[group]} {getattr(metadata, group).value:g}" for group in metadata.changed)
    return f"Late in the schedule: {', '.join(said)}."


class CBResolutionShift(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBResolutionShift",
            display_name="Noise Levels for Another Resolution",
            category=CATEGORY,
            search_aliases=found_by("resolution", "shift", "sigmas", "high resolution"),
            description="Moves a schedule's noise levels for pictures larger or smaller than those that the model was "
            "trained on: large ones need more steps at high noise for their layout.",
            inputs=[
                io.Model.Input("model", tooltip="The model that samples: its kind decides how levels move."),
                io.Sigmas.Input("sigmas", tooltip="A schedule, from Basic Scheduler. Its first and last level stay."),
                io.Int.Input(
                    "width", default=1536, min=16, max=16384, step=8, tooltip="Width of the picture in pixels."
                ),
                io.Int.Input(
                    "height", default=1536, min=16, max=16384, step=8, tooltip="Height of the picture in pixels."
                ),
                io.Int.Input(
                    "trained_size",
                    default=1024,
                    min=64,
                    max=8192,
                    step=64,
                    tooltip="Side of the square pictures that the model was trained on: 1024 for SDXL, Flux and SD3.5, "
                    "512 for SD1.5. At this size nothing changes.",
                ),
                advanced(
                    io.Float.Input(
                        "amount",
                        default=1.0,
                        min=0.0,
                        max=2.0,
                        step=0.05,
                        tooltip="How far to go: 1 as far as the sizes say, 0 changes nothing.",
                    )
                ),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="Connect to Sampler Custom.")],
        )

    @classmethod
    @timed
    def execute(
        cls,
        model: ModelPatcher,
        sigmas: torch.Tensor,
        width: int,
        height: int,
        trained_size: int,
        amount: float,
    ) -> io.NodeOutput:
        if len(sigmas) > 1 and bool((sigmas.diff() > 0).any()):
            raise ValueError("'sigmas' rise, but a schedule for painting falls: remove Flip Sigmas before this node.")
        ratio = resolution_ratio(width, height, trained_size) ** amount
        flow = isinstance(model.get_model_object("model_sampling"), CONST)
        shifted, words = shifted_sigmas(sigmas, ratio, flow), f"Levels for sides {ratio:.2f} times as long."
        if ratio == 1:
            words = "Off: the schedule is unchanged."
        elif torch.equal(shifted, sigmas):
            words = "Off: the first and the last level stay, and there is none between. Take three steps or more."
        return io.NodeOutput(shifted, ui=summary(words))


NODES = [CBMicroConditioning, CBResolutionShift]
