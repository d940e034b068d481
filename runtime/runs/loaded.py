"""Parts of a loaded model that ComfyUI hands out by name, under the type of a bare module, with their own types."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from comfy.latent_formats import LatentFormat
from comfy.model_patcher import ModelPatcher


class ModelSampling(Protocol):
    """What is used of a model's noise schedule."""

    sigma_max: torch.Tensor
    sigma_min: torch.Tensor

    def percent_to_sigma(self, percent: float) -> float: ...

    def noise_scaling(
        self, sigma: torch.Tensor, noise: torch.Tensor, latent_image: torch.Tensor, max_denoise: bool = False
    ) -> torch.Tensor: ...


def sampling_of(model: ModelPatcher) -> ModelSampling:
    """The noise schedule of a MODEL, with what other nodes have put in its place."""
    return cast(ModelSampling, model.get_model_object("model_sampling"))


def latent_format_of(model: ModelPatcher) -> LatentFormat:
    """Channels and axes of a MODEL's latents."""
    return cast(LatentFormat, model.get_model_object("latent_format"))
