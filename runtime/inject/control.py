"""A ControlNet whose residuals pass through a structure gate, for ComfyUI's own apply nodes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import torch
from comfy.controlnet import ControlBase
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import BaseModel
from comfy_execution.utils import get_executing_context

from ...engine.structure import (
    PARTS,
    NotRankable,
    PaperSchedule,
    Residuals,
    ScaledStructure,
    SlotLayout,
    SlotsDiffer,
    SlotWeights,
    StructureGate,
    gate_residuals,
    gate_stream,
    slot_layout,
    stream_layout,
)
from ...engine.texts import counted, quoted
from ...engine.windows import percent_of
from ..arch.base import uncompiled
from ..arch.registry import family_of
from ..arch.transformer import Transformer
from ..arch.unet import transformer_blocks
from ..runs.keys import schedule_in
from ..runs.notices import Notices, fresh_node
from ..runs.whose import whose

OWN = ("inner", "gate", "node", "layout", "weights_at", "uncounted", "told", "previous_controlnet", "multigpu_clones")
"""Attributes of the wrapper itself. All others, such as strength, range, hint and hooks, are the wrapped control's."""
COARSE = 0.05
"""Of the schedule: a share that comes out longer than this in whole steps is told."""


def gate_control(control: Any, gate: StructureGate) -> tuple[Any, str]:
    """The control under the gate, and nothing; or the control as it is, and why."""
    if not issubclass(type(control), ControlBase):  # every kind of it has a copy(), the base class has not
        return control, f"'control_net' is a {type(control).__name__}, not a ControlNet of ComfyUI: left as it is."
    return GatedControl(control.copy(), gate, fresh_node()), ""


def own_weights(control: Any) -> Any | None:
    """What a control of Advanced-ControlNet weighs its residuals by: its override, or the first of its keyframes'.

    Read as that pack's own classes have it; None for any other control, and for weights of its type "default".
    """
    override = getattr(control, "weights_override", None)
    keyframes = getattr(getattr(control, "timestep_keyframes", None), "keyframes", ())
    found = [override] if override is not None else [getattr(each, "control_weights", None) for each in keyframes]
    return next((each for each in found if getattr(each, "weight_type", "default") != "default"), None)


def layout_of(network: torch.nn.Module) -> SlotLayout:
    """The residual slots of a network. Raises ValueError for one that takes no residuals, or of no known family."""
    network = uncompiled(network)
    if isinstance(network, UNetModel):
        return slot_layout(len(network.input_blocks), [layer for layer, _ in transformer_blocks(network)])
    family = family_of(network)
    if not isinstance(family, Transformer) or not family.control:
        raise ValueError(
            f"'model' is a {type(network).__name__}, which takes no ControlNet's residuals: connect SD1.5, SDXL, "
            "SD3.5, Flux or Qwen-Image. Control that patches the model (DiffSynth, Z-Image-Fun) is not gated."
        )
    return stream_layout([(part, len(getattr(network, blocks))) for part, blocks in family.control])


def gated_by(residuals: Residuals, weights: SlotWeights, layout: SlotLayout) -> Residuals:
    """Residuals under the weights of a model's slots, in fresh lists."""
    return gate_stream(residuals, weights, layout) if layout.parts else gate_residuals(residuals, weights)


