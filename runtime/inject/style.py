"""Style injection in a sampler run: resolves the gate once per model call and opens only its layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from comfy.model_patcher import ModelPatcher

from ...engine.gates import LayerGate
from ...engine.joint_style import Unturned, inject_joint
from ...engine.layers import LayerId
from ...engine.style import AUTO, LayerStyle, Rows, StyleSettings, inject, inject_through, layer_styles
from ..arch.base import Architecture, Projected
from ..arch.earlier import TakesNoMoreKeys, with_more_keys
from ..arch.registry import architecture_of
from ..runs import injector
from ..runs.injector import Around, CalledLayers, Executor, Sampling, with_layout
from ..runs.layout import Layout
from ..runs.loaded import sampling_of
from ..runs.model_call import ModelCall
from ..runs.rows import misfits_of_prompts
from .reference import (
    FIRST_ROW,
    StyleReference,
    check_latent,
    prepare,
    with_free_first_row,
    with_hidden_rows,
    without_hidden_rows,
)

ROWS_CHANGED = "took no style, because another node's patch changes how many rows run there"
NOT_SHARED = (
    "shared no attention where another node has put one that does not take a reference's keys, as perturbed or "
    "self-attention guidance does"
)
LATE = (
    "The gate opened between the steps of this sampler only, so a ControlNet has drawn the first picture until then: "
    "widen the window, or take more steps."
)


@dataclass(frozen=True)
class StyleInjection(injector.Injector):
    """Style from a reference, through a gate."""

    name: ClassVar[str] = "Style injection"

    gate: LayerGate
    reference: StyleReference = FIRST_ROW
    settings: StyleSettings = field(default_factory=StyleSettings)
    architecture: Architecture | None = None

    @property
    def hidden_rows(self) -> int:
        return int(self.reference.hidden)

    def start(self, sampling: Sampling) -> _Run:
        return _Run(self, sampling)


def inject_style(model: ModelPatcher, injection: StyleInjection) -> ModelPatcher:
    """A clone of the model that injects style while it samples; the model itself is untouched.

    Raises ValueError for a model of an unknown family, a gate of other layers or a reference that is no latent of it.
    """
    architecture = architecture_of(model)
    settings = _with_defaults(injection.settings, architecture)
    sampling = sampling_of(model)
    injection.gate.weights(float(sampling.sigma_max), architecture.layers, sampling.percent_to_sigma)
    if injection.reference.latent is not None:
        check_latent(model, injection.reference.latent)
    return injector.inject(model, replace(injection, settings=settings, architecture=architecture))


class _Run(injector.Run):
    def __init__(self, injection: StyleInjection, sampling: Sampling) -> None:
        super().__init__(sampling)
        assert injection.architecture is not None  # `inject_style` knows it
        self.injection, self.architecture = injection, injection.architecture
        self.hidden = prepare(injection.reference, sampling.guider, sampling.noise, self.architecture)
        self.layers = CalledLayers(self.architecture.layers)
        self.without_sharing: list[Callable[..., torch.Tensor] | None] = []
        for sentence in misfits_of_prompts(sampling.guider.conds, sampling.pictures):
            sampling.notices.say(sentence)

    def at(self, sigma: float, positive: int) -> Around | None:
        styles = self.styles(sigma)
        if styles and self.hidden is None and self.sampling.controlled and not self.frees_first_row:
            self.sampling.notices.say(LATE)
        if not styles and not self.frees_first_row:
            return None
        self.layers.opened.update(styles)
        return functools.partial(self._around_call, styles, positive)

    def styles(self, sigma: float) -> dict[LayerId, LayerStyle]:
        """The open layers at a noise level."""
        weights = self.injection.gate.weights(sigma, self.architecture.layers, self.sampling.to_sigma)
        return layer_styles(weights, self.architecture.layers, self.injection.settings)

    @functools.cached_property
    def frees_first_row(self) -> bool:
        """Whether a ControlNet is kept off the first row in calls without an open layer as well.

        It is, when the gate opens anywhere in the run: what the first steps draw, no later one takes back.
        """
        if self.hidden is not None or not self.sampling.controlled:
            return False
        return any(self.styles(sigma) for sigma in self.sampling.levels)

    def finish(self, samples: torch.Tensor) -> torch.Tensor:
        self.layers.report(self.sampling.notices)
        return samples

    def _around_call(
        self,
        styles: Mapping[LayerId, LayerStyle],
        positive: int,
        executor: Executor,
        call: ModelCall,
        layout: Layout,
    ) -> torch.Tensor:
        """The open layers' self-attention is replaced for this call only."""
        if self.hidden is None:
            rows = _first_row(layout, self.sampling.pictures)
            return self._run_styled(executor, styles, with_free_first_row(call, layout), rows)
        rows = Rows(layout.chunks, 0, layout.pictures, layout.rows)
        call = with_hidden_rows(call, layout, self.hidden, executor.class_obj, positive)
        call = with_layout(call, layout.with_hidden_row())
        return without_hidden_rows(self._run_styled(executor, styles, call, rows), layout.chunks)

    def _run_styled(
        self, executor: Executor, styles: Mapping[LayerId, LayerStyle], call: ModelCall, rows: Rows
    ) -> torch.Tensor:
        """One call of the model in which the open layers' attention is styled."""
        architecture = self.architecture.on(executor.class_obj.diffusion_model)
        operators = {
            layer: functools.partial(self._operator, architecture, layer, style, rows)
            for layer, style in styles.items()
        }
        if self.hidden is not None:
            closed = (layer for layer in architecture.replaced(call.options) if layer not in operators)
            operators |= dict.fromkeys(closed, functools.partial(_apart, rows))
        if not operators:
            return call.run(executor)
        with architecture.intercepted(call.options, operators) as options:
            return replace(call, options=options).run(executor)

    def _operator(
        self, architecture: Architecture, layer: LayerId, style: LayerStyle, rows: Rows, projected: Projected
    ) -> torch.Tensor:
        self.layers.called.add(layer)
        q, k, v, attend = projected.q, projected.k, projected.v, projected.attend
        if projected.changed:
            self.layers.leave_out(layer, ROWS_CHANGED)
            return projected.plain()
        if projected.whole:
            return self._through_earlier(layer, style, rows, projected)
        if projected.grid is None:  # a UNet's self-attention: every token is the picture's
            return inject(q, k, v, style, rows, attend)
        rotation = projected.rotation
        turn = Unturned() if rotation is None else rotation.at(projected.image)
        cure = architecture.cure(self.injection.settings.position, projected)
        return inject_joint(q, k, v, style, rows, attend, projected.image, turn, cure)

    def _through_earlier(self, layer: LayerId, style: LayerStyle, rows: Rows, projected: Projected) -> torch.Tensor:
        """Another pack's attention takes the reference's keys along; one that cannot keeps a picture's own."""
        q, k, v, attend = projected.q, projected.k, projected.v, projected.attend

        def shared(
            q: torch.Tensor, more_k: torch.Tensor, more_v: torch.Tensor, bias: torch.Tensor | None
        ) -> torch.Tensor:
            more = more_k.shape[1] > k.shape[1]
            return with_more_keys(attend, q, more_k, more_v) if more else attend(q, more_k, more_v, bias)

        if style.share and projected.earlier not in self.without_sharing:
            try:
                return inject_through(q, k, v, style, rows, shared)
            except TakesNoMoreKeys:
                self.without_sharing.append(projected.earlier)
        if style.share:
            self.layers.leave_out(layer, NOT_SHARED)

        def alone(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            return _apart(rows, replace(projected, q=q, k=k, v=v))

        return inject_through(q, k, v, style._replace(share=0.0), rows, alone)


def _apart(rows: Rows, projected: Projected) -> torch.Tensor:
    """Another pack's attention without our hidden row, which one that counts pictures or keeps weights cannot know."""
    if projected.changed or rows.reference < rows.stop:
        return projected.plain()
    q, k, v = (x.unflatten(0, (rows.chunks, -1)) for x in (projected.q, projected.k, projected.v))
    own = [place for place in range(q.shape[1]) if place != rows.reference]
    numbers = [chunk * q.shape[1] + place for chunk in range(rows.chunks) for place in own]
    own_q, own_k, own_v = (x[:, own].flatten(0, 1) for x in (q, k, v))
    others = projected.attend(own_q, own_k, own_v, None, numbers).unflatten(0, (rows.chunks, -1))
    its_q, its_k, its_v = (x[:, rows.reference] for x in (q, k, v))
    hidden = (projected.underneath or projected.attend)(its_q, its_k, its_v, None)[:, None]
    return torch.cat((others[:, : rows.reference], hidden, others[:, rows.reference :]), 1).flatten(0, 1)


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
