"""The style reference: the first row of the batch, or a picture that rides along in hidden rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy import sampler_helpers, samplers, utils
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider
from einops import rearrange, repeat

from ..arch.base import Architecture
from ..arch.transformer import TEXT_PADS
from ..runs.keys import sigmas_of
from ..runs.layout import Layout
from ..runs.loaded import latent_format_of
from ..runs.model_call import ModelCall
from ..runs.probe import Conditioning
from .text import OTHER_PROMPT, TextFitting

NOISE_SEED = 0x5317  # any number; a run that happens to use the same one only shares its noise with the reference


@dataclass(frozen=True)
class StyleReference:
    """Where style is taken from. Without a latent: the first row of the batch.

    With one [1, C, h, w]: that picture, noised to each call's sigma with one fixed noise, under its own prompt.
    """

    latent: torch.Tensor | None = None
    prompt: Conditioning | None = None

    @property
    def hidden(self) -> bool:
        """Whether it rides in rows of its own."""
        return self.latent is not None


FIRST_ROW = StyleReference()


@dataclass(frozen=True)
class HiddenReference:
    """A reference made ready for one run: latent and noise [1, C, (1,) H, W] at the run's size, in the model's scale.

    `conds` holds what the model makes of the reference's prompt, by the argument's name, one row each. `fitting` is how
    a prompt of another length than the run's comes into one call with it.
    """

    latent: torch.Tensor
    noise: torch.Tensor
    conds: dict[str, Any]
    fitting: TextFitting

    def at(self, model: BaseModel, call: ModelCall) -> torch.Tensor:
        """x [1, C, (1,) h, w] at the call's sigma; a call on a part of the picture sees the reference's middle."""
        latent, noise = (_middle(x, call.x.shape[-2:]).to(call.x) for x in (self.latent, self.noise))
        return model.model_sampling.noise_scaling(call.sigma[:1].reshape([1] * latent.ndim), noise, latent)


def prepare(
    reference: StyleReference, guider: CFGGuider, noise: torch.Tensor, architecture: Architecture
) -> HiddenReference | None:
    """Make a reference ready for a run whose noise is [B, C, (1,) H, W]; None when it needs no hidden rows.

    Without a prompt of its own the reference runs under the first positive prompt of the run.
    Raises ValueError for a run of several frames, which a picture cannot lead.
    """
    if reference.latent is None:
        return None
    model = guider.inner_model
    latent = reference.latent[:1].to(noise)
    latent = model.process_latent_in(latent.unsqueeze(2) if latent.ndim < noise.ndim else latent)
    if latent.shape[2:-2] != noise.shape[2:-2]:
        raise ValueError(
            f"'reference' holds {latent.shape[2]} frame(s) and the sampler works on {noise.shape[2]}: "
            "style is taken from one picture for one picture, so set the length of the latent to 1."
        )
    latent = utils.common_upscale(latent, noise.shape[-1], noise.shape[-2], "bicubic", "center")
    own_noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(NOISE_SEED)).to(latent)
    return HiddenReference(latent, own_noise, _conds(reference, guider, latent), TextFitting.of(architecture))


def positive_prompts(guider: CFGGuider) -> list[dict[str, Any]]:
    """The run's positive prompts as the guider holds them; empty for a guider that knows no such word."""
    return guider.conds.get("positive") or []


def positive_place(guider: CFGGuider, conds: list[Any]) -> int | None:
    """Where the run's positive prompts stand among the conditionings of a call; None when they are not among them."""
    prompts = positive_prompts(guider)
    return next((place for place, cond in enumerate(conds) if cond is prompts), None)


def check_latent(model: ModelPatcher, latent: torch.Tensor, what: str = "reference") -> None:
    """Raises ValueError, naming the input `what`, for a latent that is none of this model's or not finite."""
    kind = latent_format_of(model)
    expected = kind.latent_channels
    if latent.ndim not in (4, 2 + kind.latent_dimensions) or latent.shape[1] != expected:
        raise ValueError(
            f"'{what}' holds a latent of shape {list(latent.shape)}, but 'model' works on {expected} channels: "
            "encode the picture with this model's VAE."
        )
    if not bool(torch.isfinite(latent).all()):
        raise ValueError(f"'{what}' holds NaN or infinite values: check the picture and the VAE that it comes from.")


def framed(model: ModelPatcher, latent: torch.Tensor, what: str = "reference") -> torch.Tensor:
    """A latent with the axis of frames that this model works on, if it does.

    Raises ValueError, naming the input `what`, for one of several frames: a subject is looked for in pictures.
    """
    if latent.ndim == 4 and latent_format_of(model).latent_dimensions == 3:
        return latent.unsqueeze(2)
    if latent.ndim == 5 and latent.shape[2] != 1:
        raise ValueError(f"'{what}' holds {latent.shape[2]} frames: set the length of the latent to 1, for a picture.")
    return latent


def _conds(reference: StyleReference, guider: CFGGuider, latent: torch.Tensor) -> dict[str, Any]:
    """The model's own reading of the prompt: text, SDXL's pooled text and sizes, an inpainting model's empty mask."""
    if reference.prompt is not None:
        prompts = sampler_helpers.convert_cond(reference.prompt[:1])
    else:
        prompts = [_without_target(prompt) for prompt in positive_prompts(guider)[:1]]
    model = guider.inner_model
    try:
        prompts = samplers.encode_model_conds(
            model.extra_conds, prompts, latent, latent.device, "positive", latent_image=latent, seed=0
        )
    except KeyError as missing:
        raise ValueError(OTHER_PROMPT) from missing
    conds = {name: cond for prompt in prompts for name, cond in prompt["model_conds"].items()}
    return {name: cond.process_cond(batch_size=1, area=None).cond for name, cond in conds.items()}


