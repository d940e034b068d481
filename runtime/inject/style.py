"""Style injection in a sampler run: resolves the gate once per model call and opens only its layers."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.samplers import CFGGuider

from ...engine.gates import LayerGate, ToSigma
from ...engine.joint_style import Unturned, inject_joint
from ...engine.layers import LayerId
from ...engine.style import AUTO, LayerStyle, Rows, StyleSettings, inject, inject_through, layer_styles
from ..arch.base import Architecture, Projected
from ..arch.registry import architecture_of
from ..runs.model_call import KEY, ModelCall, with_wrapper
from .reference import (
    FIRST_ROW,
    HiddenReference,
    StyleReference,
    check_latent,
    counting_hidden_rows,
    positive_place,
    prepare,
    with_free_first_row,
    with_hidden_rows,
    without_hidden_rows,
)

PICTURES = f"{KEY}_pictures"
"""In transformer_options: rows per chunk that are pictures; those behind are hidden references."""


@dataclass(frozen=True)
class StyleInjection:
    """Style from a reference, through a gate."""

    gate: LayerGate
    reference: StyleReference = FIRST_ROW
    settings: StyleSettings = field(default_factory=StyleSettings)


def inject_style(model: ModelPatcher, injection: StyleInjection) -> ModelPatcher:
    """A clone of the model that injects style while it samples; the model itself is untouched.

    Raises ValueError for a model of an unknown family, a gate of other layers or a reference that is no latent of it.
    """
    architecture = architecture_of(model)
    layers = architecture.layers
    injection = replace(injection, settings=_with_defaults(injection.settings, architecture))
    sampling = model.get_model_object("model_sampling")
    injection.gate.weights(float(sampling.sigma_max), layers, sampling.percent_to_sigma)
    if injection.reference.latent is not None:
        check_latent(model, injection.reference.latent)
    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, _around_run(injection, architecture))
    if injection.reference.hidden:
        patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, _around_preparation)
    return patched


def _around_preparation(
    executor: Callable[..., Any], model: ModelPatcher, noise_shape: Sequence[int], *args: Any, **kwargs: Any
) -> Any:
    """PREPARE_SAMPLING: the memory freed before a run counts the hidden rows."""
    return executor(model, [noise_shape[0] + 1, *noise_shape[1:]], *args, **kwargs)


def _around_run(injection: StyleInjection, architecture: Architecture) -> Callable[..., Any]:
    """SAMPLER_SAMPLE: everything a run needs lives from here to its end, in the run's own copy of model_options."""

    def wrapper(
        executor: Callable[..., Any],
        guider: CFGGuider,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        to_sigma = functools.cache(guider.inner_model.model_sampling.percent_to_sigma)
        hidden = prepare(injection.reference, guider, noise, architecture)
        run = _Run(injection, architecture, guider, to_sigma, hidden)
        options = with_wrapper(extra_args["model_options"], WrappersMP.CALC_COND_BATCH, run.around_conds)
        out = executor(guider, sigmas, {**extra_args, "model_options": options}, callback, noise, *args, **kwargs)
        run.report_silent_layers()
        return out

    return wrapper


@dataclass(frozen=True)
class _Run:
    injection: StyleInjection
    architecture: Architecture
    guider: CFGGuider
    to_sigma: ToSigma
    hidden: HiddenReference | None
    opened: set[LayerId] = field(default_factory=set)
    called: set[LayerId] = field(default_factory=set)

    def around_conds(
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
        """CALC_COND_BATCH: with no layer open at this noise level, the call goes on as if we were not there."""
        styles = self.styles(float(sigma[0]))
        if not styles:
            return executor(model, conds, x, sigma, model_options, *args, **kwargs)
        self.opened.update(styles)
        positive = positive_place(self.guider, conds) or 0
        around_call = functools.partial(self.around_call, styles, positive)
        options = with_wrapper(model_options, WrappersMP.APPLY_MODEL, around_call)
        if self.hidden is not None:
            model = counting_hidden_rows(model, x.shape[0])
        return executor(model, conds, x, sigma, options, *args, **kwargs)

    def styles(self, sigma: float) -> dict[LayerId, LayerStyle]:
        """The open layers at a noise level."""
        weights = self.injection.gate.weights(sigma, self.architecture.layers, self.to_sigma)
        return layer_styles(weights, self.architecture.layers, self.injection.settings)

    def around_call(
        self,
        styles: Mapping[LayerId, LayerStyle],
        positive: int,
        executor: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """APPLY_MODEL: the open layers' self-attention is replaced for this call only."""
        call = ModelCall.of(*args, **kwargs)
        with_styles = functools.partial(self._run_styled, executor, styles)
        pictures = call.options.get(PICTURES, call.rows)
        if self.hidden is None:
            rows = _first_row(call.chunks, pictures)
            return with_styles(with_free_first_row(call), rows)
        rows = Rows(call.chunks, 0, pictures, call.rows)
        call = with_hidden_rows(call, self.hidden, executor.class_obj, positive)
        call = replace(call, options={**call.options, PICTURES: pictures})
        return without_hidden_rows(with_styles(call, rows), call.chunks)

    def report_silent_layers(self) -> None:
        """Name the layers that were open in this run and never ran."""
        silent = [str(layer) for layer in self.architecture.layers if layer in self.opened - self.called]
        if silent:
            logging.warning(
                "Style injection: %s selected but never ran, so another patch must have replaced or skipped %s.",
                ", ".join(silent) + (" was" if len(silent) == 1 else " were"),
                "it" if len(silent) == 1 else "them",
            )

    def _run_styled(
        self, executor: Callable[..., Any], styles: Mapping[LayerId, LayerStyle], call: ModelCall, rows: Rows
    ) -> torch.Tensor:
        """One call of the model in which the open layers' attention is styled."""
        architecture = self.architecture.on(executor.class_obj.diffusion_model)
        operators = {
            layer: functools.partial(self._operator, architecture, layer, style, rows)
            for layer, style in styles.items()
        }
        with architecture.intercepted(call.options, operators) as options:
            return replace(call, options=options).run(executor)

    def _operator(
        self, architecture: Architecture, layer: LayerId, style: LayerStyle, rows: Rows, projected: Projected
    ) -> torch.Tensor:
        self.called.add(layer)
        q, k, v, attend = projected.q, projected.k, projected.v, projected.attend
        if projected.grid is None:  # a UNet's self-attention: every token is the picture's
            return (inject_through if projected.whole else inject)(q, k, v, style, rows, attend)
        rotation = projected.rotation
        turn = Unturned() if rotation is None else rotation.at(projected.image)
        cure = architecture.cure(self.injection.settings.position, projected)
        return inject_joint(q, k, v, style, rows, attend, projected.image, turn, cure)


def _with_defaults(settings: StyleSettings, architecture: Architecture) -> StyleSettings:
    """What is left to the family of models, decided; its sharing rule brings its AdaIN of the values along."""
    if settings.position == AUTO:
        settings = replace(settings, position=architecture.position)
    if settings.sharing != AUTO:
        return settings
    return replace(settings, sharing=architecture.sharing, adain_v=settings.adain_v or architecture.adain_v)


def _first_row(chunks: int, pictures: int) -> Rows:
    if pictures < 2:
        raise ValueError(
            "Style injection takes style from the first picture of the batch, and this batch has only one: "
            "raise 'batch_size' of the latent to 2 or more, or connect a 'reference'."
        )
    return Rows(chunks, 1, pictures, 0)
