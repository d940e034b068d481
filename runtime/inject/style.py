"""Style injection in a sampler run: resolves the gate once per model call and opens only its layers."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from comfy import model_management
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ...engine.brought import Brought, inject_brought
from ...engine.gates import LayerGate, inside
from ...engine.joint_style import Turn, Unturned, inject_joint
from ...engine.layers import LayerId
from ...engine.several import Leads, Places, inject_several, inject_several_through
from ...engine.style import AUTO, Damping, LayerStyle, Rows, StyleSettings, inject, inject_through, layer_styles
from ..arch.base import Architecture, Projected, keep
from ..arch.earlier import TakesNoMoreKeys, with_more_keys
from ..arch.registry import architecture_of
from ..runs import injector
from ..runs.injector import Around, CalledLayers, Executor, Sampling
from ..runs.layout import Layout, with_layout
from ..runs.loaded import sampling_of
from ..runs.memory import out_of_memory
from ..runs.model_call import ModelCall
from ..runs.rows import misfits_of_prompts
from ..runs.whose import OURS, who_patched, whose
from .own_subject import DampingAt, damping_at, subject_at, with_subject_found
from .reference import (
    FIRST_ROW,
    HiddenReference,
    StyleReference,
    check_latent,
    hidden_rows_alone,
    left_out,
    prepare,
    with_free_first_row,
    with_hidden_row,
    with_resting_row,
    without_hidden_rows,
)
from .regions import LeadsAt, fitted, leads_of
from .remembered import STORE, given_back, undisturbed

ROWS_CHANGED = "took no style, because another node's patch{who} changes how many rows run there"
NOT_SHARED = (
    "shared no attention where another node has put one that does not take a reference's keys, as perturbed or "
    "self-attention guidance does"
)
UNPLACED = (
    "took no style, because another node's patch{who} changes the order or the number of a picture's tokens there, so "
    "the 'mask' of a style reference cannot be placed"
)
UNDAMPED = (
    "took from the reference's own subject too, because another node's patch there{who} cannot weigh tokens, or "
    "changes their order"
)
NO_MORE_ROWS = (
    "{who} runs the model by itself and fails when a style reference is computed beside the pictures ({problem}): "
    "bypass that node, or take style from the batch's first picture, by Style Injection without a reference."
)
NOT_REMEMBERED = (  # said by nodes that have no 'remember' too
    "Memory ran out with what the reference brings to all open layers, so it ran beside the pictures and the next run "
    "cannot use it again: open fewer layers or paint smaller pictures for that."
)
LATE = (
    "The gate opened only between steps of this sampler, so until then a ControlNet acted on the first picture: "
    "widen the window, or take more steps."
)


@dataclass(frozen=True)
class StyleInjection(injector.Injector):
    """Style from a reference, through a gate.

    `remember` keeps what layers make of a hidden reference, so that the next run of the same schedule costs less.
    """

    name: ClassVar[str] = "Style injection"

    gate: LayerGate
    reference: StyleReference = FIRST_ROW
    settings: StyleSettings = field(default_factory=StyleSettings)
    architecture: Architecture | None = None
    remember: bool = True

    @property
    def hidden_rows(self) -> int:
        return sum(each.hidden for each in self.reference.chain)

    def start(self, sampling: Sampling) -> StyleRun:
        return StyleRun(self, sampling)


def inject_style(model: ModelPatcher, injection: StyleInjection) -> ModelPatcher:
    """A clone of the model that injects style while it samples; the model itself is untouched.

    Raises ValueError for a model of an unknown family, a gate of other layers or a reference that is no latent of it.
    """
    return given_back(injector.inject(model, checked(model, injection)))


def checked(model: ModelPatcher, injection: StyleInjection) -> StyleInjection:
    """The injection with what is left to the model's family decided. Raises ValueError as `inject_style`."""
    architecture = architecture_of(model)
    settings = _with_defaults(injection.settings, architecture)
    sampling = sampling_of(model)
    injection.gate.weights(float(sampling.sigma_max), architecture.layers, sampling.percent_to_sigma)
    for reference in injection.reference.chain:
        if reference.latent is not None:
            check_latent(model, reference.latent)
    reference = with_subject_found(model, injection.reference)
    return replace(injection, reference=reference, settings=settings, architecture=architecture)


@dataclass(frozen=True)
class _Lead:
    """A reference in one run: as it was given, made ready when it rides in hidden rows, its mask [H, W] of latents.

    `subject` [H, W] is where its own subject stands in it, if that is known.
    """

    reference: StyleReference
    hidden: HiddenReference | None
    mask: torch.Tensor | None
    subject: torch.Tensor | None