class GatedControl(ControlBase):
    """Wraps any ControlBase (ControlNet, Control-LoRA, T2I adapter, another pack's) and stands in its place in a chain.

    The wrapped control never has a predecessor, so what it returns is its own; earlier controls are not gated. Reading
    and writing of its settings goes through to it. The gate needs the model's layout, known from `pre_run` on; so is
    `uncounted`, percent to sigma, until the run's steps have been counted.
    """

    def __init__(self, inner: ControlBase, gate: StructureGate, node: str | None = None) -> None:
        super().__init__()
        chain = {name: value for name, value in vars(self).items() if name in OWN}
        vars(self).clear()  # the settings that the base class has just made are the wrapped control's to hold
        vars(self).update(chain, inner=inner, gate=gate, node=node, told=set())
        self.layout, self.weights_at, self.uncounted = None, None, None

    def __getattr__(self, name: str) -> Any:
        if name in OWN or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OWN or "inner" not in vars(self):
            object.__setattr__(self, name, value)
        else:
            setattr(self.inner, name, value)

    def copy(self) -> GatedControl:
        return GatedControl(self.inner.copy(), self.gate, self.node)

    def deepclone_multigpu(self, load_device: torch.device, autoregister: bool = False) -> GatedControl:
        """For newer ComfyUI, which runs one copy on each device."""
        clone = GatedControl(self.inner.deepclone_multigpu(load_device), self.gate, self.node)
        if autoregister:
            self.multigpu_clones[load_device] = clone
        return clone

    def set_cond_hint(self, *args: Any, **kwargs: Any) -> GatedControl:
        self.inner.set_cond_hint(*args, **kwargs)
        return self

    def pre_run(self, model: BaseModel, percent_to_timestep_function: Callable[[float], float]) -> None:
        self.inner.pre_run(model, percent_to_timestep_function)
        self.weights_at = self._resolved(model.diffusion_model, percent_to_timestep_function)
        if (own := own_weights(self.inner)) is not None and self.weights_at is not None:
            self._say(
                f"The ControlNet has weights by residual of its own ({whose(own)}), and they act too: each residual is "
                "multiplied by both. Take those off, or bypass this node."
            )
        if self.previous_controlnet is not None:
            self.previous_controlnet.pre_run(model, percent_to_timestep_function)

    def _resolved(
        self, network: torch.nn.Module, to_sigma: Callable[[float], float]
    ) -> Callable[[float], SlotWeights] | None:
        """Weights by sigma; None where residuals mean something else and the control passes through ungated."""
        try:
            self.layout = layout = layout_of(network)
        except ValueError:
            self._tell(
                "knows the residuals of SD1.5, SDXL, SD3.5, Flux and Qwen-Image, and this model is a "
                f"{type(network).__name__}"
            )
            return None
        self.uncounted = to_sigma = cache(to_sigma)
        weights_at = partial(self._weights, layout, to_sigma=to_sigma)
        note = "Gate ControlNet: a transformer has no middle residual, so paper keeps none after its share."
        if layout.parts and _paper(self.gate) and note not in self.told:
            logging.info(note)
            self.told.add(note)
        _check(weights_at, float(to_sigma(0.5)))
        return weights_at

    def _weights(self, layout: SlotLayout, sigma: float, to_sigma: Callable[[float], float]) -> SlotWeights:
        weights = self.gate.weights(sigma, layout, to_sigma)
        return weights._replace(middle=0.0) if layout.parts else weights

    def get_control(
        self,
        x_noisy: torch.Tensor,
        t: torch.Tensor,
        cond: dict[str, Any],
        batched_number: int,
        *args: Any,
        **kwargs: Any,
    ) -> Residuals | None:
        """Residuals of the chain up to here, in lists made for this call; None when nothing acts at this sigma."""
        if self.weights_at is None or self.layout is None:
            return self._ungated(x_noisy, t, cond, batched_number, *args, **kwargs)
        call = (x_noisy, t, cond, batched_number, *args)
        self._count_steps(*args[:1], **kwargs)
        weights = self.weights_at(float(t[0]))
        before = None if self.previous_controlnet is None else self.previous_controlnet.get_control(*call, **kwargs)
        own = self.inner.get_control(*call, **kwargs) if any(weights.skips) or weights.middle else None
        if own is None:
            return before
        if not set(own) <= set(PARTS):
            self._tell(f"does not know residuals named {', '.join(sorted(set(own) - set(PARTS)))}")
            self.weights_at = None
            return self._ungated(*call, **kwargs)
        gated = gated_by(own, weights, self.layout)
        return gated if before is None else ControlBase().control_merge(gated, before, None)

    def _count_steps(self, transformer_options: Mapping[str, Any] | None = None, **others: Any) -> None:
        """At the first call of a run: what a share of the schedule comes to in its steps."""
        to_sigma, self.uncounted = self.uncounted, None
        paper, sigmas = _paper(self.gate), schedule_in(transformer_options)
        if to_sigma is not None and paper is not None and sigmas is not None:
            for sentence in _in_whole_steps(paper, sigmas, to_sigma):
                self._say(sentence)

    def _ungated(self, *args: Any, **kwargs: Any) -> Residuals | None:
        """The wrapped control at our place in the chain, merging with its predecessor in its own way."""
        self.inner.previous_controlnet = self.previous_controlnet
        try:
            return self.inner.get_control(*args, **kwargs)
        finally:
            self.inner.previous_controlnet = None

    def _tell(self, why: str) -> None:
        """Say that the gate does nothing."""
        self._say(f"It {why}: this control acts ungated.")

    def _say(self, sentence: str) -> None:
        """Once a run, which prepares its controls once for each prompt. One that was cancelled has not cleaned up."""
        context = get_executing_context()
        of_run = "" if context is None else context.prompt_id, sentence
        if of_run not in self.told:
            Notices("Gate ControlNet", self.node).say(sentence)
        self.told.add(of_run)

    def cleanup(self) -> None:
        self.layout, self.weights_at, self.uncounted, self.told = None, None, None, set()
        try:
            self.inner.cleanup()
        finally:
            super().cleanup()

    def get_models(self) -> list[Any]:
        return super().get_models() + self.inner.get_models()

    def inference_memory_requirements(self, dtype: torch.dtype) -> float:
        return super().inference_memory_requirements(dtype) + self.inner.inference_memory_requirements(dtype)


