"""Metadata by noise level: SDXL's sizes and crops, Flux's guidance, and the pooled text, apart from the prompt."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy import model_base
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ...engine.conditioning import between, between_sizes, percent_of, power_cosine, sinusoid_value
from ..runs.model_call import KEY, ModelCall
from ..runs.notices import Notices, fresh_node
from ..runs.sampler_run import SamplerRun

BLOCK = 256
"""SDXL's vector: pooled text, then an embedding of 256 for each of six numbers, two of a group but for the crop; its
refiner's: one for each of five."""
NUMBERS = ("original", "original", "top", "left", "target", "target")
OF_REFINER = ("original", "original", "top", "left", "aesthetic score")
CROPS = ("top", "left")
LITTLE = 0.1
"""Part of a change: a run in which no more of it comes in is told."""


@dataclass(frozen=True)
class Change:
    """What one group of metadata becomes late in the schedule, and how late: the power of `power_cosine`."""

    value: float
    power: float


@dataclass(frozen=True)
class Metadata:
    """What changes, as factors on what the prompt's conditioning says (1 leaves a group alone) or pixels added to it.

    `original` and `target` size, `guidance` (Flux) and `pooled` text are factors; crop `top` and `left` are pixels.
    `by_value` interpolates the numbers, which stay such as the model met in training; else their embeddings.
    """

    original: Change = Change(1.0, 3.0)
    target: Change = Change(1.0, 0.0)
    top: Change = Change(0.0, 1.0)
    left: Change = Change(0.0, 1.0)
    guidance: Change = Change(1.0, 0.0)
    pooled: Change = Change(1.0, 1.0)
    by_value: bool = True

    @property
    def changed(self) -> tuple[str, ...]:
        """The groups that do not stay as they are."""
        groups = ("original", "target", "top", "left", "guidance", "pooled")
        return tuple(name for name in groups if getattr(self, name).value != (0.0 if name in CROPS else 1.0))


class NoSuchMetadata(ValueError):
    """The model takes none of a group that was asked for; `group` names it, `model` is the model's class."""

    def __init__(self, group: str, model: str) -> None:
        super().__init__(f"{model} takes no '{group}'")
        self.group, self.model = group, model


def schedule_metadata(model: ModelPatcher, metadata: Metadata) -> ModelPatcher:
    """A clone of the model whose metadata changes over the schedule; with nothing to change it samples the same bits.

    Raises NoSuchMetadata for a group that the model does not take.
    """
    known = groups_of(model.model)
    for group in metadata.changed:
        if group not in known:
            raise NoSuchMetadata(group, type(model.model).__name__)
    patched = model.clone()
    if metadata.changed:
        around = functools.partial(_around_run, metadata, fresh_node())
        patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, f"{KEY}_metadata", around)
    return patched


def _around_run(
    metadata: Metadata, node: str | None, executor: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
) -> torch.Tensor:
    """SAMPLER_SAMPLE: the schedule is that of the sampling that this run has."""
    run, notices = SamplerRun.of(executor, *args, **kwargs), Notices("Size and Crop by Noise Level", node)
    to_sigma = functools.cache(run.guider.inner_model.model_sampling.percent_to_sigma)
    reached: list[float] = []
    out = run.wrapped(WrappersMP.APPLY_MODEL, functools.partial(_around_call, metadata, to_sigma, reached)).sample()
    if float(run.sigmas[-1]) == 0:  # a stage leaves the late part to others
        for sentence in _hardly_changed(metadata, max(reached, default=1.0)):
            notices.say(sentence)
    return out


def _hardly_changed(metadata: Metadata, last: float) -> Iterator[str]:
    """What enters so late that a run whose last call was at a percent of `last` has hardly seen it."""
    for group in metadata.changed:
        share = power_cosine(last, getattr(metadata, group).power)
        if share < LITTLE:
            scale, curve = (f"crop_{group}", "crop_curve") if group in CROPS else (f"{group}_scale", f"{group}_curve")
            yield (
                f"Only {share:.0%} of '{scale}' took effect, as the last step of this run begins at {last:.2g} of the "
                f"schedule: lower '{curve}' (0 acts all the time), or take more steps."
            )


def groups_of(model: model_base.BaseModel) -> tuple[str, ...]:
    """The groups of metadata that a model takes."""
    if numbers := _numbers_of(model):
        return *(name for name in ("original", "target", "top", "left") if name in numbers), "pooled"
    of_flux = getattr(model.diffusion_model, "params", None)  # and of its kin, such as HunyuanVideo
    guided = ("guidance",) if getattr(of_flux, "guidance_embed", False) else ()
    width = model.adm_channels if isinstance(model, model_base.SD3) else getattr(of_flux, "vec_in_dim", None)
    return guided + (("pooled",) if width else ())


def _numbers_of(model: model_base.BaseModel) -> tuple[str, ...]:
    """What the numbers behind a model's pooled text are."""
    if isinstance(model, model_base.SDXLRefiner):
        return OF_REFINER
    return NUMBERS if isinstance(model, model_base.SDXL) else ()


def _around_call(
    metadata: Metadata,
    to_sigma: Callable[[float], float],
    reached: list[float],
    executor: Callable[..., torch.Tensor],
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """APPLY_MODEL: the vectors of this call's noise level."""
    call = ModelCall.of(*args, **kwargs)
    percent = percent_of(float(call.sigma.max()), to_sigma)
    reached.append(percent)
    conds = dict(call.conds)
    if "guidance" in metadata.changed and conds.get("guidance") is not None:
        change = metadata.guidance
        conds["guidance"] = conds["guidance"] * change.value ** power_cosine(percent, change.power)
    if conds.get("y") is not None:
        conds["y"] = _vector(conds["y"], metadata, percent, executor.class_obj)
    return replace(call, conds=conds).run(executor)


def _vector(y: torch.Tensor, metadata: Metadata, percent: float, model: model_base.BaseModel) -> torch.Tensor:
    """The vector [rows, pooled + 256 * numbers] (SDXL, its refiner) or [rows, pooled] at a percent of the schedule."""
    numbers = _numbers_of(model)
    if not numbers:
        return _pooled(y, metadata, percent)
    width = y.shape[1] - len(numbers) * BLOCK  # 1280 in SDXL itself
    blocks = zip(y[:, width:].split(BLOCK, 1), numbers, strict=True)
    sizes = [_number(block, group, metadata, percent, model) for block, group in blocks]
    return torch.cat((_pooled(y[:, :width], metadata, percent), *sizes), 1)


def _pooled(pooled: torch.Tensor, metadata: Metadata, percent: float) -> torch.Tensor:
    change = metadata.pooled
    if "pooled" not in metadata.changed:
        return pooled
    return pooled * (1 + (change.value - 1) * power_cosine(percent, change.power))


def _number(block: torch.Tensor, group: str, metadata: Metadata, percent: float, model: Any) -> torch.Tensor:
    """One number's embedding [rows, 256] at a percent of the schedule."""
    if group not in metadata.changed:
        return block
    change: Change = getattr(metadata, group)
    gamma, early, is_crop = power_cosine(percent, change.power), sinusoid_value(block), group in CROPS
    late = (early + change.value if is_crop else early * change.value).round()
    if not metadata.by_value:
        return between(block, model.embedder(late).to(block), gamma)
    number = (between if is_crop else between_sizes)(early, late, gamma)
    return model.embedder(number.round()).to(block)  # training has shown whole pixels only
