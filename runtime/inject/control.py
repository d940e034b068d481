"""A ControlNet whose residuals pass through a structure gate, for ComfyUI's own apply nodes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from comfy.controlnet import ControlBase
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import BaseModel

from ...engine.structure import PARTS, Residuals, SlotLayout, SlotWeights, StructureGate, gate_residuals, slot_layout
from ..arch.unet import transformer_blocks

OWN = ("inner", "gate", "weights_at", "told", "previous_controlnet", "multigpu_clones")
"""Attributes of the wrapper itself. All others, such as strength, range, hint and hooks, are the wrapped control's."""


def gate_control(control: Any, gate: StructureGate) -> tuple[Any, str]:
    """The control under the gate, and nothing; or the control as it is, and why."""
    if not isinstance(control, ControlBase):
        return control, f"'control_net' is a {type(control).__name__}, no ControlNet of ComfyUI's kind: left as it is."
    return GatedControl(control.copy(), gate), ""


def layout_of(unet: UNetModel) -> SlotLayout:
    """The residual slots of a UNet."""
    return slot_layout(len(unet.input_blocks), [layer for layer, _ in transformer_blocks(unet)])


class GatedControl(ControlBase):
    """Wraps any ControlBase (ControlNet, Control-LoRA, T2I adapter, another pack's) and stands in its place in a chain.

    The wrapped control never has a predecessor, so what it returns is its own; earlier controls are not gated. Reading
    and writing of its settings goes through to it. The gate needs the model's layout, known from `pre_run` on.
    """

    def __init__(self, inner: ControlBase, gate: StructureGate) -> None:
        super().__init__()
        chain = {name: value for name, value in vars(self).items() if name in OWN}
        vars(self).clear()  # the settings that the base class has just made are the wrapped control's to hold
        vars(self).update(chain, inner=inner, gate=gate, weights_at=None, told=False)

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
        return GatedControl(self.inner.copy(), self.gate)

    def deepclone_multigpu(self, load_device: torch.device, autoregister: bool = False) -> GatedControl:
        """For newer ComfyUI, which runs one copy on each device."""
        clone = GatedControl(self.inner.deepclone_multigpu(load_device), self.gate)
        if autoregister:
            self.multigpu_clones[load_device] = clone
        return clone

    def set_cond_hint(self, *args: Any, **kwargs: Any) -> GatedControl:
        self.inner.set_cond_hint(*args, **kwargs)
        return self

    def pre_run(self, model: BaseModel, percent_to_timestep_function: Callable[[float], float]) -> None:
        self.inner.pre_run(model, percent_to_timestep_function)
        self.weights_at = self._resolved(model.diffusion_model, percent_to_timestep_function)
        if self.previous_controlnet is not None:
            self.previous_controlnet.pre_run(model, percent_to_timestep_function)

    def _resolved(
        self, unet: torch.nn.Module, to_sigma: Callable[[float], float]
    ) -> Callable[[float], SlotWeights] | None:
        """Weights by sigma; None where residuals mean something else and the control passes through ungated."""
        if not isinstance(unet, UNetModel):
            self._tell(
                f"knows the residuals of UNets such as SD1.5 and SDXL, and this model is a {type(unet).__name__}"
            )
            return None
        weights_at = partial(self.gate.weights, layout=layout_of(unet), to_sigma=cache(to_sigma))
        weights_at(float(to_sigma(0.5)))  # a gate made for another model is refused before the first step
        return weights_at

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
        if self.weights_at is None:
            return self._ungated(x_noisy, t, cond, batched_number, *args, **kwargs)
        call = (x_noisy, t, cond, batched_number, *args)
        weights = self.weights_at(float(t[0]))
        before = None if self.previous_controlnet is None else self.previous_controlnet.get_control(*call, **kwargs)
        own = self.inner.get_control(*call, **kwargs) if any(weights.skips) or weights.middle else None
        if own is None:
            return before
        if not set(own) <= set(PARTS):
            self._tell(f"does not know residuals named {', '.join(sorted(set(own) - set(PARTS)))}")
            self.weights_at = None
            return self._ungated(*call, **kwargs)
        gated = gate_residuals(own, weights)
        return gated if before is None else ControlBase().control_merge(gated, before, None)

    def _ungated(self, *args: Any, **kwargs: Any) -> Residuals | None:
        """The wrapped control at our place in the chain, merging with its predecessor in its own way."""
        self.inner.previous_controlnet = self.previous_controlnet
        try:
            return self.inner.get_control(*args, **kwargs)
        finally:
            self.inner.previous_controlnet = None

    def _tell(self, why: str) -> None:
        """Say once a run, though a run prepares its controls once for each prompt, that the gate does nothing."""
        if not self.told:
            logging.warning("Gate ControlNet %s: this control acts ungated.", why)
        self.told = True

    def cleanup(self) -> None:
        self.weights_at, self.told = None, False
        try:
            self.inner.cleanup()
        finally:
            super().cleanup()

    def get_models(self) -> list[Any]:
        return super().get_models() + self.inner.get_models()

    def inference_memory_requirements(self, dtype: torch.dtype) -> float:
        return super().inference_memory_requirements(dtype) + self.inner.inference_memory_requirements(dtype)
