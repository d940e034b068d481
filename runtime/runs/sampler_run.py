"""One run of a sampler inside ComfyUI's SAMPLER_SAMPLE wrappers: as a whole, or in parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy.samplers import CFGGuider

from .model_call import with_wrapper


@dataclass(frozen=True)
class SamplerRun:
    """The arguments of a sampler's run: noise levels [T + 1], noise and latent [B, C, ..., h, w].

    Arguments unknown to us travel in `rest` and `more`.
    """

    executor: Callable[..., torch.Tensor]
    guider: CFGGuider
    sigmas: torch.Tensor
    extra_args: dict[str, Any]
    callback: Callable[..., Any] | None
    noise: torch.Tensor
    latent_image: torch.Tensor
    denoise_mask: torch.Tensor | None = None
    rest: tuple[Any, ...] = ()
    more: dict[str, Any] | None = None

    @classmethod
    def of(cls, executor: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> SamplerRun:
        """From what a SAMPLER_SAMPLE wrapper receives."""
        mask = (kwargs.pop("denoise_mask"),) if "denoise_mask" in kwargs else args[6:7]
        return cls(executor, *args[:6], *mask, rest=args[7:], more=kwargs)

    @property
    def options(self) -> dict[str, Any]:
        """The run's own copy of model_options."""
        return self.extra_args["model_options"]

    def with_options(self, options: dict[str, Any]) -> SamplerRun:
        return replace(self, extra_args={**self.extra_args, "model_options": options})

    def wrapped(self, kind: str, wrapper: Callable[..., Any]) -> SamplerRun:
        """The run with one more wrapper, which ends with it."""
        return self.with_options(with_wrapper(self.options, kind, wrapper))

    def sample(self) -> torch.Tensor:
        return self.executor(
            self.guider, self.sigmas, self.extra_args, self.callback, self.noise, self.latent_image,
            self.denoise_mask, *self.rest, **self.more or {},
        )  # fmt: skip

    def part(self, number: int, start: int, end: int, noise: torch.Tensor, latent: torch.Tensor) -> SamplerRun:
        """Steps `start` to `end` of the run, its part `number`, from another noise and latent."""
        return replace(
            self,
            sigmas=self.sigmas[start : end + 1].clone(),  # uni_pc writes into its schedule
            extra_args=_reseeded(self.extra_args, number),
            callback=self._shifted(start),
            noise=noise,
            latent_image=latent,
        )

    def _shifted(self, start: int) -> Callable[..., Any] | None:
        """The progress callback, counting steps of the whole run."""
        callback, steps = self.callback, len(self.sigmas) - 1
        if callback is None:
            return None
        return lambda step, denoised, x, total: callback(start + step, denoised, x, steps)


def _reseeded(extra_args: dict[str, Any], part: int) -> dict[str, Any]:
    """Samplers that draw noise would draw the first part's again."""
    seed = extra_args.get("seed")
    return {**extra_args} if seed is None or part == 0 else {**extra_args, "seed": seed + part}
