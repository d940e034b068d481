"""Takes a sampler's place, so that ComfyUI prepares and cleans up everything; it changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider

from ..arch.base import uncompiled
from .caches import STEPS, unavoidable, without_caches
from .model_call import on_one_card

Conditioning = Sequence[Sequence[Any]]
"""ComfyUI's CONDITIONING: for each prompt its text [1, tokens, width] and everything else about it, by name."""

Look = Callable[[CFGGuider, torch.Tensor, torch.Tensor, dict[str, Any]], None]


def look_at(
    model: ModelPatcher,
    conds: dict[str, Conditioning],
    noise: torch.Tensor,
    sigmas: torch.Tensor,
    seed: int,
    look: Look,
) -> None:
    """Load a model as for sampling from `noise` [B, C, h, w] and call `look(guider, noise, sigmas, model_options)`.

    Noise and sigmas [T] come on the model's device. LoRA, ControlNet, hooks and areas of `conds` act.
    """
    guider = CFGGuider(model)
    guider.inner_set_conds(conds)
    guider.sample(noise, torch.zeros_like(noise), _Probe(look), sigmas, disable_pbar=True, seed=seed)


def noise_for(latents: torch.Tensor, seed: int) -> torch.Tensor:
    """The noise that a sampler draws for latents from `seed`, of their shape."""
    return cast(torch.Tensor, comfy.sample.prepare_noise(latents, seed))  # nested for nested latents only


def finite(predicted: torch.Tensor, sigma: float) -> torch.Tensor:
    """A prediction at a noise level as it is. Raises ValueError where it holds NaN or infinity."""
    if not bool(torch.isfinite(predicted).all()):
        raise ValueError(
            f"'model' predicts NaN or infinite values at sigma {sigma:.2f}: look for NaN in the latent, 'positive' or "
            "a LoRA, or start ComfyUI in a higher precision."
        )
    return predicted


class _Probe:
    def __init__(self, look: Look) -> None:
        self.look = look

    def sample(
        self,
        guider: CFGGuider,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: torch.Tensor,
        latent_image: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        for sentence in unavoidable(uncompiled(guider.inner_model.diffusion_model)):
            logging.warning(sentence)
        guider.model_options = without_caches(guider.model_options, STEPS)  # whose steps it asks about; ours alone
        self.look(guider, noise, sigmas, on_one_card(without_caches(extra_args["model_options"])))
        return latent_image
