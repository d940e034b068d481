"""Parts of a loaded model that ComfyUI hands out by name, under the type of a bare module, with their own types."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol, cast

import torch
from comfy.latent_formats import LatentFormat
from comfy.model_patcher import ModelPatcher
from comfy.utils import set_attr


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


@contextmanager
def own_classes(model: ModelPatcher) -> Iterator[None]:
    """Inside, the modules of a MODEL have their own classes, whatever another pack makes of them while it samples.

    RES4LYF's model patchers give them others by object patches. Those stay in the network that all clones share until
    a clone without them is loaded, so that what a module is would depend on what ran last.
    """
    own = {name: kind for name, kind in model.object_patches_backup.items() if name.endswith(".__class__")}
    with ExitStack() as changed:  # puts back what has been changed, also where one of them refuses its class
        for name, kind in own.items():
            changed.callback(set_attr, model.model, name, set_attr(model.model, name, kind))
        yield


CELL = 8
CELLS = {
    "ChromaRadiance": 1, "Flux2": 16, "HunyuanImage21": 32, "HunyuanVideo15": 16, "LTXV": 32, "SC_B": 4, "SC_Prior": 42,
    "SD_X4": 4, "Wan22": 16,
}  # fmt: skip
"""Sides of a cell of latents in pixels, by the class of the format: ComfyUI 0.3.75 does not tell them."""


def cell_of(model: ModelPatcher) -> int:
    """The side in pixels of one cell of a MODEL's latents."""
    kind = latent_format_of(model)
    known = (CELLS[each.__name__] for each in type(kind).__mro__ if each.__name__ in CELLS)
    return getattr(kind, "spacial_downscale_ratio", None) or next(known, CELL)
