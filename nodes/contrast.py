"""The node that guides a run by style."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..engine.gates import LayerGate
from ..runtime.inject.contrast import LayerContrast, contrast_layers
from ..runtime.inject.reference import FIRST_ROW, StyleReference
from ..runtime.inject.style import StyleInjection
from .gate import Gate
from .projection import CATEGORY
from .schema import Schema, found_by, patched_model
from .shown import summary, timed
from .style import Reference
from .widgets import advanced, in_window, window_in_words, window_inputs


class CBLayerContrast(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBLayerContrast",
            display_name="Layer Contrast (style guidance)",
            category=CATEGORY,
            search_aliases=found_by("style guidance", "guidance", "style cfg", "PAG", "perturbed attention"),
            description="Guides the picture along what a reference's style changes in the chosen layers, as CFG guides "
            "it along what the prompt changes.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="A model of any supported family. Chain it with CFG, PAG and others in any order."
                ),
                Gate.Input("gate", tooltip="The layers whose style guides, from Select Layers."),
                io.Float.Input(
                    "strength",
                    default=1.5,
                    min=-10.0,
                    max=10.0,
                    step=0.1,
                    tooltip="How far each step goes along the difference. 1 to 2 is good, 0 is off, below 0 leads away "
                    "from the style. Each step costs one more prediction with the reference.",
                ),
                *window_inputs(),
                Reference.Input(
                    "reference",
                    optional=True,
                    tooltip="What style is taken from. Without one it is the first picture of the batch.",
                ),
                advanced(
                    io.Float.Input(
                        "rescale",
                        default=0.0,
                        min=0.0,
                        max=1.0,
                        step=0.05,
                        optional=True,
                        tooltip="Brings contrast back to what it was before this guidance. 0 is off; try 0.7 where "
                        "strong guidance burns colours.",
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
        start_percent: float,
        end_percent: float,
        reference: StyleReference = FIRST_ROW,
        rescale: float = 0.0,
    ) -> io.NodeOutput:
        injection = StyleInjection(in_window(gate, start_percent, end_percent), reference)
        guided = contrast_layers(model, LayerContrast(injection, strength, rescale))
        words = f"Guides by style at {strength:g}, {window_in_words(start_percent, end_percent)}."
        if strength == 0:
            words = "Off: strength is 0, so the model is unchanged."
        return io.NodeOutput(guided, ui=summary(words))


NODES = [CBLayerContrast]
