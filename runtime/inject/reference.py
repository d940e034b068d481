"""Style references: the first row of the batch, or pictures computed in hidden rows of the batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from comfy import sampler_helpers, samplers, utils
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider
from einops import rearrange, repeat

from ...engine.trajectory import OutsideTrajectory, Trajectory
from ..arch.base import Architecture
from ..arch.transformer import TEXT_PADS
from ..attribution.subject import Subject
from ..runs.keys import sigmas_of
from ..runs.layout import Layout
from ..runs.loaded import latent_format_of
from ..runs.model_call import ModelCall
from ..runs.model_patches import with_boxes_spared, with_row_apart, with_row_spared
from ..runs.probe import Conditioning
from .text import MASK, OTHER_PROMPT, Masked, TextFitting

EDITED = "ref_latents"
"""ComfyUI's name for the pictures that an editing model (Flux Kontext, Qwen-Image-Edit) is given beside the noise."""
TO_EDIT = "reference_latents"
"""The same in a conditioning."""
TIED = ("concat_latent_image", "concat_mask", "noise_concat")
"""ComfyUI's names for what inpainting and editing nodes tie to a prompt: the picture that is worked on."""
NOISE_SEED = 0x5317  # any number; a run that happens to use the same one only shares its noise with the reference


@dataclass(frozen=True)
class StyleReference:
    """Where style is taken from. Without a latent and a trajectory: the first row of the batch.

    With a latent [1, C, h, w]: that picture, noised to each call's sigma with one fixed noise. With a trajectory: that
    picture as it was at each call's sigma. Both run under their own `prompt`. `strength` (-1 to 2) says how much of the
    style is taken, below 0 how far to keep off it; `mask` [H, W] where, 0 to 1 over the whole picture, None everywhere;
    `start` and `end` when, in percent. `previous` acts beside it. `subject` is what its own picture shows and no other
    shall take over; `subject_mask` [h, w] is where that has been found in it, 1 the subject.
    """

    latent: torch.Tensor | None = None
    prompt: Conditioning | None = None
    trajectory: Trajectory | None = None
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mask: torch.Tensor | None = None
    previous: StyleReference | None = None
    subject: Subject | None = None
    subject_mask: torch.Tensor | None = None

    @property
    def hidden(self) -> bool:
        """Whether it rides in rows of its own."""
        return self.latent is not None or self.trajectory is not None

    @property
    def chain(self) -> tuple[StyleReference, ...]:
        """All that act together, in the order in which they were chained.

        Raises ValueError when the batch's first row is one of several.
        """
        chained = (self,) if self.previous is None else (*self.previous.chain, self)
        if len(chained) > 1 and not all(each.hidden for each in chained):
            raise ValueError(
                "'previous' and the first row of the batch do not go together: give every style reference of a chain a "
                "picture or a trajectory of its own."
            )
        return chained


FIRST_ROW = StyleReference()


class Way(Protocol):
    """A reference's state at every noise level."""

    def at(self, model: BaseModel, call: ModelCall) -> torch.Tensor:
        """x [1, C, (1,) h, w] at the call's sigma; a call on a part of the picture sees the reference's middle."""
        ...


@dataclass(frozen=True)
class Renoised:
    """A latent and its noise [1, C, (1,) H, W] at the run's size, in the model's scale."""

    latent: torch.Tensor
    noise: torch.Tensor

    @classmethod
    def of(cls, latent: torch.Tensor) -> Renoised:
        """Under the noise that every reference of this size gets."""
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(NOISE_SEED))
        return cls(latent, noise.to(latent))

    def at(self, model: BaseModel, call: ModelCall) -> torch.Tensor:
        size = call.x.shape[-2:]
        wide = self if fits(size, self.latent) else Renoised.of(_resized(self.latent, covering(size, self.latent)))
        latent, noise = (middle(x, size).to(call.x) for x in (wide.latent, wide.noise))
        return model.model_sampling.noise_scaling(call.sigma[:1].reshape([1] * latent.ndim), noise, latent)


@dataclass(frozen=True)
class Replayed:
    """A trajectory of the run's size."""

    trajectory: Trajectory

    def at(self, model: BaseModel, call: ModelCall) -> torch.Tensor:
        if not fits(call.x.shape[-2:], self.trajectory.states):
            raise _other_size(self.trajectory, call.x.shape[1:])
        try:
            state = self.trajectory.at(float(call.sigma[0]))
        except OutsideTrajectory as outside:
            raise ValueError(
                f"'trajectory' goes from sigma {outside.high:.4g} to {outside.low:.4g}, and this run asks for "
                f"{outside.sigma:.4g}: record or invert over the whole schedule (denoise 1), or narrow the window."
            ) from outside
        return middle(state[None], call.x.shape[-2:]).to(call.x)


