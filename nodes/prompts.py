"""The node that gives chosen layers another prompt."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..engine.gates import LayerGate
from ..runtime.inject.layer_prompt import LayerPrompt, prompt_layers
from ..runtime.inject.reference import Conditioning
from .gate import Gate
from .schema import Schema, found_by, patched_model
from .shown import summary, timed
from .widgets import in_window, window_in_words, window_inputs


class CBLayerPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBLayerPrompt",
            display_name="Prompt for Chosen Layers",
            category="conditional balance/style",
            search_aliases=found_by("style prompt", "prompt per layer", "block prompt", "two prompts"),
            description="The chosen layers read another prompt than the sampler's: a style prompt in the layers that "
            "carry style, or a subject in those that carry content.",
            inputs=[
                io.Model.Input("model", tooltip="SD1.5, SDXL or a finetune of either."),
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="The other prompt, encoded with this model's CLIP; the first one of a combination is used.",
                ),
                Gate.Input("gate", tooltip="The layers that read it, from Select Layers or Layer Gate."),
                *window_inputs(),
            ],
            outputs=[patched_model()],
        )

    @classmethod
    @timed
    def execute(
        cls,
        model: ModelPatcher,
        conditioning: Conditioning,
        gate: LayerGate,
        start_percent: float,
        end_percent: float,
    ) -> io.NodeOutput:
        if not conditioning:
            raise ValueError("'conditioning' is empty: connect the prompt that the chosen layers should read.")
        prompt = LayerPrompt(in_window(gate, start_percent, end_percent), conditioning[0][0])
        words = f"The gate's layers read the other prompt, {window_in_words(start_percent, end_percent)}."
        return io.NodeOutput(prompt_layers(model, prompt), ui=summary(words))


NODES = [CBLayerPrompt]
