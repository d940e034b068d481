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
from ...engine.layers import LayerId
from ...engine.style import LayerStyle, Rows, StyleSettings, inject, inject_through, layer_styles
from ..arch.attention import ReplaceFunction, plain_attention, with_attention_replaced
from ..arch.unet import attention_layers
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

    Raises ValueError when the model is no UNet, its layers are not the gate's, or the reference is no latent of it.
    """
    layers = tuple(attention_layers(model))
    sampling = model.get_model_object("model_sampling")
    injection.gate.weights(float(sampling.sigma_max), layers, sampling.percent_to_sigma)
    if injection.reference.latent is not None:
        check_latent(model, injection.reference.latent)
    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, _around_run(injection, layers))
    if injection.reference.hidden:
        patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, _around_preparation)
    return patched


def _around_preparation(
    executor: Callable[..., Any], model: ModelPatcher, noise_shape: Sequence[int], *args: Any, **kwargs: Any
) -> Any:
    """PREPARE_SAMPLING: the memory freed before a run counts the hidden rows."""
    return executor(model, [noise_shape[0] + 1, *noise_shape[1:]], *args, **kwargs)


def _around_run(injection: StyleInjection, layers: tuple[LayerId, ...]) -> Callable[..., Any]:
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
        run = _Run(injection, layers, guider, to_sigma, prepare(injection.reference, guider, noise))
        options = with_wrapper(extra_args["model_options"], WrappersMP.CALC_COND_BATCH, run.around_conds)
        out = executor(guider, sigmas, {**extra_args, "model_options": options}, callback, noise, *args, **kwargs)
        run.report_silent_layers()
        return out

    return wrapper


@dataclass(frozen=True)
class _Run:
    injection: StyleInjection
    layers: tuple[LayerId, ...]
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
        weights = self.injection.gate.weights(sigma, self.layers, self.to_sigma)
        return layer_styles(weights, self.layers, self.injection.settings)

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
        pictures = call.options.get(PICTURES, call.rows)
        if self.hidden is None:
            rows = _first_row(call.chunks, pictures)
            return self._with_styles(with_free_first_row(call), styles, rows).run(executor)
        rows = Rows(call.chunks, 0, pictures, call.rows)
        call = with_hidden_rows(call, self.hidden, executor.class_obj, positive)
        call = replace(call, options={**call.options, PICTURES: pictures})
        return without_hidden_rows(self._with_styles(call, styles, rows).run(executor), call.chunks)

    def report_silent_layers(self) -> None:
        """Name the layers that were open in this run and never ran."""
        silent = [str(layer) for layer in self.layers if layer in self.opened - self.called]
        if silent:
            logging.warning(
                "Style injection: %s selected but never ran, so another patch must have replaced or skipped %s.",
                ", ".join(silent) + (" was" if len(silent) == 1 else " were"),
                "it" if len(silent) == 1 else "them",
            )

    def _with_styles(self, call: ModelCall, styles: Mapping[LayerId, LayerStyle], rows: Rows) -> ModelCall:
        make = {layer: functools.partial(self._replacement, layer, style, rows) for layer, style in styles.items()}
        return replace(call, options=with_attention_replaced(call.options, "attn1", make))

    def _replacement(
        self, layer: LayerId, style: LayerStyle, rows: Rows, earlier: ReplaceFunction | None
    ) -> ReplaceFunction:
        def replaced(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra_options: dict[str, Any]) -> torch.Tensor:
            self.called.add(layer)
            if earlier is None:
                return inject(q, k, v, style, rows, functools.partial(plain_attention, extra_options=extra_options))
            return inject_through(q, k, v, style, rows, lambda q, k, v, bias: earlier(q, k, v, extra_options))

        return replaced


def _first_row(chunks: int, pictures: int) -> Rows:
    if pictures < 2:
        raise ValueError(
            "Style injection takes style from the first picture of the batch, and this batch has only one: "
            "raise 'batch_size' of the latent to 2 or more, or connect a 'reference'."
        )
    return Rows(chunks, 1, pictures, 0)
