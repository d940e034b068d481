"""Finds a subject in one latent, with no picture sampled: a picture just encoded, or a noisy latent on its way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher

from ..engine.attribution import normalised
from .attribution import Found, attribute
from .attribution_layers import AttributionSettings, Layers, chosen_layers
from .attribution_prediction import Prediction, precision_of, texts_of
from .reference import check_latent
from .subject import Conditioning, Subject


@dataclass(frozen=True)
class Look:
    """How a latent is looked at: noise levels in percent; with `noised` it holds its noise already, of the first level.

    `seed` draws the noise that a clean latent gets, the same at every level.
    """

    percents: tuple[float, ...]
    noised: bool = False
    seed: int = 0


def find_subject(
    model: ModelPatcher,
    latent: torch.Tensor,
    subject: Subject,
    look: Look,
    settings: AttributionSettings,
    positive: Conditioning | None = None,
) -> Found:
    """Maps [subjects, B, h, w] of a latent [B, C, h, w], averaged over the noise levels.

    `positive` is the subject's prompt with what other nodes tied to it, such as a ControlNet.
    Raises ValueError on input that does not fit.
    """
    layers = chosen_layers(model, settings)
    check_latent(model, latent, "latent")
    if look.noised and len(look.percents) > 1:
        raise ValueError("'noise_levels' names several, but a noisy latent has one: write its own level alone.")
    sampling = model.get_model_object("model_sampling")
    high, low = float(sampling.sigma_max), float(sampling.sigma_min)
    sigmas = torch.tensor([min(max(sampling.percent_to_sigma(each), low), high) for each in look.percents])
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive or subject.conditioning})
    probe = _Probe(latent, subject, layers, look, settings)
    noise = comfy.sample.prepare_noise(latent, look.seed)
    guider.sample(noise, torch.zeros_like(latent), probe, sigmas, disable_pbar=True, seed=look.seed)
    notes = dict.fromkeys(found.note for found in probe.found if found.note)
    maps = torch.stack([normalised(found.maps) for found in probe.found]).mean(0)
    return Found(maps.cpu(), probe.found[-1].method, " ".join(notes))


@dataclass
class _Probe:
    """Stands where a sampler stands, so that ComfyUI prepares and cleans up everything; it only looks."""

    latent: torch.Tensor
    subject: Subject
    layers: Layers
    look: Look
    settings: AttributionSettings
    found: list[Found] = field(default_factory=list)

    def sample(
        self,
        guider: comfy.samplers.CFGGuider,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: torch.Tensor,
        latent_image: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        picture = guider.inner_model.process_latent_in(self.latent.to(noise))
        texts = texts_of(guider.conds["positive"], self.subject, self.settings.method)
        bar = comfy.utils.ProgressBar(len(sigmas))
        for sigma in sigmas:
            comfy.model_management.throw_exception_if_processing_interrupted()
            x = picture
            if not self.look.noised:
                x = guider.inner_model.model_sampling.noise_scaling(sigma[None], noise, picture)
            prediction = self._prediction(guider, x, sigma.expand(len(x)), extra_args["model_options"], texts)
            self.found.append(attribute(prediction, self.subject, self.layers, self.settings))
            bar.update(1)
        return latent_image

    def _prediction(
        self,
        guider: comfy.samplers.CFGGuider,
        x: torch.Tensor,
        sigma: torch.Tensor,
        model_options: dict[str, Any],
        texts: dict[Any, int],
    ) -> Prediction:
        base, prompts = guider.inner_model, [guider.conds["positive"]]

        def predict(options: dict[str, Any]) -> torch.Tensor:
            return comfy.samplers.calc_cond_batch(
                base, prompts, x, sigma, {**model_options, "transformer_options": options}
            )[0]

        options = model_options.get("transformer_options", {})
        return Prediction(predict, options, None, x, sigma, texts, precision_of(base))


def percents_in(text: str) -> tuple[float, ...]:
    """Noise levels parted by commas, each from 0 (noise) to 1 (picture). Raises ValueError that quotes a bad one."""
    return tuple(_percent(part.strip()) for part in text.split(",") if part.strip())


def _percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"'{text}' is no noise level: write a number from 0 (noise) to 1 (picture), such as 0.7.")
    return value
