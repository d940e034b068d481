"""Measures what each ControlNet residual changes in a model's prediction, by leaving them out one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ...engine.ablation import SlotAblation, relative_change
from ...engine.structure import SlotLayout, SlotWeights
from ..inject.control import gated_by, layout_of
from ..inject.reference import with_frames
from ..runs.loaded import own_classes
from ..runs.model_call import ModelCall, with_wrapper
from ..runs.probe import Conditioning, finite, look_at, noise_for

OnPass = Callable[[], None]


def ablate_slots(
    model: ModelPatcher,
    latents: torch.Tensor,
    positive: Conditioning,
    sigmas: torch.Tensor,
    seed: int,
    on_pass: OnPass = lambda: None,
) -> SlotAblation:
    """Ablation of every residual slot at noise levels `sigmas` [T], on `latents` [B, C, (1,) h, w] from the VAE.

    `positive` carries the ControlNets; all of a chain count together. Slots + 3 calls of the model a level, `on_pass`
    after each. Raises ValueError when the model takes no residuals or no ControlNet is applied.
    """
    with own_classes(model):
        layout = layout_of(model.model.diffusion_model)
    if not any("control" in options for _, options in positive):
        raise ValueError("'positive' carries no ControlNet: connect the output of Apply ControlNet.")
    latents = with_frames(model, latents)
    ablating = _Ablating(latents, layout, on_pass)
    look_at(model, {"positive": positive}, noise_for(latents, seed), sigmas, seed, ablating)
    return SlotAblation(sigmas.double(), torch.tensor(ablating.change, dtype=torch.float64))


def leaving_out(slots: int) -> list[SlotWeights]:
    """Nothing, everything, then each slot by itself, the middle one last."""
    masks = [[1.0] * (slots + 1), [0.0] * (slots + 1)]
    masks += [[float(place != gone) for place in range(slots + 1)] for gone in range(slots + 1)]
    return [SlotWeights(tuple(mask[:-1]), mask[-1]) for mask in masks]


class _Ablating:
    """What `ablate_slots` looks at: every slot left out, one noise level after another."""

    def __init__(self, latents: torch.Tensor, layout: SlotLayout, on_pass: OnPass) -> None:
        self.latents, self.layout, self.on_pass = latents, layout, on_pass
        self.variants = leaving_out(layout.slots)
        self.change: list[list[float]] = []

    def __call__(
        self, guider: comfy.samplers.CFGGuider, noise: torch.Tensor, sigmas: torch.Tensor, model_options: dict[str, Any]
    ) -> None:
        base = guider.inner_model
        images = base.process_latent_in(self.latents.to(noise))
        for sigma in sigmas:
            noisy = base.model_sampling.noise_scaling(sigma[None], noise, images)
            full, none, *without = (self._predicted(guider, noisy, sigma, model_options, v) for v in self.variants)
            self.change.append([relative_change(full, one, none) for one in without])

    def _predicted(
        self,
        guider: comfy.samplers.CFGGuider,
        noisy: torch.Tensor,
        sigma: torch.Tensor,
        model_options: dict[str, Any],
        weights: SlotWeights,
    ) -> torch.Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        options = with_wrapper(model_options, WrappersMP.APPLY_MODEL, partial(_with_residuals, weights, self.layout))
        conds, sigmas = [guider.conds["positive"]], sigma.expand(len(noisy))
        (found,) = comfy.samplers.calc_cond_batch(guider.inner_model, conds, noisy, sigmas, options)
        self.on_pass()
        return finite(found, float(sigma))


def _with_residuals(
    weights: SlotWeights, layout: SlotLayout, executor: Callable[..., Any], *args: Any, **kwargs: Any
) -> torch.Tensor:
    """APPLY_MODEL: only the residuals of weight 1 reach the network."""
    call = ModelCall.of(*args, **kwargs)
    if call.control is not None:
        call = replace(call, control=gated_by(call.control, weights, layout))
    return call.run(executor)
