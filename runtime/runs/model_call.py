"""One call of the model inside ComfyUI's APPLY_MODEL wrappers, and wrappers that live for one run or one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy import model_management

KEY = "conditional_balance"


@dataclass(frozen=True)
class ModelCall:
    """The arguments of `BaseModel.apply_model`: x [rows, C, h, w], sigma [rows], conditioning by name, options.

    `Layout` says whose rows they are; arguments unknown to us travel in `rest` and `conds`. `pictures` [B, C, ..., H,
    W] are those that it is made to predict for, of which x may hold a part only.
    """

    x: torch.Tensor
    sigma: torch.Tensor
    c_concat: torch.Tensor | None
    c_crossattn: torch.Tensor | None
    control: dict[str, list[torch.Tensor | None]] | None
    options: dict[str, Any]
    rest: tuple[Any, ...] = ()
    conds: dict[str, Any] = field(default_factory=dict)
    pictures: torch.Tensor | None = None

    @classmethod
    def of(cls, *args: Any, **kwargs: Any) -> ModelCall:
        """From what an APPLY_MODEL wrapper receives after its executor."""
        return cls(*args[:6], rest=args[6:], conds=kwargs)

    def run(self, executor: Callable[..., torch.Tensor]) -> torch.Tensor:
        return executor(
            self.x, self.sigma, self.c_concat, self.c_crossattn, self.control, self.options, *self.rest, **self.conds
        )


def brought(call: ModelCall, x: torch.Tensor) -> torch.Tensor:
    """x of the CPU on the device of a call; a layer that asks for it need not wait, where ComfyUI says so."""
    return model_management.cast_to_device(x, call.x.device, x.dtype)


SHARED = "multigpu_clones"
"""In model_options of newer ComfyUI: the copies of the model between which several cards share a run's calls."""


def on_one_card(model_options: dict[str, Any]) -> dict[str, Any]:
    """The options of predictions that the model makes by itself, and not its copies on other cards.

    Layers are read there alone, and in the threads of the copies nothing has a gradient.
    """
    return {name: value for name, value in model_options.items() if name != SHARED}


def with_wrapper(
    model_options: dict[str, Any], kind: str, wrapper: Callable[..., Any], outermost: bool = False
) -> dict[str, Any]:
    """A copy of `model_options` with one more wrapper, innermost of ours or outermost; nothing shared is changed."""
    options = model_options.get("transformer_options", {})
    wrappers = options.get("wrappers", {})
    of_kind = wrappers.get(kind, {})
    ours = of_kind.get(KEY, ())
    of_kind = {**of_kind, KEY: [wrapper, *ours] if outermost else [*ours, wrapper]}
    return {**model_options, "transformer_options": {**options, "wrappers": {**wrappers, kind: of_kind}}}
