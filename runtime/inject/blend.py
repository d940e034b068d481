"""Measures a subject while a sampler runs, keeps it, and blends a reference picture in around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from comfy import utils
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from torch.nn import functional

from ...engine.attribution import normalised
from ...engine.devices import able
from ...engine.masks import MaskSettings, mask_of, smoothed
from ...engine.windows import ROUNDING, Span, Window, percent_of, rises, spans, step_before
from ...render.coverage import caveat
from ..attribution.attribute import attribute
from ..attribution.layers import Layers, chosen_layers
from ..attribution.measured import Attribution, Measured, RunMeasured
from ..attribution.prediction import Prediction, precision_of
from ..attribution.prompts import SubjectPrompts, subject_prompts
from ..attribution.settings import AttributionSettings
from ..attribution.subject import Subject
from ..runs import injector
from ..runs.caches import without_caches
from ..runs.injector import Sampling
from ..runs.loaded import cell_of
from ..runs.model_call import on_one_card
from ..runs.rows import misfit
from ..runs.sampler_run import SamplerRun
from ..runs.samplers import name_of
from ..runs.steps import PICTURE, after_steps
from .reference import check_latent, framed, positive_place, positive_prompts

X0, PAPER, MEASURE = "x0", "paper", "only measure"
MODES = (X0, PAPER, MEASURE)
NOISE_SEED = 0x5A11  # for runs that bring no noise of their own
LATE = 0.05  # of the schedule: schedulers begin a little below the greatest noise level


@dataclass(frozen=True)
class Blend:
    """The subject is kept where it is found; the rest comes from the reference [R, C, (1,) h, w].

    `x0`: inside a window every predicted picture is blended. `paper` (arXiv 2408.16232): after a window's first step
    the noisy latent itself is replaced outside the subject by the reference under the run's own noise. `smoothing` is
    the share of the earlier windows' map kept in the next. Nothing is taken of what a mask `left_out` [R, H, W] of
    the reference, of any size, covers.
    """

    reference: torch.Tensor
    subject: Subject
    windows: tuple[Window, ...]
    mode: str = X0
    attribution: AttributionSettings = field(default_factory=AttributionSettings)
    mask: MaskSettings = field(default_factory=MaskSettings)
    smoothing: float = 0.3
    resize: bool = True
    left_out: torch.Tensor | None = None


def blend_reference(model: ModelPatcher, blend: Blend) -> tuple[ModelPatcher, Attribution]:
    """A clone of the model that blends while it samples, and where its measurements will be found.

    Raises ValueError when the model's layers are unknown, a layer does not exist, or the reference is no latent of it.
    """
    layers = chosen_layers(model, blend.attribution)
    check_latent(model, blend.reference)
    blend, attribution = replace(blend, reference=framed(model, blend.reference)), Attribution(cell_of(model))
    return injector.inject(model, _Blending(blend, layers, attribution)), attribution


@dataclass(frozen=True)
class _Blending(injector.Injector):
    name: ClassVar[str] = "Grad-SAM Blend"

    blend: Blend
    layers: Layers
    attribution: Attribution

    def start(self, sampling: Sampling) -> injector.Run | None:
        """Raises ValueError for a sampler that cannot, or where the subject's prompt does not act in a window."""
        blend = self.blend
        if not blend.windows:
            return None
        if blend.mode == PAPER and name_of(sampling.sampler).startswith("sample_unipc"):
            raise ValueError(
                "'mode' paper stops the sampler between steps, which uni_pc cannot do: choose euler, or x0."
            )
        found = spans(blend.windows, sampling.part, sampling.to_sigma, _before(sampling))
        if not found:
            return _Run(self, sampling)
        prompts = subject_prompts(positive_prompts(sampling.guider), blend.subject, blend.attribution.way)
        for span in found:
            prompts.check_active(sampling.part[span.step], f"'windows': {span.window}")
        return _Covered(self, sampling, found, prompts)


def _before(sampling: Sampling) -> float:
    """The noise level of the step before a run that goes on with what another one has left; infinite for others."""
    earlier = [level for level in sampling.sigmas.tolist() if level > float(sampling.part[0])]
    if earlier:
        return min(earlier)
    return math.inf if bool(sampling.noise.any()) else step_before(sampling.part, sampling.to_sigma)


