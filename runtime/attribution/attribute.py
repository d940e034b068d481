"""Attribution of a subject at one noise level: four methods over one repeatable conditional prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from comfy import model_management

from ...engine.attribution import contrasted
from ...engine.subject import Phrase
from .layers import AttributionSettings, Layers
from .methods.attention import by_attention
from .methods.grad_sam import by_gradient
from .methods.jvp import by_scaling
from .prediction import Prediction
from .propagation import Spread
from .subject import Subject


@dataclass(frozen=True)
class Found:
    """Maps [subjects, B, h, w], the method that made them, and a word to the user when it is not the one asked for."""

    maps: torch.Tensor
    method: str
    note: str = ""


def attribute(prediction: Prediction, subject: Subject, layers: Layers, settings: AttributionSettings) -> Found:
    """The importance of every subject at every position of the latent.

    Raises ValueError when none of the chosen layers ran.
    """
    spread = Spread(prediction, layers, settings.propagation)
    phrases = subject.phrases + subject.surroundings
    maps, method, note = _maps(prediction, phrases, layers, settings, spread)
    maps = contrasted(maps[: len(subject.phrases)], maps[len(subject.phrases) :])
    silent = [str(layer) for layer in layers.asked if layer not in prediction.ran]
    if len(silent) == len(layers.asked):
        raise ValueError("'layers' names layers that never ran: another node replaces or skips them; choose others.")
    if silent:
        note = " ".join((note, f"Chosen but never run: {', '.join(silent)}.")).strip()
    return Found(spread.over(maps), method, note)


def _maps(
    prediction: Prediction,
    phrases: Sequence[Phrase],
    layers: Layers,
    settings: AttributionSettings,
    spread: Spread,
) -> tuple[torch.Tensor, str, str]:
    """Maps, the method that made them and a note; without gradients `grad_sam` gives way to `jvp`."""
    if settings.method == "jvp":
        return by_scaling(prediction, phrases, layers, spread), "jvp", ""
    if settings.method != "grad_sam":
        return by_attention(prediction, phrases, layers, settings, spread), settings.method, ""
    try:
        return by_gradient(prediction, phrases, layers, settings, spread), "grad_sam", ""
    except (RuntimeError, NotImplementedError) as problem:
        if isinstance(problem, model_management.OOM_EXCEPTION):
            raise
        note = f"grad_sam found no gradients here ({_first_line(problem)}); jvp was used instead."
        return by_scaling(prediction, phrases, layers, spread), "jvp", note


def _first_line(problem: Exception) -> str:
    return str(problem).strip().split("\n")[0].rstrip(".")
