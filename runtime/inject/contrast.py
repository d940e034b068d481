"""Guidance by style alone: along the prediction whose gated layers take a reference's style, minus the one without.

The picture's own prediction takes no style in its layers. One more conditional prediction a step is made with it, and
the run is led toward what that changes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.samplers import calc_cond_batch

from ...engine.contrast import guided
from ..runs import injector
from ..runs.caches import without_caches
from ..runs.injector import Sampling
from ..runs.model_call import with_wrapper
from ..runs.whose import who_patched
from .remembered import given_back
from .style import StyleInjection, StyleRun, checked

OUTPUTS = ("attn1_output_patch", "attn2_output_patch")
"""Patches that see what layers return for all conditionings of a call: ComfyUI's NAG holds them against each other."""


NOT_MADE = (
    "Nothing was done: this guider makes no prediction for the prompt that this node guides, as dual guidance does at "
    "1 and 1. Use a CFG or basic guider."
)


@dataclass(frozen=True)
class LayerContrast(injector.Injector):
    """Style by `injection` as guidance of a `strength`; `rescale` as in `engine.contrast`."""

    name: ClassVar[str] = "Layer contrast"

    injection: StyleInjection
    strength: float
    rescale: float = 0.0

    @property
    def hidden_rows(self) -> int:
        return self.injection.hidden_rows

    def start(self, sampling: Sampling) -> _Run:
        return _Run(self, sampling)


def contrast_layers(model: ModelPatcher, contrast: LayerContrast) -> ModelPatcher:
    """A clone of the model that is guided by style; with strength 0 or an empty gate it samples the same bits.

    Raises ValueError for a model of an unknown family, a gate of other layers or a reference that is no latent of it.
    """
    contrast = replace(contrast, injection=checked(model, contrast.injection))
    return given_back(injector.inject(model, contrast)) if contrast.strength else model.clone()


class _Run(injector.Run):
    """The style's own run lives as long as this one, and acts in predictions of its own only."""

    def __init__(self, contrast: LayerContrast, sampling: Sampling) -> None:
        super().__init__(sampling)
        self.contrast, self.style = contrast, StyleRun(contrast.injection, sampling)

    def sample(self, sampler: injector.SamplerRun) -> torch.Tensor:
        functions = [*sampler.options.get("sampler_post_cfg_function", ()), self._after_cfg]
        options = {**sampler.options, "sampler_post_cfg_function": functions}
        self.sampling.asks_beside()
        out = self.style.finish(sampler.with_options(options).sample())
        self.style.report()
        return out

    def opens(self, sigma: float) -> bool:
        return self.style.acts(sigma)

    @property
    def windows(self) -> tuple[tuple[float, float], ...]:
        return self.style.windows

    def _after_cfg(self, arguments: dict[str, Any]) -> torch.Tensor:
        """ComfyUI's post-CFG function, behind those of other nodes: what they made is moved on."""
        denoised, sigma, plain = (arguments[name] for name in ("denoised", "sigma", "cond_denoised"))
        if not self.style.acts(float(sigma[0])):
            return denoised
        if arguments["cond"] is None:  # a guider that guides twice, and makes no prediction here
            self.sampling.notices.say(NOT_MADE)
            return denoised
        around = functools.partial(self.style.around_conds, self.contrast.hidden_rows)
        scale = arguments.get("cond_scale", getattr(self.sampling.guider, "cfg", math.nan))  # AutomaticCFG gives none
        conds, options = [arguments["cond"], *_company(arguments, scale)], without_caches(arguments["model_options"])
        predict = functools.partial(calc_cond_batch, arguments["model"], conds, arguments["input"], sigma)
        if options is not arguments["model_options"]:  # what a cache hands out is held against nothing true
            plain = predict(options)[0]
        gated = predict(with_wrapper(options, WrappersMP.CALC_COND_BATCH, around))[0]
        if not self.contrast.hidden_rows:  # the first picture is the reference itself
            gated = torch.cat((plain[:1], gated[1:]))
        return guided(denoised, gated, plain, self.contrast.strength, self.contrast.rescale)


def _company(arguments: Mapping[str, Any], scale: float) -> list[Any]:
    """The negative prompts, where a patch may make the positive ones' prediction depend on them.

    Alone, the gated prediction would lack what that patch adds to the plain one, and guidance would lead away from it.
    """
    options = arguments["model_options"]
    one = math.isclose(scale, 1.0) and not options.get("disable_cfg1_optimization", False)
    if one or arguments["uncond"] is None:
        return []
    patched = any(who_patched(options.get("transformer_options", {}), kind) for kind in OUTPUTS)
    return [arguments["uncond"]] if patched else []
