"""The node that loads a LoRA at gated layers only."""

from __future__ import annotations

from typing import Any

import comfy.utils
import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io

from ..engine.gates import LayerGate, WrittenGate
from ..engine.grammar import parse
from ..runtime.inject.lora import GatedLoRA, gate_lora
from .gate import Gate
from .schema import Schema, found_by
from .shown import summary, timed

CATEGORY = "conditional balance/LoRA"
BY_GATE, ALL = "gate", "all"
PRESETS = {"B-LoRA style (SDXL)": "o1", "B-LoRA content (SDXL)": "o0"}
"""The two blocks of SDXL in which B-LoRA (arXiv 2403.14572) keeps style and content."""


def _file_and_layers() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The model that the LoRA was made for."),
        io.Combo.Input("lora_name", options=_files(), tooltip="A file in models/loras."),
        io.Float.Input(
            "strength",
            default=1.0,
            min=-10.0,
            max=10.0,
            step=0.05,
            tooltip="How strongly the LoRA changes the model at fully open layers. 1 is as it was trained.",
        ),
        io.Combo.Input(
            "layers",
            options=[BY_GATE, *PRESETS, ALL],
            default=BY_GATE,
            tooltip=f"{BY_GATE}: those of the connected gate, at its weights; a gate that changes over the run "
            "acts with its mean, since weights are changed once. B-LoRA: the one block of SDXL that holds its "
            f"style or its content. {ALL}: everywhere, as Load LoRA does.",
        ),
    ]


def _optional() -> list[io.Input]:
    return [
        Gate.Input("gate", optional=True, tooltip="The layers at which the LoRA acts. Needed when 'layers' is gate."),
        io.Clip.Input("clip", optional=True, tooltip="The CLIP, for LoRAs that change the text encoder too."),
        io.Float.Input(
            "strength_clip",
            optional=True,
            default=1.0,
            min=-10.0,
            max=10.0,
            step=0.05,
            tooltip="How strongly the LoRA changes the text encoder, which has no layers to choose. 0 leaves "
            "it alone, which suits a style LoRA beside a subject LoRA.",
        ),
    ]


class CBGateLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBGateLoRA",
            display_name="Load LoRA at Chosen Layers",
            category=CATEGORY,
            search_aliases=found_by("lora block weight", "lora by layer", "style lora"),
            description="Loads a LoRA that acts in the chosen attention layers and their blocks only, so that a style "
            "LoRA brings its style and leaves content to the prompt, or to another LoRA at the other layers.",
            inputs=[*_file_and_layers(), *_optional()],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the LoRA at these layers."),
                io.Clip.Output(display_name="clip", tooltip="The CLIP with the LoRA; empty when none is connected."),
            ],
        )

    @classmethod
    @timed
    def execute(
        cls,
        model: ModelPatcher,
        lora_name: str,
        strength: float,
        layers: str,
        gate: LayerGate | None = None,
        clip: CLIP | None = None,
        strength_clip: float = 1.0,
    ) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("loras", lora_name)
        lora: Any = comfy.utils.load_torch_file(path, safe_load=True)
        found = gate_lora(model, clip, lora, _chosen(layers, gate), strength, strength_clip)
        if not found.weights and found.clip is clip:
            raise ValueError(
                f"'lora_name': nothing in {lora_name} fits this model: choose a LoRA that was made for its family."
            )
        return io.NodeOutput(found.model, found.clip, ui=summary(_in_words(found)))


def _files() -> list[str]:
    """The LoRA files; none where the folder cannot be read, since no disk may keep the nodes from loading."""
    try:
        return folder_paths.get_filename_list("loras")
    except OSError:
        return []


def _chosen(layers: str, gate: LayerGate | None) -> LayerGate:
    if layers != BY_GATE:
        return WrittenGate(parse(PRESETS.get(layers, ALL)))
    if gate is None:
        raise ValueError("'gate' is not connected: connect one, or choose other 'layers'.")
    return gate


def _in_words(found: GatedLoRA) -> str:
    words = f"{found.acting} of the LoRA's {found.weights} weights act."
    if found.unused:
        words += f" {len(found.unused)} keys of the file fit nothing here, such as {found.unused[0]}."
    return words


NODES = [CBGateLoRA]
