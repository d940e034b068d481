"""Two prompts in one run, by region and noise level: their predictions are blended before CFG."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from comfy import sampler_helpers, samplers, utils
from comfy.hooks import EnumHookType, HookGroup
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher, create_hook_patches_clone
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ...engine.blending import blended, weights_of
from ...engine.gates import inside
from ..runs import injector
from ..runs.caches import without_caches
from ..runs.injector import Sampling
from ..runs.model_call import KEY, with_wrapper
from ..runs.sampler_run import SamplerRun
from .reference import TIED, Conditioning, positive_place, positive_prompts

Predict = Callable[[list[Any]], torch.Tensor]
"""One conditioning's predicted picture [B, C, ..., H, W]."""

NOTHING_WITHOUT = (
    "'own_prompt' stays needs a prediction without a prompt, and this sampler's guider has no negative prompt: choose "
    "gives way with a 'strength' of at most 1, or use a CFG guider."
)


@dataclass(frozen=True)
class NoiseBlend:
    """Another prompt where `mask` [H, W] is (None: everywhere), from `start` to `end` percent.

    The run's own prompt `stays` there or gives way.
    """

    conditioning: Conditioning
    mask: torch.Tensor | None = None
    strength: float = 1.0
    stays: bool = False
    start: float = 0.0
    end: float = 1.0


def blend_prompts(model: ModelPatcher, blend: NoiseBlend) -> ModelPatcher:
    """A clone of the model that blends another prompt in; strength 0 or an empty mask samples the same bits.

    The prompt is ComfyUI's to prepare, with its ControlNets and hooks. Raises ValueError for one that acts in a part
    of the picture or of the run only, since its prediction is nothing elsewhere.
    """
    if all({"area", "mask", "start_percent", "end_percent"} & set(about) for _, about in blend.conditioning):
        raise ValueError(
            "'conditioning' acts in an area or for some steps only, and predicts nothing elsewhere: connect the prompt "
            "itself, and use this node's 'mask', 'start_percent' and 'end_percent'."
        )
    if not blend.strength or (blend.mask is not None and not bool(blend.mask.any())):
        return model.clone()
    place = f"{KEY}_{len(injector.injectors_of(model, _Blending))}"
    patched = injector.inject(_hookable(model, blend.conditioning), _Blending(blend, place))
    around = functools.partial(_around_sampling, place, blend.conditioning)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, around)
    hooked = functools.partial(_register_hooks, blend.conditioning)
    patched.add_callback_with_key(CallbacksMP.ON_REGISTER_ALL_HOOK_PATCHES, KEY, hooked)
    return patched


def _hookable(model: ModelPatcher, conditioning: Conditioning) -> ModelPatcher:
    """The model in a form that this prompt's hooks can be put into.

    Newer ComfyUI streams weights, and takes another form where the guider's own prompts have hooks: it knows no other.
    """
    newer: Any = model
    helpers: Any = sampler_helpers
    streams = hasattr(model, "is_dynamic") and newer.is_dynamic()
    hooked = streams and helpers.cond_has_hooks(conditioning)
    return newer.get_non_dynamic_delegate() if hooked else model


def _register_hooks(
    conditioning: Conditioning,
    patcher: ModelPatcher,
    hooks: HookGroup,
    target: dict[str, Any],
    options: dict[str, Any],
    registered: HookGroup,
    *args: Any,
) -> None:
    """ON_REGISTER_ALL_HOOK_PATCHES: the prompt's hooks as well, such as a LoRA of its own.

    ComfyUI takes those of the guider's prompts, before OUTER_SAMPLE, and puts weights back that it has a copy of.
    """
    own = HookGroup()
    sampler_helpers.get_hooks_from_cond(sampler_helpers.convert_cond(conditioning), own)
    if len(own) and patcher.hook_patches_backup is None:
        patcher.hook_patches_backup = create_hook_patches_clone(patcher.hook_patches)
    for kind in (EnumHookType.TransformerOptions, EnumHookType.AdditionalModels, EnumHookType.Weight):
        for hook in own.get_type(kind):
            if not registered.contains(hook):
                hook.add_hook_patches(patcher, options, target, registered)