class _LastPrediction:
    """A sampler's progress callback that also keeps the last predicted picture: some nodes hand that on."""

    def __init__(self, callback: Any) -> None:
        self.callback, self.denoised = callback, None

    def __call__(self, step: int, denoised: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        self.denoised = denoised
        if self.callback is not None:
            self.callback(step, denoised, *args, **kwargs)


def _handed_on(model: BaseModel, samples: torch.Tensor, denoised: torch.Tensor | None) -> list[torch.Tensor]:
    """The latents that sampler nodes return for a run, as ComfyUI makes them: the result, and the last prediction."""
    latents = [model.process_latent_out(samples.to(torch.float32))]
    return latents if denoised is None else [*latents, model.process_latent_out(denoised.cpu())]


def _outside(windows: Sequence[Window], sampling: Sampling) -> str:
    """Why these windows did nothing in a run, in a sentence."""
    names = ", ".join(map(str, windows))
    if len(sampling.part) < 2:
        return (
            f"Nothing was done in {names}: the run takes no step, as its schedule holds one noise level only. Split "
            "the schedule between two steps, not at its end."
        )
    if rises(sampling.part):
        return f"Nothing was done in {names}: noise rises in this run, as in an inversion. Sample with falling noise."
    to_sigma = sampling.model.model_sampling.percent_to_sigma
    start, end = (f"{percent_of(float(sampling.part[place]), to_sigma):g}" for place in (0, -2))
    return (
        f"Nothing was done in {names}: the run's steps begin at {start} to {end} of the schedule. Raise 'denoise' or "
        "the number of steps, or move 'windows'."
    )


def _fitted(blend: Blend, model: BaseModel, noise: torch.Tensor) -> torch.Tensor:
    """The reference in the model's own scale, at the run's size, one for each picture."""
    reference, size = blend.reference.to(noise), tuple(noise.shape[-2:])
    if reference.shape[2:-2] != noise.shape[2:-2]:
        raise ValueError("The sampler works on several frames: set the length of its latent to 1, for a picture.")
    if tuple(reference.shape[-2:]) != size:
        if not blend.resize:
            here, there = (" x ".join(map(str, each)) for each in (size, reference.shape[-2:]))
            raise ValueError(
                f"'reference' is a latent of {there}, but the sampler works on {here}: use the node's LATENT output, "
                "or set 'size' to resize."
            )
        reference = utils.common_upscale(reference, size[1], size[0], "bicubic", "center")
    return utils.repeat_to_batch_size(model.process_latent_in(reference), len(noise))


def _left_out(blend: Blend, noise: torch.Tensor) -> torch.Tensor | None:
    """Where nothing of the reference is taken, [B, h, w] on the run's latent: a cell of which any part is masked."""
    if blend.left_out is None:
        return None
    cells = functional.adaptive_max_pool2d(able(blend.left_out)[:, None].float(), blend.reference.shape[-2:])
    height, width = noise.shape[-2:]
    fitted = utils.common_upscale(cells, width, height, "bilinear", "center").to(noise)
    return utils.repeat_to_batch_size(fitted, len(noise))[:, 0]


class _Run(injector.Run):
    """A run that is remembered by its result. By itself, one that no window covers."""

    def __init__(self, blending: _Blending, sampling: Sampling) -> None:
        super().__init__(sampling)
        self.blend, self.layers, self.attribution = blending.blend, blending.layers, blending.attribution
        self.measured: list[Measured] = []

    def sample(self, sampler: SamplerRun) -> torch.Tensor:
        last = _LastPrediction(sampler.callback)
        samples = self.blended_run(replace(sampler, callback=last))
        measured = RunMeasured(tuple(self.measured), (*self.warnings(), *self.begun_from_nothing(sampler)))
        for warning in measured.warnings:
            self.sampling.notices.say(warning)
        self.attribution.keep(_handed_on(self.sampling.model, samples, last.denoised), measured)
        return samples

    def blended_run(self, sampler: SamplerRun) -> torch.Tensor:
        return sampler.sample()

    def begun_from_nothing(self, sampler: SamplerRun) -> Iterator[str]:
        """An empty latent, such as the node's own, holds no picture that later steps could go on with."""
        start = percent_of(float(sampler.sigmas[0]), self.sampling.model.model_sampling.percent_to_sigma)
        if start > LATE and not sampler.latent_image.any() and not rises(sampler.sigmas):
            yield (
                f"The run begins at {start:g} of the schedule with an empty latent: set 'denoise' to 1, or take a "
                "scheduler that begins at its start, which ddim_uniform does not in few steps."
            )

    def warnings(self) -> Iterator[str]:
        """What was asked for and did not happen, in sentences."""
        yield _outside(self.blend.windows, self.sampling)


class _Covered(_Run):
    """Each window is measured at the first model call inside it."""

    def __init__(
        self, blending: _Blending, sampling: Sampling, found: tuple[Span, ...], prompts: SubjectPrompts
    ) -> None:
        super().__init__(blending, sampling)
        self.spans, self.prompts = found, prompts
        self.reference = _fitted(self.blend, sampling.model, sampling.noise)
        self.left_out = _left_out(self.blend, sampling.noise)
        self.maps: torch.Tensor | None = None
        self.masks: dict[Span, torch.Tensor] = {}

    def blended_run(self, sampler: SamplerRun) -> torch.Tensor:
        self.sampling.asks_beside()
        if self.blend.mode == PAPER:
            return self.in_parts(sampler)
        if self.blend.mode == MEASURE:
            return sampler.sample()
        at_end = self.span_at(float(sampler.sigmas[-2])) if float(sampler.sigmas[-1]) == 0 else None
        with after_steps(sampler.guider, PICTURE, self.blended):
            samples = sampler.sample()
        return self.finished(samples, at_end, sampler.denoise_mask)

    def in_parts(self, sampler: SamplerRun) -> torch.Tensor:
        """The latent is replaced after the first step of every window (arXiv 2408.16232)."""
        own_noise = sampler.noise if sampler.noise.any() else _noise_like(sampler.noise)
        ends = {span.step + 1: span for span in reversed(self.spans)}
        start, x = 0, sampler.latent_image
        for number, end in enumerate(sorted({*ends, len(sampler.sigmas) - 1})):
            begin = (sampler.noise, x) if number == 0 else _begin(sampler, x, sampler.sigmas[start])
            x = sampler.part(number, start, end, *begin).sample()
            x = self.replaced(x, ends[end], sampler.sigmas[end], own_noise) if end in ends else x
            start = end
        return x

    def span_at(self, sigma: float) -> Span | None:
        return next((span for span in self.spans if span.holds(sigma)), None)

    def around_conds(
        self,
        hidden: int,
        executor: Callable[..., list[torch.Tensor]],
        model: BaseModel,
        conds: list[Any],
        x: torch.Tensor,
        sigma: torch.Tensor,
        model_options: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> list[torch.Tensor]:
        """CALC_COND_BATCH: the call goes on as if we were not there; where a window opens, we then ask again."""
        out = executor(model, conds, x, sigma, model_options, *args, **kwargs)
        span, place = self.span_at(float(sigma[0])), positive_place(self.sampling.guider, conds)
        whole = x.shape[-2:] == self.reference.shape[-2:]  # some samplers also look at a smaller or a larger picture
        if span is not None and span not in self.masks and place is not None and whole:
            alone = [cond if number == place else None for number, cond in enumerate(conds)]

            def predict(options: dict[str, Any]) -> torch.Tensor:
                again = on_one_card(without_caches({**model_options, "transformer_options": options}))
                return executor(model, alone, x, sigma, again, *args, **kwargs)[place]

            options = model_options.get("transformer_options", {})
            known, precision, family = out[place], precision_of(model), self.layers.architecture
            self.measure(span, Prediction(predict, options, known, x, sigma, self.prompts.texts, precision, family))
        return out

    def measure(self, span: Span, prediction: Prediction) -> None:
        with self.sampling.notices.own_errors():
            found = attribute(prediction, self.blend.subject, self.layers, self.blend.attribution)
        self.maps = smoothed(normalised(found.maps), self.maps, self.blend.smoothing)
        mask = mask_of(self.maps, self.blend.mask)
        kept = mask if self.left_out is None else torch.maximum(mask, self.left_out.to(mask))
        self.masks[span] = kept.reshape(-1, *[1] * (self.reference.ndim - 3), *kept.shape[-2:]).to(self.reference)
        sigma = float(prediction.sigma[0])
        self.measured.append(Measured(span.window, sigma, self.maps.cpu(), mask.cpu(), found.method, found.note))
        for warning in filter(None, (found.note, caveat(mask))):
            self.sampling.notices.say(f"in window {span.window}: {warning}")

    def mask_in(self, span: Span | None) -> torch.Tensor | None:
        return None if span is None else self.masks.get(span)

    def blended(self, denoised: torch.Tensor, sigma: float) -> torch.Tensor:
        """The predicted picture with the reference around the subject; exact for masks of 0 and 1."""
        mask = self.mask_in(self.span_at(sigma))
        if mask is None:
            return denoised
        reference, mask = (_at_size(x, denoised.shape[-2:]).to(denoised) for x in (self.reference, mask))
        return torch.lerp(reference, denoised, mask)

    def replaced(self, x: torch.Tensor, span: Span, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """A latent that a sampler which stopped at `sigma` hands on, with the reference around the subject.

        The reference lies under the run's own noise.
        """
        mask = self.masks.get(span)
        if mask is None:
            return x
        sampling = self.sampling.model.model_sampling
        noisy = sampling.inverse_noise_scaling(sigma, sampling.noise_scaling(sigma, noise, self.reference))
        return torch.lerp(noisy.to(x), x, mask.to(x))

    def finished(self, samples: torch.Tensor, at_end: Span | None, denoise_mask: torch.Tensor | None) -> torch.Tensor:
        """The samples, with the reference once more where a window reaches the end.

        Only samplers that correct after their last prediction (uni_pc) are still off it.
        """
        mask = self.mask_in(at_end)
        if mask is None:
            return samples
        if denoise_mask is not None:
            mask = 1 - (1 - mask) * denoise_mask.to(mask)
        return torch.lerp(self.reference.to(samples), samples, mask.to(samples))

    def warnings(self) -> Iterator[str]:
        covered = [span.window for span in self.spans]
        outside = [window for window in self.blend.windows if window not in covered]
        if outside:
            yield _outside(outside, self.sampling)
        yield from self.missed()
        yield from self.to_the_end()
        pictures = len(self.reference)
        prompts = max(prompt["cross_attn"].shape[0] for prompt in self.prompts.prompts)
        counts = {"'reference' holds": len(self.blend.reference), "The prompt has": prompts}
        if self.blend.left_out is not None:
            counts["The reference's mask has"] = len(self.blend.left_out)
            if bool((self.blend.left_out >= 1).all()):
                yield "The reference's mask covers all of it, so nothing of it is taken: mask less."
        for what, count in counts.items():
            yield from misfit(what, count, pictures)

    def to_the_end(self) -> Iterator[str]:
        """That a window which ends before the schedule holds the last of few steps, behind which none mends seams."""
        sigmas = self.sampling.part
        span = self.span_at(float(sigmas[-2]))
        if span is None or span not in self.masks or self.blend.mode == MEASURE or float(sigmas[-1]) > 0:
            return
        if span.window.end is not None and span.window.end < 1:
            to_sigma, last = self.sampling.to_sigma, float(sigmas[-2])
            earlier = "end it before that, " if to_sigma(span.window.end) * ROUNDING < last else ""
            yield (
                f"{span.window} acts in the last step, which begins at {percent_of(last, to_sigma):g} of the schedule, "
                f"so that nothing is left to mend seams: {earlier}take more steps, or raise 'feather'."
            )

    def missed(self) -> Iterator[str]:
        """Why windows that the run passes through did nothing, in sentences."""
        silent: list[str] = []
        for span in (span for span in self.spans if span not in self.masks):
            first = self.span_at(float(self.sampling.part[span.step]))
            if first is not None and first in self.masks:
                yield f"Nothing was done in {span.window}: at its step {first.window} acts already."
            else:
                silent.append(str(span.window))
        if silent:
            yield f"Nothing was done in {', '.join(silent)}: the sampler made no call there that runs the prompt."


def _at_size(x: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """A reference, or a mask, for a picture of another size than the run's."""
    return x if x.shape[-2:] == size else utils.common_upscale(x, size[1], size[0], "bilinear", "disabled")


def _begin(sampler: SamplerRun, x: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise and latent from which the sampler starts at exactly x; a noise mask needs the latent as it was."""
    if sampler.denoise_mask is None:
        return torch.zeros_like(x), x
    scaling, nothing = sampler.guider.inner_model.model_sampling.noise_scaling, torch.zeros_like(x)
    of_noise = scaling(sigma, nothing, x) - scaling(sigma, nothing, sampler.latent_image)
    return of_noise / scaling(sigma, torch.ones_like(x), nothing), sampler.latent_image


def _noise_like(noise: torch.Tensor) -> torch.Tensor:
    return torch.randn(noise.shape, generator=torch.Generator().manual_seed(NOISE_SEED)).to(noise)
