"""Linear conditions on the predicted picture while a sampler runs: low resolution, colour."""

from __future__ import annotations

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
from ..runs.sampler_run import SamplerRun
from ..runs.steps import KNOWN, after_steps


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
    return injector.inject(model, _Projecting(projection))


@dataclass(frozen=True)
class _Projecting(injector.Injector):
    name: ClassVar[str] = "Keep Colours or Layout"

    projection: Projection

    def start(self, sampling: Sampling) -> _Run:
        return _Run(self.projection, sampling)


class _Run(injector.Run):
    def __init__(self, projection: Projection, sampling: Sampling) -> None:
        super().__init__(sampling)
        self.projection = projection
        self.known: dict[Any, torch.Tensor] = {}
        for sentence in misfit("'latent' holds", len(projection.latent), sampling.pictures):
            sampling.notices.say(sentence)

    def sample(self, sampler: SamplerRun) -> torch.Tensor:
        with after_steps(sampler.guider, KNOWN, self._projected):
            return self.finish(sampler.sample())

    def opens(self, sigma: float) -> bool:
        return inside(sigma, self.projection.start, self.projection.end, self.sampling.to_sigma)

    def _projected(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        if not self.opens(sigma):
            return x
        projection, (height, width) = self.projection, x.shape[-2:]
        like = x.shape, x.device, x.dtype
        if like not in self.known:
            self.known[like] = self._fitted(x)
        cell = projection.cell or max(height, width)  # 0: one for all of the picture
        return projected(x, self.known[like], (max(height // cell, 1), max(width // cell, 1)), projection.strength)

    def _fitted(self, x: torch.Tensor) -> torch.Tensor:
        """The latent in the model's scale, at the size of pictures like x, of which a run has one or few."""
        with self.sampling.notices.own_errors():
            known = self.sampling.model.process_latent_in(_framed(self.projection.latent, x).to(x))
        known = utils.repeat_to_batch_size(known, x.shape[0])
        if known.shape[-2:] == x.shape[-2:]:
            return known
        return utils.common_upscale(able(known), x.shape[-1], x.shape[-2], "area", "center").to(known)


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
