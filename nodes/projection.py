"""The node that holds a picture to what is known of it."""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..runtime.inject.projection import Projection, project
from ..runtime.inject.reference import check_latent
from ..runtime.runs.loaded import cell_of
from .schema import Schema, found_by, patched_model
from .shown import summary, timed
from .widgets import check_window, window_in_words, window_inputs

CATEGORY = "conditional balance/guidance"
SMALL, COLOUR = "low resolution", "colour"


class CBProject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBProject",
            display_name="Keep Colours or Layout of a Picture",
            category=CATEGORY,
            search_aliases=found_by("colour match", "color match", "low resolution", "keep composition"),
            description="Moves every predicted picture to the nearest one that has the given picture's coarse layout "
            "and colours, or its overall colour, so that the model adds only what is missing.",
            inputs=[
                io.Model.Input("model", tooltip="Any model. Chain it with others in any order."),
                io.Latent.Input("latent", tooltip="The known picture, through VAE Encode: small, blurred or a sketch."),
                io.Combo.Input(
                    "known",
                    options=[SMALL, COLOUR],
                    default=SMALL,
                    tooltip=f"{SMALL}: the mean of every cell of the picture stays. {COLOUR}: the mean of the whole "
                    "picture stays, nothing of its layout.",
                ),
                io.Int.Input(
                    "cell",
                    default=64,
                    min=8,
                    max=1024,
                    step=8,
                    tooltip="Side of a cell in pixels: 32 for upscaling by 4, 64 to 128 for a rough layout. Colour "
                    "ignores it.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far each prediction moves: 1 keeps what is known exactly, 0 is off.",
                ),
                *window_inputs(),
            ],
            outputs=[patched_model()],
        )

    @classmethod
    @timed
    def execute(
        cls,
        model: ModelPatcher,
        latent: dict[str, torch.Tensor],
        known: str,
        cell: int,
        strength: float,
        start_percent: float,
        end_percent: float,
    ) -> io.NodeOutput:
        check_window(start_percent, end_percent)
        check_latent(model, latent["samples"], "latent")
        side = cell_of(model)
        cells = max(cell // side, 1) if known == SMALL else 0
        patched = project(model, Projection(latent["samples"], cells, strength, start_percent, end_percent))
        return io.NodeOutput(patched, ui=summary(_in_words(known, cells * side, strength, start_percent, end_percent)))


def _in_words(known: str, cell: int, strength: float, start: float, end: float) -> str:
    if strength == 0:
        return "Off: strength is 0, so the model is unchanged."
    kept = f"means of cells of {cell} pixels" if known == SMALL else "the overall colour"
    return f"Keeps {kept}, {strength:.0%}, {window_in_words(start, end)}."


NODES = [CBProject]