def _check(weights_at: Callable[[float], SlotWeights], sigma: float) -> None:
    """Refuse a gate that was made for another model, before the first step and in the words of Gate ControlNet."""
    try:
        weights_at(sigma)
    except SlotsDiffer as error:
        raise ValueError(
            f"'weights' has {error.found} numbers besides the middle one and this model has {error.slots} residual "
            f"slots: write {error.slots}, such as 1x{error.slots} ({quoted(error.text.strip())})."
        ) from error
    except NotRankable as error:
        raise ValueError(f"'policy' ranked does not fit here, as {error.why}: choose paper or weights.") from error


def _paper(gate: StructureGate) -> PaperSchedule | None:
    """The schedule by which a gate acts, if it acts by one."""
    if isinstance(gate, ScaledStructure):
        return _paper(gate.gate) if gate.strength else None
    return gate if isinstance(gate, PaperSchedule) else None


def _in_whole_steps(paper: PaperSchedule, sigmas: torch.Tensor, to_sigma: Callable[[float], float]) -> Iterator[str]:
    """What a share of the schedule comes to in the steps of a run [T + 1] to the picture, where that is much longer."""
    levels, kept = sigmas[:-1].tolist(), paper.kept
    if not levels or not 0 < kept < 1 or float(sigmas[-1]) > 0 or bool((sigmas.diff() > 0).any()):
        return
    count, end = paper.in_steps(levels, to_sigma)
    if not count or end - kept <= COARSE:
        return
    if count == len(levels):
        yield (
            f"'structure amount' {kept:g} is the whole ControlNet in this run, as every step begins in that share of "
            "the schedule: take more steps, or write 0 for the layout alone."
        )
        return
    start = percent_of(levels[count - 1], to_sigma)
    yield (
        f"'structure amount' {kept:g} acts as {end:g} in this run, {count} of {counted(len(levels), 'step')}: every "
        f"amount above {start:g} and {'up to' if end < 1 else 'below'} {end:g} does. Take more steps for one between."
    )
