"""Inputs that all nodes that look for a subject share: how it is looked for, and how the map becomes a mask."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..engine.grammar import parse
from ..engine.masks import RULES, MaskSettings, NoShare, UnknownRule
from ..engine.texts import bounded, quoted
from ..engine.windows import parse_windows
from ..runtime.attribution.find import percents_in
from ..runtime.attribution.methods import METHODS
from ..runtime.attribution.settings import DEFAULT, WEIGHTINGS, AttributionSettings
from .subject import Subject
from .widgets import advanced

CELL = "8 pixels with most models, 16 with Flux.2"
"""The side of a cell of the latent: a node does not know its model's before it runs."""


def model_input() -> io.Input:
    return io.Model.Input(
        "model",
        tooltip="SD1.5, SDXL or a finetune of either; or a diffusion transformer such as SD3.5, Flux, Qwen-Image or "
        "Z-Image, where masks are experimental.",
    )


def subject_input(tooltip: str) -> io.Input:
    return Subject.Input("subject", tooltip=tooltip)


def attribution_inputs() -> list[io.Input]:
    """How the subject is looked for."""
    return [_method(), _layers(), *map(advanced, (_weighting(), _propagation(), _probes()))]


def mask_inputs(dilate: float = 0.0) -> list[io.Input]:
    """How the map becomes a mask; lengths in cells of the latent, of which `CELL` says the size."""
    return [_blur(), *_threshold(), _dilate(dilate), _feather(), _invert()]


def attribution_settings(values: dict[str, Any]) -> AttributionSettings:
    """The settings in the values of `attribution_inputs`. Raises ValueError where layers cannot be read."""
    if problem := problem_in("layers", values["layers"]):
        raise ValueError(problem)
    names = ("method", "layers", "weighting", "propagation", "probes")
    return AttributionSettings(*(values[name] for name in names))


def mask_settings(values: dict[str, Any]) -> MaskSettings:
    """The settings in the values of `mask_inputs`. Raises ValueError where they do not go together."""
    names = ("blur", "threshold", "amount", "dilate", "feather", "invert")
    try:
        return MaskSettings(*(values[name] for name in names))
    except UnknownRule as error:
        raise ValueError(f"'threshold' is {quoted(error.rule)}; choose one of {', '.join(RULES)}.") from error
    except NoShare as error:
        raise ValueError(f"'amount' is {error.amount:g}, but a share of the picture lies between 0 and 1.") from error


def problem_in(name: str, text: str | None) -> str | None:
    """What is wrong with the text of an input that cannot be read; a linked one is None and checked later."""
    readers = {"layers": _read_layers, "windows": parse_windows, "noise_levels": percents_in}
    try:
        if text is not None:
            readers[name](text)
    except ValueError as problem:
        return str(problem) if str(problem).startswith(f"'{name}'") else f"'{name}': {problem}"
    return None


def _read_layers(text: str) -> None:
    if bounded(text, "layers").strip() not in ("", DEFAULT):
        parse(text)


def _method() -> io.Input:
    return io.Combo.Input(
        "method",
        options=list(METHODS),
        default="value_norm",
        tooltip=" ".join(f"{name}: {method.about}" for name, method in METHODS.items()),
    )


def _layers() -> io.Input:
    return io.String.Input(
        "layers",
        default=DEFAULT,
        tooltip="Layers to read, where the picture attends to words. auto takes a UNet's finest ones; of a transformer "
        "those from a fifth to three fifths of its depth. By hand: o9-11 for SD1.5, o3-5 for SDXL, j11-18 for Flux; "
        "-m0 takes layers away, o9:0.5 counts a layer half.",
    )


def _weighting() -> io.Input:
    return io.Combo.Input(
        "weighting",
        options=list(WEIGHTINGS),
        default=WEIGHTINGS[0],
        tooltip="How layers and heads count in the mean (not in jvp, which weighs by itself). by layer and by "
        "head measure each one's effect with one more pass each: slower.",
    )


def _propagation() -> io.Input:
    return io.Int.Input(
        "propagation",
        default=2,
        min=0,
        max=4,
        tooltip="How often the map is spread along fine self-attention. The map is then multiplied by the result, so "
        "that it follows borders and leaves out what only looks like the subject. 2 suits most; 0 leaves it as found.",
    )


def _probes() -> io.Input:
    return io.Int.Input(
        "probes",
        default=2,
        min=1,
        max=64,
        tooltip="Random probes of grad_sam, a backward pass each. More give a calmer map: on the demo model masks of 2 "
        "came to an IoU of 0.64, of 8 and of 16 to 0.69.",
    )


def _blur() -> io.Input:
    return io.Float.Input(
        "blur",
        default=0.7,
        min=0.0,
        max=16.0,
        step=0.1,
        tooltip=f"Smooths the map before the threshold; in cells of the latent ({CELL}). Raise it when the mask is "
        "ragged.",
    )


def _threshold() -> list[io.Input]:
    return [
        io.Combo.Input(
            "threshold",
            options=list(RULES),
            default="otsu",
            tooltip="What counts as subject. otsu: the best split into two groups, no number needed. mean + c std: the "
            "paper's rule, tighter or wider by 'amount'. top share: a fixed share of the picture.",
        ),
        io.Float.Input(
            "amount",
            default=0.8,
            min=-3.0,
            max=5.0,
            step=0.05,
            tooltip="c of 'mean + c std' (0.5 in the paper; higher is tighter), or the share of 'top share' "
            "from 0 to 1. Not used by otsu.",
        ),
    ]


def _dilate(default: float) -> io.Input:
    return io.Float.Input(
        "dilate",
        default=default,
        min=0.0,
        max=32.0,
        step=0.5,
        tooltip=f"Grows the mask by so many cells of the latent ({CELL}). 0 for the tightest mask; 1 keeps a blend "
        "from cutting into the subject.",
    )


def _feather() -> io.Input:
    return io.Float.Input(
        "feather",
        default=0.0,
        min=0.0,
        max=32.0,
        step=0.5,
        tooltip="Fades the mask out over so many cells around the subject. 1 or 2 hides seams.",
    )


def _invert() -> io.Input:
    return io.Boolean.Input(
        "invert",
        default=False,
        tooltip="Swap inside and outside: a blend then keeps the surroundings and takes the subject's place from "
        "the reference.",
    )