def _without_target(prompt: dict[str, Any]) -> dict[str, Any]:
    """A prompt of the run without what an inpainting node tied to it: the picture being painted."""
    tied = ("concat_latent_image", "concat_mask", "noise_concat")
    return {name: value for name, value in prompt.items() if name not in tied} | {"model_conds": {}}


def with_hidden_rows(
    call: ModelCall, layout: Layout, reference: HiddenReference, model: BaseModel, positive: int
) -> ModelCall:
    """The call with the reference as one more row at the end of every chunk.

    One row per chunk keeps `rows == len(cond_or_uncond) * rows per chunk`, by which other packs find their rows, and
    standing last leaves every picture's place in its chunk as it was. Chunks of the positive prompt (those numbered
    `positive` in `cond_or_uncond`) run the reference under its prompt, others under what their own last picture has.
    No ControlNet acts on it.
    """
    own = [kind == positive for kind in layout.kinds]
    sigmas = sigmas_of(call.options)
    extra_options: dict[str, Any] = {"sigmas": torch.cat((sigmas, sigmas[-1:]))}
    x = repeat(reference.at(model, call), "1 ... -> chunk 1 ...", chunk=layout.chunks)
    always, prompted = [True] * layout.chunks, reference.conds
    text, own_text, pads = reference.fitting.fit(call.c_crossattn, prompted.get("c_crossattn"))
    if any(pads):
        rows = [[pads[0]] * layout.rows + [pads[1] if mine else pads[0]] for mine in own]
        extra_options[TEXT_PADS] = tuple(pad for chunk in rows for pad in chunk)
    return replace(
        call,
        x=_append(call.x, x),
        sigma=_extend(call.sigma, call, None, own),
        c_concat=_extend(call.c_concat, call, prompted.get("c_concat"), always),
        c_crossattn=_extend(text, call, own_text, own),
        control=_each_residual(call, lambda residual: _with_zero_row(residual, call, layout)),
        options={**call.options, **extra_options},
        conds={name: _extend(value, call, prompted.get(name), own) for name, value in call.conds.items()},
    )


def without_hidden_rows(out: torch.Tensor, chunks: int) -> torch.Tensor:
    """The model's output without the last row of every chunk."""
    kept = rearrange(out, "(chunk row) ... -> chunk row ...", chunk=chunks)[:, :-1]
    return rearrange(kept, "chunk row ... -> (chunk row) ...")


def _middle(x: torch.Tensor, size: torch.Size) -> torch.Tensor:
    top, left = (x.shape[-2] - size[0]) // 2, (x.shape[-1] - size[1]) // 2
    return x[..., top : top + size[0], left : left + size[1]]


def _append(value: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """[chunk * rows, ...] and [chunk, 1, ...] to [chunk * (rows + 1), ...]."""
    value = rearrange(value, "(chunk row) ... -> chunk row ...", chunk=row.shape[0])
    return rearrange(torch.cat((value, row), dim=1), "chunk row ... -> (chunk row) ...")


def _extend(value: Any, call: ModelCall, made: Any, own: list[bool]) -> Any:
    """One more row per chunk: `made` in the chunks marked in `own`, elsewhere (or without it) the chunk's last row."""
    if isinstance(value, list):
        return [_extend(item, call, None, own) for item in value]
    if not isinstance(value, torch.Tensor) or value.ndim == 0 or value.shape[0] != call.x.shape[0]:
        return value
    last = rearrange(value, "(chunk row) ... -> chunk row ...", chunk=len(own))[:, -1:]
    if isinstance(made, torch.Tensor) and made.shape[1:] == value.shape[1:]:
        made = made[:1].to(value)
        last = torch.stack([made if mine else rows for mine, rows in zip(own, last, strict=True)])
    return _append(value, last)


def with_free_first_row(call: ModelCall, layout: Layout) -> ModelCall:
    """The call without control on the first picture of every chunk, the reference, as in the official code."""
    control = _each_residual(call, lambda residual: _with_free_first_row(residual, call, layout))
    return replace(call, control=control)


def _each_residual(call: ModelCall, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if call.control is None:
        return None
    return {
        name: [None if residual is None else change(residual) for residual in slots]
        for name, slots in call.control.items()
    }


def _with_free_first_row(residual: torch.Tensor, call: ModelCall, layout: Layout) -> torch.Tensor:
    residual = residual.expand(call.x.shape[0], *residual.shape[1:])
    chunks = rearrange(residual, "(chunk row) ... -> chunk row ...", chunk=layout.chunks)
    freed = torch.cat((torch.zeros_like(chunks[:, :1]), chunks[:, 1:]), dim=1)
    return rearrange(freed, "chunk row ... -> (chunk row) ...")


def _with_zero_row(residual: torch.Tensor, call: ModelCall, layout: Layout) -> torch.Tensor:
    residual = residual.expand(call.x.shape[0], *residual.shape[1:])
    return _append(residual, residual.new_zeros(layout.chunks, 1, *residual.shape[1:]))
