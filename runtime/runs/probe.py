"""Stands where a sampler stands, so that ComfyUI prepares and cleans up everything; it only looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider

Conditioning = list[list[Any]]
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
        self.look(guider, noise, sigmas, extra_args["model_options"])
        return latent_image
