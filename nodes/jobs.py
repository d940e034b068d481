"""One node for each common job, built from the nodes that do its parts."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io

from ..engine.gates import LayerGate
from ..engine.profile import SensitivityProfile
from ..engine.style import StyleSettings
from ..engine.texts import bounded
from ..runtime.disk import files_below
from ..runtime.inject.picture import encoded, latent_of
from ..runtime.inject.reference import StyleReference
from ..runtime.inject.style import StyleInjection, inject_style
from ..runtime.profile.choosing import Choice, choose_profile
from .gate import CBSelectLayers, chosen_layers, in_words, problem_with
from .profile import FOLDER, PUBLISHED, SUFFIX, Profile
from .schema import Schema, found_by
from .shown import about, layer_map, summary, timed
from .style import LONGEST_PROMPTS
from .widgets import advanced, out_of_range

CATEGORY = "conditional balance"
SHIPPED = Path(__file__).resolve().parent.parent / FOLDER
RANKINGS = ("demo.style.safetensors", PUBLISHED, "sd3.5-large.style.published.safetensors")
"""What comes with the pack, in the order in which it is tried."""
BY_AMOUNT = "as style amount says"
PRESETS = {BY_AMOUNT: None, "hint 0.2": 0.2, "balanced 0.43": 0.43, "with ControlNet 0.57": 0.57, "strong 0.75": 0.75}
"""Names that end in their amount: js/presets.js moves the slider by it."""
SELECTING = ("policy", "start_percent", "end_percent", "pin", "exclude")
"""Widgets that are those of Select Layers, under the same names, so that the layer map reads and writes them."""


@functools.cache
def _selecting() -> dict[str, io.WidgetInput]:
    """The widgets of Select Layers by name."""
    return {each.id: each for each in CBSelectLayers.define_schema().inputs if isinstance(each, io.WidgetInput)}


def _loaded(picture: str) -> list[io.Input]:
    """What every job begins with: a checkpoint's three outputs and a picture."""
    return [
        io.Model.Input("model", tooltip="The checkpoint's model: SD1.5, SDXL, SD3.5, Flux or another known family."),
        io.Clip.Input("clip", tooltip="The checkpoint's CLIP."),
        io.Vae.Input("vae", tooltip="The checkpoint's VAE."),
        io.Image.Input("image", tooltip=picture),
    ]


def _shows() -> io.Input:
    return io.String.Input(
        "shows",
        display_name="what it shows",
        default="",
        multiline=True,
        dynamic_prompts=True,
        tooltip="What the picture shows and in which style, such as 'a harbour, watercolour painting'. It keeps the "
        "picture's subject out of yours. Empty: the picture is read under your own prompt, and less of its style comes "
        "over.",
    )


def _amount(default: float) -> io.Input:
    return io.Float.Input(
        "lambda",
        display_name="style amount",
        default=default,
        min=0.0,
        max=1.0,
        step=0.01,
        display_mode=io.NumberDisplay.slider,
        tooltip="How much style comes in: the share of the model's layers that take it. 0 is none, 1 all. Look for the "
        "least that brings the style over: above 0.5 it starts to push your prompt aside.",
    )


def _preset() -> io.Input:
    return io.Combo.Input(
        "preset",
        options=list(PRESETS),
        default=BY_AMOUNT,
        tooltip=f"A style amount by name: choosing one moves the slider there. {BY_AMOUNT}: the slider decides.",
    )


def _rarely_changed() -> list[io.Input]:
    """How style comes in, where the defaults nearly always do."""
    strength = io.Float.Input(
        "strength",
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.05,
        tooltip="How far the chosen layers go: 1 all the way, 0 is off. To weaken style, first lower the style amount.",
    )
    share = io.Float.Input(
        "share",
        default=1.0,
        min=0.0,
        max=4.0,
        step=0.05,
        tooltip="Weight of the picture's tokens in attention. 1 is right; 2 for faint styles; lower it when things out "
        "of the picture appear in yours.",
    )
    profile = Profile.Input(
        "profile",
        optional=True,
        tooltip="A ranking of your own choice. Leave it open: the node finds the best that there is for your "
        "checkpoint, and says beneath itself which.",
    )
    return [*(advanced(_selecting()[name]) for name in SELECTING), advanced(strength), advanced(share), profile]