@dataclass(frozen=True)
class HiddenReference:
    """A reference made ready for one run.

    `conds` holds what the model makes of the reference's prompt, by the argument's name, one row each. `fitting` is how
    a prompt of another length than the run's comes into one call with it. `picture` [1, C, (1,) H, W] is the reference
    itself, in the model's scale.
    """

    way: Way
    conds: dict[str, Any]
    fitting: TextFitting
    picture: torch.Tensor

    def beside(self, size: torch.Size) -> Any:
        """What stands beside its latent in the network's channels, such as an inpainting model's mask, for a call of
        `size`: an area's or a tile's sees that of the middle, as of the latent.
        """
        whole = self.conds.get("c_concat")
        if not isinstance(whole, torch.Tensor) or whole.shape[-2:] != self.picture.shape[-2:]:
            return whole
        wide = whole if fits(size, whole) else _resized(whole, covering(size, whole))
        return middle(wide, size)

    def edited(self, pictures: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What the reference is given in the place of the `pictures` that the run edits, of their sizes.

        That is what its own prompt holds, else itself: the run's would bring their style into the reference's.
        """
        own = self.conds.get(EDITED, ())
        fitting = {number: each for number, (each, one) in enumerate(zip(own, pictures, strict=False))
                   if each.shape[1:] == one.shape[1:]}  # fmt: skip
        return [fitting.get(number, _resized(self.picture, one.shape[-2:])) for number, one in enumerate(pictures)]


def prepare(
    reference: StyleReference, guider: CFGGuider, noise: torch.Tensor, architecture: Architecture
) -> HiddenReference | None:
    """Make a reference ready for a run whose noise is [B, C, (1,) H, W]; None when it needs no hidden rows.

    Without a prompt of its own the reference runs under the first positive prompt of the run.
    Raises ValueError for a run of several frames, which a picture cannot lead, and for a trajectory of another size.
    """
    if reference.trajectory is not None:
        way, latent = _replayed(reference.trajectory, noise)
    elif reference.latent is not None:
        way, latent = _renoised(reference.latent, guider.inner_model, noise)
    else:
        return None
    return HiddenReference(way, _conds(reference, guider, latent), TextFitting.of(architecture), latent)


def _renoised(latent: torch.Tensor, model: BaseModel, noise: torch.Tensor) -> tuple[Way, torch.Tensor]:
    """The way, and the latent [1, C, (1,) H, W] that stands for the picture in a prompt's encoding."""
    latent = latent[:1].to(noise)
    latent = model.process_latent_in(latent.unsqueeze(2) if latent.ndim < noise.ndim else latent)
    if latent.shape[2:-2] != noise.shape[2:-2]:
        raise ValueError(
            f"'reference' holds {latent.shape[2]} frame(s) and the sampler works on {noise.shape[2]}: "
            "style is taken from one picture for one picture, so set the length of the latent to 1."
        )
    latent = _resized(latent, noise.shape[-2:])
    return Renoised.of(latent), latent


def _replayed(trajectory: Trajectory, noise: torch.Tensor) -> tuple[Way, torch.Tensor]:
    if trajectory.states.shape[1:] != noise.shape[1:]:
        raise _other_size(trajectory, noise.shape[1:])
    return Replayed(trajectory), trajectory.states[-1:].to(noise)


def _other_size(trajectory: Trajectory, size: torch.Size) -> ValueError:
    return ValueError(
        f"'trajectory' is of a latent of shape {list(trajectory.states.shape[1:])} and the sampler works on "
        f"{list(size)}: its noise cannot be resized, so record or invert at the size that you generate."
    )


def _resized(latent: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return utils.common_upscale(latent, size[-1], size[-2], "bicubic", "center")


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
    latent = with_frames(model, latent)
    if latent.ndim == 5 and latent.shape[2] != 1:
        raise ValueError(f"'{what}' holds {latent.shape[2]} frames: set the length of the latent to 1, for a picture.")
    return latent


def with_frames(model: ModelPatcher, latent: torch.Tensor) -> torch.Tensor:
    """The same for a latent of any number of frames."""
    return latent.unsqueeze(2) if latent.ndim == 4 and latent_format_of(model).latent_dimensions == 3 else latent


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
    if reference.prompt is None:
        conds.pop(EDITED, None)  # the run's, tied to its prompt
    return {name: cond.process_cond(batch_size=1, area=None).cond for name, cond in conds.items()}


ACTING_IN_PART = {"area": "its area", "mask": "its mask", "hooks": "its hooks"}
"""What a conditioning may have that a reference's prompt has no use for, by ComfyUI's names."""


def left_out(reference: StyleReference, guider: CFGGuider) -> Iterator[str]:
    """A sentence for everything of the reference's own prompt that does not act in this run."""
    prompts = reference.prompt or ()
    if len(prompts) > 1:
        yield (
            f"'prompt' of the style reference holds {len(prompts)} conditionings, and the reference runs under the "
            "first of them from beginning to end: connect one that describes it."
        )
    for _, about in prompts[:1]:
        tied = [words for name, words in ACTING_IN_PART.items() if about.get(name) is not None]
        if (about.get("start_percent", 0.0), about.get("end_percent", 1.0)) != (0.0, 1.0):
            tied.append("its range of steps")
        if tied:
            without = " and ".join(tied)
            yield f"'prompt' of the style reference acts on all of it from beginning to end, without {without}."
        if TO_EDIT in about and not any(TO_EDIT in prompt for prompt in positive_prompts(guider)):
            yield (
                "The picture to edit in 'prompt' of the style reference is left out, because the run's own prompt has "
                "none: give that one as well, or take it off."
            )


def _without_target(prompt: dict[str, Any]) -> dict[str, Any]:
    """A prompt of the run without what an inpainting node tied to it: the picture being painted."""
    return {name: value for name, value in prompt.items() if name not in TIED} | {"model_conds": {}}


def with_hidden_row(
    call: ModelCall, layout: Layout, reference: HiddenReference, model: BaseModel, positive: int
) -> ModelCall:
    """The call with the reference as one more row at the end of every chunk.

    One row per chunk keeps `rows == len(cond_or_uncond) * rows per chunk`, by which other packs find their rows, and
    standing last leaves every picture's place in its chunk as it was. Chunks of the positive prompt (those numbered
    `positive` in `cond_or_uncond`) run the reference under its prompt, others under what their own last picture has.
    No ControlNet acts on it, and no box of GLIGEN's.
    """
    more = _with_rows(call, layout, reference, model, positive, _append)
    options = with_row_spared(more.options, layout.chunks, layout.rows, added=True)
    options = with_boxes_spared(options, layout.chunks)
    return replace(more, options=with_row_apart(options, layout.chunks, layout.rows))


def with_resting_row(call: ModelCall, layout: Layout) -> ModelCall:
    """The call with a copy of its last picture at the end of every chunk, in the place of a reference that rests.

    A cache that holds a chunk against an earlier one finds as much of a change as without that row.
    """
    own, last = [False] * layout.chunks, layout.pictures - 1
    extend = functools.partial(_extend, call=call, made=None, own=own, last=last, join=_append)
    sigmas = sigmas_of(call.options)
    return replace(
        call,
        x=extend(call.x),
        sigma=extend(call.sigma),
        c_concat=extend(call.c_concat),
        c_crossattn=extend(call.c_crossattn),
        control=_each_residual(call, extend),
        options={
            **with_row_apart(with_boxes_spared(call.options, layout.chunks), layout.chunks, layout.rows),
            "sigmas": torch.cat((sigmas, sigmas[-1:])),
            **_with_pads(call.options, layout, (0, 0), own),
        },
        conds={name: extend(value) for name, value in call.conds.items()},
    )


def hidden_rows_alone(
    call: ModelCall, layout: Layout, reference: HiddenReference, model: BaseModel, positive: int
) -> ModelCall:
    """A call of the rows that `with_hidden_row` adds, without the pictures': one to a chunk."""
    alone = _with_rows(call, layout, reference, model, positive, lambda value, row: row.flatten(0, 1))
    options = {**alone.options, "sigmas": alone.options["sigmas"][-1:]}
    if TEXT_PADS in options:
        options[TEXT_PADS] = options[TEXT_PADS][layout.rows :: layout.rows + 1]
    return replace(alone, control=None, options=options)


def _with_rows(
    call: ModelCall,
    layout: Layout,
    reference: HiddenReference,
    model: BaseModel,
    positive: int,
    join: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> ModelCall:
    """The call with `join` of what its rows hold [chunk * rows, ...] and one row more in each chunk [chunk, 1, ...]."""
    own = [kind == positive for kind in layout.kinds]
    sigmas = sigmas_of(call.options)
    x = repeat(reference.way.at(model, call), "1 ... -> chunk 1 ...", chunk=layout.chunks)
    always, prompted = [True] * layout.chunks, reference.conds
    text, own_text, pads = reference.fitting.fit(call.c_crossattn, prompted.get("c_crossattn"))
    extend = functools.partial(_extend, call=call, last=layout.pictures - 1, join=join)
    given, prompted = _with_masks(call, reference, text, any(own))
    conds = {name: extend(value, made=prompted.get(name), own=own) for name, value in given.items()}
    if isinstance(edited := call.conds.get(EDITED), list):
        conds[EDITED] = extend(edited, made=reference.edited(edited), own=always)
    return replace(
        call,
        x=join(call.x, x),
        sigma=extend(call.sigma, made=None, own=own),
        c_concat=extend(call.c_concat, made=reference.beside(call.x.shape[-2:]), own=always),
        c_crossattn=extend(text, made=own_text, own=own),
        control=_each_residual(call, lambda residual: _with_zero_row(residual, call, layout)),
        options={
            **call.options,
            "sigmas": torch.cat((sigmas, sigmas[-1:])),
            **_with_pads(call.options, layout, pads, own),
        },
        conds=conds,
    )


def _with_masks(
    call: ModelCall, reference: HiddenReference, text: Any, own: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The call's and the reference's conds, with masks that fit the lengthened `text`.

    The reference's matters where a chunk runs under its `own` prompt.
    """
    conds, made = call.conds, reference.conds if own else {**reference.conds, MASK: None}
    texts: tuple[Any, Any] = call.c_crossattn, made.get("c_crossattn")
    told = reference.fitting.joined and all(isinstance(each, torch.Tensor) for each in texts)
    if not told or all(held.get(MASK) is None for held in (conds, made)):
        return conds, made
    masked = [Masked(each.shape[1], held.get(MASK)) for each, held in zip(texts, (conds, made), strict=True)]
    masks = reference.fitting.fit_masks(*masked, tokens=text.shape[1], rows=len(call.x))
    ours, theirs = ({**held, MASK: mask} for held, mask in zip((conds, made), masks, strict=True))
    return ours, theirs


def _with_pads(options: dict[str, Any], layout: Layout, pads: tuple[int, int], own: list[bool]) -> dict[str, Any]:
    """How much of every row's text is padding after one more row in each chunk; what was padded before stays so."""
    before = options.get(TEXT_PADS, ())
    if not any(pads) and not any(before):
        return {}
    before = torch.tensor(before or [0] * layout.chunks * layout.rows).view(layout.chunks, layout.rows) + pads[0]
    row = torch.where(torch.tensor(own), torch.tensor(pads[1]), before[:, layout.pictures - 1])
    return {TEXT_PADS: tuple(torch.cat((before, row[:, None]), 1).flatten().tolist())}


def without_hidden_rows(out: torch.Tensor, chunks: int, hidden: int) -> torch.Tensor:
    """The model's output without the last rows of every chunk."""
    kept = rearrange(out, "(chunk row) ... -> chunk row ...", chunk=chunks)[:, :-hidden]
    return rearrange(kept, "chunk row ... -> (chunk row) ...")


def fits(size: Sequence[int], x: torch.Tensor) -> bool:
    """Whether a call of so many rows and columns lies within a reference [..., H, W]; some samplers look at more."""
    return all(side <= own for side, own in zip(size, x.shape[-2:], strict=True))


def covering(size: Sequence[int], x: torch.Tensor) -> tuple[int, int]:
    """Rows and columns to which a reference has to grow for a call of `size` to lie within it."""
    return max(size[0], x.shape[-2]), max(size[1], x.shape[-1])


def middle(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The part [..., h, w] of a reference that a call on a part of the picture sees."""
    top, left = (x.shape[-2] - size[0]) // 2, (x.shape[-1] - size[1]) // 2
    return x[..., top : top + size[0], left : left + size[1]]


def _append(value: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """[chunk * rows, ...] and [chunk, 1, ...] to [chunk * (rows + 1), ...]."""
    value = rearrange(value, "(chunk row) ... -> chunk row ...", chunk=row.shape[0])
    return rearrange(torch.cat((value, row), dim=1), "chunk row ... -> (chunk row) ...")


def _extend(
    value: Any,
    call: ModelCall,
    made: Any,
    own: list[bool],
    last: int,
    join: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Any:
    """One more row per chunk: `made` in the chunks marked in `own`, elsewhere or without it that of picture `last`."""
    if isinstance(value, list):
        made = made if isinstance(made, list) and len(made) == len(value) else [None] * len(value)
        return [_extend(item, call, each, own, last, join) for item, each in zip(value, made, strict=True)]
    if not isinstance(value, torch.Tensor) or value.ndim == 0 or value.shape[0] != call.x.shape[0]:
        return value
    row = rearrange(value, "(chunk row) ... -> chunk row ...", chunk=len(own))[:, last : last + 1]
    if isinstance(made, torch.Tensor) and made.shape[1:] == value.shape[1:]:
        made = made[:1].to(value)
        row = torch.stack([made if mine else rows for mine, rows in zip(own, row, strict=True)])
    return join(value, row)


def with_free_first_row(call: ModelCall, layout: Layout) -> ModelCall:
    """The call without control on the first picture of every chunk, the reference, as in the official code."""
    control = _each_residual(call, lambda residual: _with_free_first_row(residual, call, layout))
    return replace(call, control=control, options=with_row_spared(call.options, layout.chunks, 0, added=False))


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
