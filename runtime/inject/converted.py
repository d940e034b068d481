"""A gate as other packs' texts, for a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from comfy.model_patcher import ModelPatcher

from ...engine.gate_texts import NoSuchFormat, controlnet_text, ipadapter_text, lora_text
from ...engine.gates import LayerGate, changes, mean_weights
from ...engine.layers import LayerId
from ..arch.registry import architecture_of
from ..runs.loaded import sampling_of

IPADAPTER, LORA, CONTROLNET = "IPAdapter layer weights", "LoRA block weights", "Advanced-ControlNet weights"
FORMATS: Mapping[str, Callable[[Mapping[LayerId, float]], str]] = MappingProxyType(
    {IPADAPTER: ipadapter_text, LORA: lora_text, CONTROLNET: controlnet_text}
)


def as_text(model: ModelPatcher, gate: LayerGate, form: str) -> tuple[str, bool]:
    """The gate in one of FORMATS, and whether it changes during a run, so that the text is its mean.

    A layer counts by the widest of its queries, keys and values. Raises ValueError for a model without such a format
    and for a gate of other layers.
    """
    family = architecture_of(model)
    to_sigma = sampling_of(model).percent_to_sigma
    mean = mean_weights(gate, family.layers, to_sigma).amax(0).tolist()
    try:
        text = FORMATS[form](dict(zip(family.layers, mean, strict=True)))
    except NoSuchFormat as error:
        raise ValueError(f"'format' {form} does not fit this {family.name} model, as {error.why}.") from error
    return text, changes(gate, family.layers, to_sigma)