class CBStyleFromPicture(io.ComfyNode):
    """Style Reference, Select Layers and Style Injection in one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBStyleFromPicture",
            display_name="Style from Picture",
            category=CATEGORY,
            search_aliases=found_by(
                "style transfer",
                "style from image",
                "style from picture",
                "copy style",
                "image style",
                "art style",
                "ipadapter",
                "ip-adapter",
                "stylealigned",
                "reference image",
                "参考图风格",
                "风格迁移",
                "画風を写す",
                "スタイル転写",
            ),
            description="Paints your prompt in the style of a picture. Put it between the checkpoint and the sampler.",
            inputs=[
                *_loaded("The picture whose style you want."),
                _shows(),
                _amount(0.43),
                _preset(),
                *_rarely_changed(),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="Connect to the sampler.")],
        )

    @classmethod
    def validate_inputs(cls, pin: str | None) -> bool | str:
        return CBSelectLayers.validate_inputs(pin)

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        return _files_changed()

    @classmethod
    @timed
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        vae: Any,
        image: torch.Tensor,
        shows: str,
        profile: SensitivityProfile | None = None,
        **values: Any,
    ) -> io.NodeOutput:
        reference = _reference(model, clip, vae, image, shows)
        chosen = Choice(profile, "Layers by your profile.") if profile is not None else _chosen(model)
        gate, words = _gate(chosen, values)
        return io.NodeOutput(_styled(model, gate, reference, values), ui=_shown(chosen, words))


def _reference(model: ModelPatcher, clip: CLIP, vae: Any, image: torch.Tensor, shows: str) -> StyleReference:
    text = bounded(shows, "shows", LONGEST_PROMPTS).strip()
    prompt = encoded(clip, text, "what it shows") if text else None
    return StyleReference(latent_of(vae, image, model), prompt)


def _gate(chosen: Choice, values: Mapping[str, Any]) -> tuple[LayerGate, str]:
    """The layers that an amount keeps of a ranking, and their words. Raises ValueError when a value is wrong."""
    if problem := out_of_range([_preset(), _amount(0.43)], values):  # a link may bring anything
        raise ValueError(problem)
    preset = PRESETS[values["preset"]]
    amount = values["lambda"] if preset is None else preset
    selecting = {name: values.get(name, widget.default) for name, widget in _selecting().items()} | {"lambda": amount}
    if problem := problem_with(selecting):
        raise ValueError(problem)
    gate, everywhere = chosen_layers(chosen.profile, selecting)
    return gate, f"Style amount {amount:g}: {in_words(gate, everywhere, chosen.profile)}"


def _styled(
    model: ModelPatcher, gate: LayerGate, reference: StyleReference, values: Mapping[str, Any]
) -> ModelPatcher:
    settings = StyleSettings(values["strength"], share=values["share"])
    return inject_style(model, StyleInjection(gate, reference, settings))


def _shown(chosen: Choice, words: str) -> dict[str, Any]:
    """Which ranking, which layers, and the layer map of them."""
    return summary(f"{chosen.words} {words}") | about(chosen.words) | layer_map(chosen.profile)


def _chosen(model: ModelPatcher) -> Choice:
    return choose_profile(model, _own_files(), [SHIPPED / name for name in RANKINGS])


def _own_files() -> list[Path]:
    """The user's profiles, the newest first."""
    roots = [Path(root) for root in folder_paths.get_folder_paths(FOLDER) if Path(root).resolve() != SHIPPED]
    found = [Path(root, name) for root in roots for name in files_below(root, SUFFIX)]
    return sorted((path for path in found if path.is_file()), key=lambda path: -path.stat().st_mtime_ns)


def _files_changed() -> str:
    """Another text whenever a profile was added, changed or removed: the best ranking may then be another."""
    return " ".join(f"{path}@{path.stat().st_mtime_ns}" for path in _own_files())


NODES = [CBStyleFromPicture]
