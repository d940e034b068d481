"""Finds a subject in one latent without sampling: a picture just encoded, or a noisy latent on its way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider, calc_cond_batch

from ...engine.attribution import normalised
from ...engine.texts import bounded, quoted
from ..arch.base import Architecture
from ..arch.registry import architecture_of
from ..inject.reference import check_latent, framed
from ..runs.loaded import sampling_of
from ..runs.probe import Conditioning, look_at, noise_for
from .attribute import Result, attribute
from .layers import chosen_layers
from .methods import Method
from .prediction import Prediction, precision_of
from .prompts import subject_prompts
from .settings import AttributionSettings
from .subject import Subject

LONGEST = 1_000
"""Characters that a text of noise levels may hold; each level costs a pass."""


@dataclass(frozen=True)
class ProbeSettings:
    """At which noise levels a latent is probed, in percent; with `noised` it holds its noise already, of the first one.

    `seed` draws the noise that a clean latent gets, the same at every level.
    """

    percents: tuple[float, ...]
    noised: bool = False
    seed: int = 0


def find_subject(
    model: ModelPatcher,
    latent: torch.Tensor,
    subject: Subject,
    probe: ProbeSettings,
    settings: AttributionSettings,
    positive: Conditioning | None = None,
) -> Result:
    """Maps [subjects, B, h, w] of a latent [B, C, (1,) h, w], averaged over the noise levels.

    `positive` is the subject's prompt with what other nodes tied to it, such as a ControlNet.
    Raises ValueError on input that does not fit.
    """
    layers, results = chosen_layers(model, settings), list[Result]()

    def ask(prediction: Prediction) -> None:
        results.append(attribute(prediction, subject, layers, settings))

    ask_at_levels(model, latent, subject, probe, settings.way, ask, positive)
    notes = dict.fromkeys(each.note for each in results if each.note)
    maps = torch.stack([normalised(each.maps) for each in results]).mean(0)
    return Result(maps.cpu(), results[-1].method, " ".join(notes))


def ask_at_levels(
    model: ModelPatcher,
    latent: torch.Tensor,
    subject: Subject,
    probe: ProbeSettings,
    method: Method,
    ask: Callable[[Prediction], None],
    positive: Conditioning | None = None,
) -> None:
    """Call `ask` with the prediction of a latent [B, C, (1,) h, w] at every noise level.

    Raises ValueError on input that does not fit, or that the method cannot serve.
    """
    check_latent(model, latent, "latent")
    latent = framed(model, latent, "latent")
    if probe.noised and len(probe.percents) > 1:
        raise ValueError("'noise_levels' names several, but a noisy latent has one: write its own level alone.")
    sampling, family = sampling_of(model), architecture_of(model)
    high, low = float(sampling.sigma_max), float(sampling.sigma_min)
    sigmas = torch.tensor([min(max(sampling.percent_to_sigma(each), low), high) for each in probe.percents])

    def measure(guider: CFGGuider, noise: torch.Tensor, sigmas: torch.Tensor, model_options: dict[str, Any]) -> None:
        picture = guider.inner_model.process_latent_in(latent.to(noise))
        prompts = subject_prompts(guider.conds["positive"], subject, method)
        for percent, sigma in zip(probe.percents, sigmas, strict=True):
            prompts.check_active(sigma, f"'noise_levels': {percent:g}")
        bar = comfy.utils.ProgressBar(len(sigmas))
        for sigma in sigmas:
            comfy.model_management.throw_exception_if_processing_interrupted()
            given = torch.zeros_like(noise) if probe.noised else noise  # flow models hand noisy latents on in a scale
            x = guider.inner_model.model_sampling.noise_scaling(sigma[None], given, picture)
            ask(_prediction(guider, x, sigma.expand(len(x)), model_options, prompts.texts, family))
            bar.update(1)

    noise = noise_for(latent, probe.seed)
    look_at(model, {"positive": positive or subject.conditioning}, noise, sigmas, probe.seed, measure)


def _prediction(
    guider: CFGGuider,
    x: torch.Tensor,
    sigma: torch.Tensor,
    model_options: dict[str, Any],
    texts: dict[Any, int],
    family: Architecture,
) -> Prediction:
    base, prompts = guider.inner_model, [guider.conds["positive"]]

    def predict(options: dict[str, Any]) -> torch.Tensor:
        return calc_cond_batch(base, prompts, x, sigma, {**model_options, "transformer_options": options})[0]

    options = model_options.get("transformer_options", {})
    return Prediction(predict, options, None, x, sigma, texts, precision_of(base), family)


def percents_in(text: str) -> tuple[float, ...]:
    """Noise levels separated by commas, each from 0 (noise) to 1 (picture).

    Raises ValueError that quotes a bad one, or says that the text is too long.
    """
    return tuple(_percent(part.strip()) for part in bounded(text, "noise_levels", LONGEST).split(",") if part.strip())


def _percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"{quoted(text)} is not a noise level: write a number from 0 (noise) to 1 (picture), as 0.7.")
    return value