class _Call(NamedTuple):
    """What the open layers of one model call do, and whose rows they do it to.

    `leads` is None where one reference acts everywhere: then `rows` names it, `styles` are as strong as it is, and
    `lone` is what leads would be.
    `hidden` are the references' own rows in every chunk, which come last; `masked` says that one acts in places only.
    `brought` is there when the reference has no row in the call: what it brings to each layer. `dampings` keep each
    reference's own subject out of what it gives. `others` names whose patches change q, k and v before they come here.
    """

    styles: Mapping[LayerId, LayerStyle]
    rows: Rows
    hidden: int
    lone: LeadsAt
    leads: LeadsAt | None = None
    masked: bool = False
    brought: Mapping[LayerId, Brought] | None = None
    dampings: tuple[DampingAt | None, ...] = ()
    others: tuple[str, ...] = ()

    def dampings_at(self, projected: Projected) -> tuple[Damping, ...]:
        """Of every reference at the tokens of a layer; nothing where none is damped, or where they cannot be placed."""
        if not any(self.dampings) or not projected.placed or projected.grid is None:
            return ()
        return tuple(None if at is None else at(projected.grid) for at in self.dampings)

    def leads_at(self, projected: Projected) -> Leads:
        """The references at the tokens of a layer, which matter where there is a mask."""
        return (self.leads or self.lone)(projected.grid if self.masked else None)


