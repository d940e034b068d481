"""Inversion of a picture under a model and a prompt: its trajectory, its noise, and a model that leads back to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from comfy import model_management, samplers, utils
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import CONST
from comfy.samplers import CFGGuider

from ...engine.inversion import Pull, decibels, invert, retrace
from ...engine.trajectory import Trajectory
from ..runs.loaded import sampling_of
from ..runs.probe import Conditioning, look_at, noise_for


@dataclass(frozen=True)
class Inversion:
    """How a picture is inverted: `steps` of a scheduler, each refined so many times; `gamma` is RF-Inversion's.

    `exact` corrects every prediction on the way back by what inversion lost at its step.
    """

    steps: int = 50
    scheduler: str = "normal"
    refinements: int = 1
    gamma: float = 0.0
    seed: int = 0
    exact: bool = True


@dataclass(frozen=True)
class Inverted:
    """What an inversion found: the first picture's trajectory, the model, noise [B, C, ..., H, W] and sigmas [T + 1]
    from which Euler's steps come back to the pictures, and how near they came: `error` in dB of the latents' range.
    """

    trajectory: Trajectory
    model: ModelPatcher
    noise: torch.Tensor
    sigmas: torch.Tensor
    error: float


class FixedNoise:
    """A NOISE that is always the same; `seed` is what samplers of noise of their own take theirs from."""

    def __init__(self, noise: torch.Tensor, seed: int) -> None:
        self.noise, self.seed = noise, seed

    def generate_noise(self, input_latent: dict[str, Any]) -> torch.Tensor:
        """The noise. Raises ValueError for a latent of another size, for which there is none."""
        size = tuple(input_latent["samples"].shape)
        if size != tuple(self.noise.shape):
            raise ValueError(
                f"The noise of Invert Latent has the shape {list(self.noise.shape)} and the sampler's latent "
                f"{list(size)}: use an empty latent of the size and batch that was inverted."
            )
        return self.noise.clone()


def invert_latent(model: ModelPatcher, latent: torch.Tensor, positive: Conditioning, inversion: Inversion) -> Inverted:
    """Invert pictures [B, C, ..., h, w] as VAE Encode gives them, under a prompt, without guidance (CFG 1).

    Everything on the model acts (LoRA, other nodes). Raises ValueError for `gamma` on a model that is no flow model.
    """
    sampling = model.get_model_object("model_sampling")
    if inversion.gamma and not isinstance(sampling, CONST):
        raise ValueError(
            "'gamma' belongs to flow models (SD3, Flux, Qwen-Image and their kin), and 'model' is none: set it to 0."
        )
    latent = latent.float()  # ComfyUI may hand latents on in fp16, in which the way to the noise ends in NaN
    sigmas = _distinct(samplers.calculate_sigmas(sampling, inversion.scheduler, inversion.steps).cpu())
    target = noise_for(latent, inversion.seed)
    found: list[Inverted] = []

    def look(guider: CFGGuider, noise: torch.Tensor, levels: torch.Tensor, options: dict[str, Any]) -> None:
        picture = guider.inner_model.process_latent_in(latent.to(noise))
        found.append(_inverted(model, inversion, picture, noise, sigmas, partial(_predict, guider, options)))

    look_at(model, {"positive": positive}, target, sigmas, inversion.seed, look)
    return found[0]


def _distinct(sigmas: torch.Tensor) -> torch.Tensor:
    """A schedule without levels that it repeats, as LCM's 50 do in more steps: no step between two leads anywhere."""
    return sigmas[torch.cat((sigmas.new_ones(1, dtype=torch.bool), sigmas.diff() != 0))]


def _predict(guider: CFGGuider, options: dict[str, Any], x: torch.Tensor, sigma: float) -> torch.Tensor:
    model_management.throw_exception_if_processing_interrupted()
    return guider(x, torch.full((len(x),), sigma, device=x.device), options, 0)


def _inverted(
    model: ModelPatcher,
    inversion: Inversion,
    picture: torch.Tensor,
    target: torch.Tensor,
    sigmas: torch.Tensor,
    predict: Callable[[torch.Tensor, float], torch.Tensor],
) -> Inverted:
    levels = sigmas.tolist()
    bar = utils.ProgressBar(inversion.steps * (2 + inversion.refinements))

    def counted(x: torch.Tensor, sigma: float) -> torch.Tensor:
        bar.update(1)
        return predict(x, sigma)

    pull = Pull(inversion.gamma, target * levels[0], levels[0]) if inversion.gamma else None
    states = invert(picture, levels, counted, inversion.refinements, pull)
    back, corrections = retrace(states, levels, counted, inversion.exact)
    first = torch.stack([state[0] for state in states]).cpu()
    if inversion.exact:
        corrected = model.clone()
        corrected.set_model_sampler_post_cfg_function(_corrected(sigmas[:-1], torch.stack(corrections).cpu()))
        model = corrected
    noise = states[0].cpu() / _noise_scale(model, sigmas)
    return Inverted(Trajectory(sigmas.double(), first), model, noise, sigmas, decibels(back, picture))


def _noise_scale(model: ModelPatcher, sigmas: torch.Tensor) -> float:
    """What ComfyUI multiplies noise by when a sampler starts from an empty latent at the first level."""
    sampling = sampling_of(model)
    most = bool(torch.isclose(sigmas[0], sampling.sigma_max.cpu(), rtol=1e-5) or sigmas[0] > sampling.sigma_max.cpu())
    return float(sampling.noise_scaling(sigmas[:1], torch.ones(1), torch.zeros(1), most))


def _corrected(sigmas: torch.Tensor, corrections: torch.Tensor) -> Callable[[dict[str, Any]], torch.Tensor]:
    """A post-CFG function that adds to every prediction what the step at its noise level had lost [T, B, C, ..., H, W].

    Between two levels the two mix, so that other samplers come near; Euler over the same levels comes back exactly.
    """
    way = Trajectory(sigmas.double(), corrections)

    def after(arguments: dict[str, Any]) -> torch.Tensor:
        x, sigma = arguments["denoised"], float(arguments["sigma"].max())
        high, low = way.ends
        missing = way.at(min(max(sigma, low), high)).to(x)
        if missing.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"Invert Latent's model leads back to pictures of shape {list(missing.shape[1:])} and the sampler "
                f"works on {list(x.shape[1:])}: sample at the size that was inverted."
            )
        return x + utils.repeat_to_batch_size(missing, x.shape[0])

    return after
