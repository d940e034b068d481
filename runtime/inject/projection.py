"""Linear conditions on the predicted picture while a sampler runs: low resolution, colour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from comfy import utils
from comfy.model_patcher import ModelPatcher

from ...engine.devices import able
from ...engine.gates import inside
from ...engine.projection import projected
from ..runs import injector
from ..runs.injector import Sampling
from ..runs.rows import misfit


@dataclass(frozen=True)
class Projection:
    """A latent [B, C, (F,) h, w] as VAE Encode gives it, and what is known of it.

    That are means over cells of `cell` latent cells; `cell` 0 knows the mean of the whole picture only, its colour.
    Acts from `start` to `end` percent.
    """

    latent: torch.Tensor
    cell: int
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0


def project(model: ModelPatcher, projection: Projection) -> ModelPatcher:
    """A clone of the model whose predicted pictures agree with what is known; strength 0 samples the same bits."""
    if not projection.strength:
        return model.clone()
    patched = injector.inject(model, _Projecting(projection))
    patched.set_model_sampler_post_cfg_function(_after_cfg(projection))
    return patched


@dataclass(frozen=True)
class _Projecting(injector.Injector):
    """Tells what of a projection does not go with a run; the function after CFG knows no node to tell it under."""

    name: ClassVar[str] = "Keep Colours or Layout"

    projection: Projection

    def start(self, sampling: Sampling) -> _Run:
        return _Run(self.projection, sampling)


class _Run(injector.Run):
    def __init__(self, projection: Projection, sampling: Sampling) -> None:
        super().__init__(sampling)
        self.projection = projection
        for sentence in misfit("'latent' holds", len(projection.latent), sampling.pictures):
            sampling.notices.say(sentence)

    def opens(self, sigma: float) -> bool:
        return inside(sigma, self.projection.start, self.projection.end, self.sampling.to_sigma)


def _after_cfg(projection: Projection) -> Callable[[dict[str, Any]], torch.Tensor]:
    def after(arguments: dict[str, Any]) -> torch.Tensor:
        x, base = arguments["denoised"], arguments["model"]
        sigma = float(arguments["sigma"].max())
        if not inside(sigma, projection.start, projection.end, base.model_sampling.percent_to_sigma):
            return x
        size = x.shape[-2:]
        known = base.process_latent_in(_framed(projection.latent, x).to(x))
        known = utils.repeat_to_batch_size(known, x.shape[0])
        if known.shape[-2:] != size:
            known = utils.common_upscale(able(known), size[1], size[0], "area", "center").to(known)
        grid = tuple(max(side // projection.cell, 1) for side in size) if projection.cell else (1, 1)
        return projected(x, known, grid, projection.strength)

    return after


def _framed(latent: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The latent with the axis of frames that x has, if it does. Raises ValueError unless it has one or as many."""
    if latent.ndim < x.ndim:
        latent = latent.unsqueeze(2)
    if latent.ndim == 5 and latent.shape[2] not in (1, x.shape[2]):
        raise ValueError(
            f"'latent' holds {latent.shape[2]} frames and the sampler works on {x.shape[2]}: connect one picture, "
            "which then holds for all, or as many frames."
        )
    return latent
