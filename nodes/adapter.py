"""The nodes for what other packs apply: adapters under a gate, and a gate as their texts."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..engine.gates import LayerGate
from ..engine.layers import spelled
from ..runtime.inject.adapter import GatedAdapter, gate_adapter
from ..runtime.inject.converted import CONTROLNET, FORMATS, IPADAPTER, LORA, as_text
from .gate import CATEGORY, Gate
from .schema import Schema, found_by
from .shown import summary, timed
from .widgets import in_window, window_in_words, window_inputs

MOST_NAMED = 3  # places that the model has not


class CBGateAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBGateAdapter",
            display_name="Adapter at Chosen Layers (IPAdapter)",
            category="conditional balance/style",
            search_aliases=found_by("ipadapter", "ip-adapter", "instantid", "pulid", "layer weights", "image prompt"),
            description="Lets an IP-Adapter, or another adapter of that kind, act in the chosen layers only, as "
            "strongly as the gate says there. Put it after the node that applies the adapter.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model from the node that applies the adapter, such as IPAdapter Advanced. "
                    "SD1.5, SDXL or a finetune of either."
                ),
                Gate.Input(
                    "gate",
                    tooltip="The layers at which the adapter acts, from Select Layers or Layer Gate: at "
                    "weight 1 as it was applied, at 0.5 by half, at 0 not at all.",
                ),
                *window_inputs(),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="Connect to the sampler, or to the next adapter; its gate does not change this one.",
                )
            ],
        )  # fmt: skip

    @classmethod
    @timed
    def execute(cls, model: ModelPatcher, gate: LayerGate, start_percent: float, end_percent: float) -> io.NodeOutput:
        patched, gated = gate_adapter(model, in_window(gate, start_percent, end_percent))
        return io.NodeOutput(patched, ui=summary(_in_words(gated, window_in_words(start_percent, end_percent))))


def _in_words(gated: GatedAdapter, window: str) -> str:
    words = f"Gates the adapter in {spelled(gated.adapters)}, {window}."
    if missing := [layer for layer in gated.layers if layer not in gated.adapters]:
        words += f" It acts nowhere else, so a gate changes nothing in {spelled(missing)}."
    if gated.elsewhere:
        more = len(gated.elsewhere) - MOST_NAMED
        named = ", ".join(gated.elsewhere[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
        words += f" What it patches as {named} is nowhere in this model."
    return words


class CBGateToText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBGateToText",
            display_name="Gate as Text for Other Packs",
            category=CATEGORY,
            search_aliases=found_by("layer weights", "lora block weight", "LBW", "mad scientist", "controlnet weights"),
            description="Writes a gate as the text that other packs take for their layer or block weights.",
            inputs=[
                Gate.Input("gate", tooltip="The gate to write down."),
                io.Model.Input("model", tooltip="The model that it is for, whose layers are counted."),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default=IPADAPTER,
                    tooltip=f"{IPADAPTER}: for layer_weights of IPAdapter's Mad Scientist node, such as 3:0.5,6:1. "
                    f"{LORA}: for block_vector of Inspire-Pack's LoRA Loader (Block Weight). {CONTROLNET}: for the "
                    "widgets of Custom Weights, one a line. Their blocks hold several layers: each number is the mean.",
                ),
            ],
            outputs=[io.String.Output(display_name="text", tooltip="Connect to the other node's text input, or copy.")],
        )

    @classmethod
    @timed
    def execute(cls, gate: LayerGate, model: ModelPatcher, format: str) -> io.NodeOutput:
        text, changing = as_text(model, gate, format)
        words = " ".join(text.split("\n"))
        if changing:
            words += " This is the mean over the run, during which the gate changes."
        return io.NodeOutput(text, ui=summary(words))


NODES = [CBGateAdapter, CBGateToText]