class StyleRun(injector.Run):
    """Style injection during one run of a sampler."""

    def __init__(self, injection: StyleInjection, sampling: Sampling) -> None:
        super().__init__(sampling)
        assert injection.architecture is not None  # `inject_style` knows it
        self.injection, self.architecture = injection, injection.architecture
        self.leads = tuple(
            _Lead(
                each,
                prepare(each, sampling.guider, sampling.noise, self.architecture),
                fitted(each, sampling.noise),
                subject_at(each, sampling.noise),
            )
            for each in injection.reference.chain
        )
        self.token = object()  # what it keeps is known by it, and does not keep the run
        self.placed: dict[Any, Leads] = {}  # masks, brought to the grids of layers once a run
        self.dampings: dict[Any, torch.Tensor] = {}
        self.layers = CalledLayers(self.architecture.layers)
        self.rides = False  # whether memory has run out with the reference in calls of its own
        self.without_sharing: list[Callable[..., torch.Tensor] | None] = []
        misfits = misfits_of_prompts(sampling.guider.conds, sampling.pictures)
        unheard = (left_out(each, sampling.guider) for each in injection.reference.chain)
        for sentence in itertools.chain(misfits, *unheard):
            sampling.notices.say(sentence)

    @property
    def first_row(self) -> bool:
        """Whether the batch's first picture is the reference."""
        return self.leads[0].hidden is None

    def at(self, sigma: float, positive: int) -> Around | None:
        styles = self.styles(sigma)
        acting = self.acting(sigma) if styles else ()
        if styles and self.first_row and self.sampling.controlled and not self.frees_first_row:
            self.sampling.notices.say(LATE)
        if not styles and not self.frees_first_row and not self.keeps_rows:
            return None
        self.layers.opened.update(styles)
        return functools.partial(self._around_call, styles, acting, positive)

    def acts(self, sigma: float) -> bool:
        """Whether any layer takes style at a noise level."""
        return bool(self.styles(sigma))

    opens = acts

    @property
    def windows(self) -> tuple[tuple[float, float], ...]:
        """Those of the gate, and the references' own."""
        references = (each.reference for each in self.leads if each.reference.strength)
        return (*self.injection.gate.windows, *((each.start, each.end) for each in references))

    def acting(self, sigma: float) -> tuple[_Lead, ...]:
        """The references that act at a noise level."""
        return tuple(
            each
            for each in self.leads
            if each.reference.strength
            and inside(sigma, each.reference.start, each.reference.end, self.sampling.to_sigma)
        )

    @functools.cached_property
    def keeps_rows(self) -> bool:
        """Whether every call of the run has all references' rows: a cache hands out by rows what it has kept."""
        return not self.first_row and bool(self.sampling.caches) and self.acts_anywhere

    def styles(self, sigma: float) -> dict[LayerId, LayerStyle]:
        """The open layers at a noise level; none where no reference acts."""
        if not self.acting(sigma):
            return {}
        weights = self.injection.gate.weights(sigma, self.architecture.layers, self.sampling.to_sigma)
        return layer_styles(weights, self.architecture.layers, self.injection.settings)

    @functools.cached_property
    def frees_first_row(self) -> bool:
        """Whether a ControlNet is kept off the first row in calls without an open layer as well.

        It is, when the gate opens anywhere in the run: what the first steps draw, no later one takes back.
        """
        return self.first_row and self.sampling.controlled and self.acts_anywhere

    @functools.cached_property
    def acts_anywhere(self) -> bool:
        """Whether the gate opens at any level of the run, or of the stages to which it leaves noise."""
        later = self.sampling.whole_schedule if float(self.sampling.sigmas[-1]) > 0 else ()
        return any(map(self.acts, (*self.sampling.levels, *later)))

    def finish(self, samples: torch.Tensor) -> torch.Tensor:
        self.layers.report(self.sampling)
        for sentence in itertools.chain(*(each.hidden.fitting.said for each in self.leads if each.hidden is not None)):
            self.sampling.notices.say(sentence)
        return samples

    def _around_call(
        self,
        styles: Mapping[LayerId, LayerStyle],
        acting: tuple[_Lead, ...],
        positive: int,
        executor: Executor,
        call: ModelCall,
        layout: Layout,
    ) -> torch.Tensor:
        """The open layers' self-attention is replaced for this call only."""
        if self.first_row:
            rows = _first_row(layout, self.sampling.pictures)
            styled = self._led(styles, acting, rows, (0,), 0, call, layout)
            return self._run_styled(executor, styled, with_free_first_row(call, layout))
        riding = self.leads if self.keeps_rows else acting
        acts = [any(each is one for one in acting) for each in riding]
        places = tuple(layout.rows + place for place, acting_there in enumerate(acts) if acting_there)
        rows = Rows(layout.chunks, 0, layout.pictures, next(iter(places), layout.rows))
        styled = self._led(styles, acting, rows, places, len(riding), call, layout)
        if self._can_remember(styled, acting, call, executor.class_obj):
            try:
                return self._run_beside(executor, styled, acting[0], positive, call, layout)
            except RuntimeError as problem:
                if not out_of_memory(problem):
                    raise
            self._ride_along(executor.class_obj)  # what the failed call held is free only here, where its error is gone
        for lead, acting_there in zip(riding, acts, strict=True):
            assert lead.hidden is not None  # or it would be the first row
            if acting_there:
                call = with_hidden_row(call, layout, lead.hidden, executor.class_obj, positive)
            else:
                call = with_resting_row(call, layout)
            layout = layout.with_hidden_row()
        call = with_layout(call, layout)
        try:
            out = self._run_styled(executor, styled, call)
        except RuntimeError as problem:
            raise _with_reason(problem, call) from problem
        return without_hidden_rows(out, layout.chunks, len(riding))

    def _can_remember(self, styled: _Call, acting: tuple[_Lead, ...], call: ModelCall, model: BaseModel) -> bool:
        """Whether one reference acts everywhere, from rows of its own with which nothing but ComfyUI has to do."""
        alone = len(acting) == 1 and styled.leads is None and bool(styled.styles)
        remember = self.injection.remember and self.sampling.undisturbed and not self.sampling.caches
        return remember and not self.rides and alone and undisturbed(call, model)

    def _run_beside(
        self, executor: Executor, styled: _Call, lead: _Lead, positive: int, call: ModelCall, layout: Layout
    ) -> torch.Tensor:
        """The pictures' call, with what the reference brings from a call of its own, now or in an earlier run."""
        model = executor.class_obj
        assert lead.hidden is not None  # or it would be the first row
        own = hidden_rows_alone(call, layout, lead.hidden, model, positive)
        run = functools.partial(self._bring, executor, own, frozenset(styled.styles))
        brought = STORE.brought(model, own, frozenset(styled.styles), self.token, run)
        return self._run_styled(executor, styled._replace(hidden=0, brought=brought), with_layout(call, layout))

    def _ride_along(self, model: BaseModel) -> None:
        """From here on the reference runs in the pictures' calls, which hold what it brings to one layer at a time."""
        self.rides = True
        STORE.forget(model)
        model_management.soft_empty_cache()
        self.sampling.notices.say(NOT_REMEMBERED)

    def _bring(self, executor: Executor, call: ModelCall, layers: frozenset[LayerId]) -> Mapping[LayerId, Brought]:
        """Run the reference by itself and take what it brings to `layers`."""
        brought: dict[LayerId, Brought] = {}

        def taking(layer: LayerId, projected: Projected) -> torch.Tensor:
            places = Places(projected.image, turn_of(projected))
            brought[layer] = Brought.of(projected.q, projected.k, projected.v, places)
            return projected.plain()

        architecture = self.architecture.on(executor.class_obj.diffusion_model)
        operators = {layer: functools.partial(taking, layer) for layer in layers}
        with architecture.intercepted(call.options, operators) as options:
            replace(call, options=options).run(executor)
        return brought

    def _led(
        self,
        styles: Mapping[LayerId, LayerStyle],
        acting: tuple[_Lead, ...],
        rows: Rows,
        places: tuple[int, ...],
        hidden: int,
        call: ModelCall,
        layout: Layout,
    ) -> _Call:
        """One reference that acts everywhere is the operator of the paper, as strong as it is told.

        `places` are the acting references' rows in every chunk.
        """
        strengths = [(each.reference.strength, each.mask) for each in acting]
        masked = any(mask is not None for _, mask in strengths)
        dampings = tuple(
            None if each.subject is None else damping_at(each.subject, call, self.dampings) for each in acting
        )
        led = functools.partial(leads_of, call=call, layout=layout, kept=self.placed)
        alone = _Call(styles, rows, hidden, led([(1.0, None)], (rows.reference,)), dampings=dampings)
        if masked or len(acting) > 1 or any(strength < 0 for strength, _ in strengths):
            return alone._replace(leads=led(strengths, places), masked=masked)
        if any(strength != 1 for strength, _ in strengths):
            styles = {layer: style.times(strengths[0][0]) for layer, style in styles.items()}
        return alone._replace(styles=styles)

    def _run_styled(self, executor: Executor, styled: _Call, call: ModelCall) -> torch.Tensor:
        """One call of the model in which the open layers' attention is styled."""
        styled = styled._replace(others=who_patched(call.options, "attn1_patch"))
        architecture = self.architecture.on(executor.class_obj.diffusion_model)
        operators = {
            layer: functools.partial(self._operator, architecture, layer, style, styled)
            for layer, style in styled.styles.items()
        }
        if styled.hidden:
            closed = (layer for layer in architecture.replaced(call.options) if layer not in operators)
            operators |= dict.fromkeys(closed, functools.partial(_apart, styled))
        if not operators:
            return call.run(executor)
        with architecture.intercepted(call.options, operators) as options, self._noted(styled):
            return replace(call, options=options).run(executor)

    def _noted(self, styled: _Call) -> AbstractContextManager[None]:
        return self.layers.during_call(styled.styles, self.sampling)

    def _operator(
        self, architecture: Architecture, layer: LayerId, style: LayerStyle, styled: _Call, projected: Projected
    ) -> torch.Tensor:
        self.layers.call(layer)
        q, k, v, attend = projected.q, projected.k, projected.v, projected.attend
        if projected.changed:
            self.layers.leave_out(layer, ROWS_CHANGED.format(who=_in_brackets(styled.others)))
            return projected.plain()
        if styled.masked and not projected.placed:
            self.layers.leave_out(layer, UNPLACED.format(who=_in_brackets(styled.others)))
            return _apart(styled, projected) if projected.whole else projected.plain()
        if projected.whole:
            return self._through_earlier(layer, style, styled, projected)
        dampings = styled.dampings_at(projected)
        if any(styled.dampings) and not dampings:
            self.layers.leave_out(layer, UNDAMPED.format(who=_in_brackets(styled.others)))
        first, grown = next(iter(dampings), None), _grown(projected)
        if q.ndim == 3 and styled.leads is None and styled.brought is None and not grown:
            return inject(q, k, v, style, styled.rows, attend, first)
        cure = keep if q.ndim == 3 else architecture.cure(self.injection.settings.position, projected)
        places = Places(grown or projected.image, turn_of(projected), cure)
        if styled.brought is not None:
            return inject_brought(q, k, v, style, styled.brought[layer], attend, places, first)
        if styled.leads is None and not grown:
            return inject_joint(q, k, v, style, styled.rows, attend, *places, first)
        return inject_several(q, k, v, style, styled.rows, styled.leads_at(projected), attend, places, dampings)

    def _through_earlier(self, layer: LayerId, style: LayerStyle, styled: _Call, projected: Projected) -> torch.Tensor:
        """Another pack's attention takes the references' keys along; one that cannot keeps a picture's own."""
        q, k, v, attend = projected.q, projected.k, projected.v, projected.attend
        if style.share and any(styled.dampings):
            self.layers.leave_out(layer, UNDAMPED.format(who=_in_brackets([whose(projected.earlier)])))
        through = functools.partial(inject_through, q, k, v, rows=styled.rows)
        if styled.leads is not None:
            leads = styled.leads_at(projected)
            through = functools.partial(inject_several_through, q, k, v, rows=styled.rows, leads=leads)

        def shared(
            q: torch.Tensor, more_k: torch.Tensor, more_v: torch.Tensor, bias: torch.Tensor | None
        ) -> torch.Tensor:
            more = more_k.shape[1] > k.shape[1]
            return with_more_keys(attend, q, more_k, more_v) if more else attend(q, more_k, more_v, bias)

        if style.share and projected.earlier not in self.without_sharing:
            try:
                return through(style=style, attend=shared)
            except TakesNoMoreKeys:
                self.without_sharing.append(projected.earlier)
        if style.share:
            self.layers.leave_out(layer, f"{NOT_SHARED} ({whose(projected.earlier)})")

        def alone(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            return _apart(styled, replace(projected, q=q, k=k, v=v))

        return through(style=style._replace(share=0.0), attend=alone)


def _with_reason(problem: RuntimeError, call: ModelCall) -> Exception:
    """The error of a call that holds references' rows, with a word on the wrapper that may not have expected them."""
    wrappers = call.options.get("wrappers", {}).get(WrappersMP.DIFFUSION_MODEL, {}).values()
    others = dict.fromkeys(name for each in wrappers for name in map(whose, each) if name != OURS)
    if not others or out_of_memory(problem):
        return problem
    return ValueError(NO_MORE_ROWS.format(who=" or ".join(others), problem=str(problem).strip().split("\n")[0]))


def _in_brackets(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""


def _grown(projected: Projected) -> slice | None:
    """The picture's own among a UNet layer's keys, where another injection has put a reference's behind them."""
    q, k = projected.q, projected.k
    own = max(q.shape[1], math.prod(projected.grid or ()))  # queries may have been merged
    return slice(0, own) if q.ndim == 3 and k.shape[1] > own else None


def turn_of(projected: Projected) -> Turn:
    """How the picture's tokens were rotated."""
    return Unturned() if projected.rotation is None else projected.rotation.at(projected.image)


def _apart(styled: _Call, projected: Projected) -> torch.Tensor:
    """Another pack's attention without our hidden rows, which one that counts pictures or keeps weights cannot know."""
    if projected.changed or not styled.hidden:
        return projected.plain()
    q, k, v = (x.unflatten(0, (styled.rows.chunks, -1)) for x in (projected.q, projected.k, projected.v))
    rows = q.shape[1]
    numbers = torch.arange(styled.rows.chunks * rows).view(-1, rows)[:, : -styled.hidden].flatten().tolist()
    seen_q, seen_k, seen_v = (x[:, : -styled.hidden].flatten(0, 1) for x in (q, k, v))
    others = projected.attend(seen_q, seen_k, seen_v, None, numbers)
    underneath = projected.underneath or projected.attend
    own_q, own_k, own_v = (x[:, -styled.hidden :].flatten(0, 1) for x in (q, k, v))
    hidden = underneath(own_q, own_k, own_v, None)
    return torch.cat([x.unflatten(0, (styled.rows.chunks, -1)) for x in (others, hidden)], 1).flatten(0, 1)


def _with_defaults(settings: StyleSettings, architecture: Architecture) -> StyleSettings:
    """What is left to the family of models, decided; its sharing rule brings its AdaIN of the values along."""
    if settings.position == AUTO:
        settings = replace(settings, position=architecture.position)
    if settings.sharing != AUTO:
        return settings
    return replace(settings, sharing=architecture.sharing, adain_v=settings.adain_v or architecture.adain_v)


def _first_row(layout: Layout, batch: int) -> Rows:
    if batch < 2:
        raise ValueError(
            "Style injection takes style from the first picture of the batch, and this batch has only one: "
            "raise 'batch_size' of the latent to 2 or more, or connect a 'reference'."
        )
    if layout.pictures < batch:
        raise ValueError(
            "Style injection takes style from the first picture of the batch, and another node calls the model with "
            "a part of the batch only: connect a 'reference', or bypass that node."
        )
    return Rows(layout.chunks, 1, layout.pictures, 0)
