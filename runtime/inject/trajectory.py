"""Records the way that a picture goes through the noise levels while any sampler paints it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ...engine.trajectory import ROUNDING, Trajectory
from ..attribution.measured import digest
from ..runs.model_call import KEY
from ..runs.sampler_run import SamplerRun
from ..runs.steps import OUTSIDE, around_steps

PLACE = f"{KEY}_trajectory"
KEPT = 8
"""Runs that are remembered: at SDXL's size each takes about 13 MB in 50 steps."""


class Trajectories:
    """The latest runs of one recorder, each kept by the latent that it returned: a cached one finds its own again."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, Trajectory] = OrderedDict()

    def __deepcopy__(self, memo: dict[int, Any]) -> Trajectories:
        return self

    def keep(self, latent: torch.Tensor, run: Trajectory) -> None:
        key = digest(latent)
        self._runs[key] = run
        self._runs.move_to_end(key)
        while len(self._runs) > KEPT:
            self._runs.popitem(last=False)

    def leading_to(self, x: torch.Tensor, sigma: float) -> Trajectory | None:
        """The way on which another sampler came to a state [C, ..., h, w] at a noise level; None if none ends there."""
        for run in reversed(self._runs.values()):
            end, low = run.states[-1], run.ends[1]
            if abs(low - sigma) <= ROUNDING * sigma and end.shape == x.shape:
                if bool((end - x).abs().max() <= ROUNDING * end.abs().max()):  # handed on in half precision, perhaps
                    return run
        return None

    def of(self, latent: torch.Tensor | None) -> Trajectory:
        """The way to the first picture of a sampler's latent [B, C, ..., h, w]. Raises ValueError when not known."""
        run = None if latent is None else self._runs.get(digest(latent))
        if run is None:
            raise ValueError(
                "'latent' is not what a sampler made with this Record Trajectory: connect the sampler's own output, "
                f"before any node that changes it. Only the last {KEPT} runs are remembered; for an older one change "
                "the seed and run again."
            )
        return run


def record_trajectory(model: ModelPatcher, trajectories: Trajectories) -> ModelPatcher:
    """A clone of the model that keeps the way of the first picture of every run; it samples the same bits."""
    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, PLACE, partial(_around_run, trajectories))
    return patched


def _around_run(
    trajectories: Trajectories, executor: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
) -> torch.Tensor:
    """SAMPLER_SAMPLE: the state at the last call of every noise level, and the picture at the end.

    A run that goes on with what another one has left goes on with its way. A sampler of second order comes to a level
    twice: where it guesses that the picture will be, and where it is.
    """
    run = SamplerRun.of(executor, *args, **kwargs)
    seen = _before(trajectories, run)
    with around_steps(run.guider, OUTSIDE, partial(_around_step, seen, run.noise.shape)):
        out = run.sample()
    model, last = run.guider.inner_model, run.sigmas[-1:]
    end = model.model_sampling.noise_scaling(last.reshape([1] * out.ndim), torch.zeros_like(out), out)
    seen[float(last)] = _kept(end)
    trajectories.keep(model.process_latent_out(out.to(torch.float32)), Trajectory.of(seen))
    return out


def _before(trajectories: Trajectories, run: SamplerRun) -> dict[float, torch.Tensor]:
    """The states before a run without noise of its own, as far as they were recorded."""
    if bool(run.noise.any()):
        return {}
    first = run.sigmas[:1]
    sampling = run.guider.inner_model.model_sampling
    x = sampling.noise_scaling(first.reshape([1] * run.noise.ndim), run.noise, run.latent_image)
    way = trajectories.leading_to(_kept(x), float(first))
    return {} if way is None else dict(zip(way.sigmas[:-1].tolist(), way.states[:-1], strict=True))


def _around_step(
    seen: dict[float, torch.Tensor],
    size: torch.Size,
    executor: Callable[..., torch.Tensor],
    x: torch.Tensor,
    sigma: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    if x.shape == size:  # some samplers also look at a smaller or a larger picture
        seen[float(sigma[0])] = _kept(x)
    return executor(x, sigma, *args, **kwargs)


def _kept(x: torch.Tensor) -> torch.Tensor:
    """The first picture, in memory of its own outside of the GPU."""
    return x[0].detach().to("cpu", torch.float32, copy=True)