def _around_sampling(
    place: str, conditioning: Conditioning, executor: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """OUTER_SAMPLE: one more prompt among the guider's own, which it makes anew for every run."""
    guider = executor.class_obj
    own = next(iter(positive_prompts(guider)), {})
    prompts = [_with_picture(prompt, own) for prompt in sampler_helpers.convert_cond(conditioning)]
    samplers.preprocess_conds_hooks({place: prompts})
    samplers.filter_registered_hooks_on_conds({place: prompts}, guider.model_options)
    guider.conds[place] = prompts
    return executor(*args, **kwargs)


def _with_picture(prompt: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A prompt with the picture and mask that an inpainting or editing node has tied to the run's `own`.

    They belong to the run, as its latent does: without them the model would paint something else there. A prompt to
    which a node has tied some keeps them.
    """
    if any(name in prompt for name in TIED):
        return prompt
    return prompt | {name: own[name] for name in TIED if name in own}


@dataclass(frozen=True)
class _Blending(injector.Injector):
    """`place` is the other prompt's name among the guider's."""

    name: ClassVar[str] = "Noise blend"

    blend: NoiseBlend
    place: str

    def start(self, sampling: Sampling) -> _Run:
        return _Run(self.blend, self.place, sampling)


class _Run(injector.Run):
    def __init__(self, blend: NoiseBlend, place: str, sampling: Sampling) -> None:
        super().__init__(sampling)
        self.blend, self.place = blend, place
        self.weights: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}

    def sample(self, sampler: SamplerRun) -> torch.Tensor:
        """Outside of what other nodes of ours do to predictions, and of blends before this one: the last is on top."""
        self.sampling.asks_beside()
        options = with_wrapper(sampler.options, WrappersMP.CALC_COND_BATCH, self._around, outermost=True)
        return sampler.with_options(options).sample()

    def opens(self, sigma: float) -> bool:
        return inside(sigma, self.blend.start, self.blend.end, self.sampling.to_sigma)

    def _around(
        self,
        executor: Callable[..., Any],
        model: BaseModel,
        conds: list[Any],
        x: torch.Tensor,
        sigma: torch.Tensor,
        model_options: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """CALC_COND_BATCH: the prediction of the positive prompts becomes one of two prompts, before CFG sees it."""
        out = executor(model, conds, x, sigma, model_options, *args, **kwargs)
        own = positive_place(self.sampling.guider, conds)
        if own is None or not self.opens(float(sigma[0])):
            return out

        def predict(prompts: list[Any]) -> torch.Tensor:
            return executor(model, [prompts], x, sigma, without_caches(model_options), *args, **kwargs)[0]

        weights = self._weights(x)
        with self.sampling.notices.own_errors():
            without = self._without(conds, out, predict, weights)
        other = predict(self.sampling.guider.conds[self.place])
        found = blended(out[own], other, out[own] if without is None else without, *weights)
        return [found if number == own else each for number, each in enumerate(out)]

    def _weights(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of both prompts, made once a run for pictures of one size."""
        known = x.shape[-2:], x.device, x.dtype
        if known not in self.weights:
            self.weights[known] = self._made(x)
        return self.weights[known]

    def _made(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mask = torch.ones(1, 1) if self.blend.mask is None else self.blend.mask.float().cpu()
        height, width = x.shape[-2:]
        fitted = utils.common_upscale(mask[None, None], width, height, "area", "disabled")[0, 0].clamp(0, 1)
        own, other = weights_of(fitted, self.blend.strength, self.blend.stays)
        return own.to(x), other.to(x)

    def _without(
        self, conds: list[Any], out: list[torch.Tensor], predict: Predict, weights: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor | None:
        """The prediction without a prompt: the call's own where it makes one; None where two predictions do."""
        negative = self.sampling.guider.conds.get("negative")
        found = next((each for each, cond in zip(out, conds, strict=True) if cond and cond is negative), None)
        if found is not None:
            return found
        if negative:
            return predict(negative)
        if not torch.equal(weights[0] + weights[1], torch.ones_like(weights[0])):
            raise ValueError(NOTHING_WITHOUT)
        return None
