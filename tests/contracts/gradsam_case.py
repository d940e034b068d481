"""What the attribution and blend contracts share: subjects of tiny models, predictions, and a second, plain model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from style_case import HEIGHT, WIDTH, empty

from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.masks import MaskSettings
from conditional_balance.engine.subject import Phrase
from conditional_balance.engine.windows import parse_windows
from conditional_balance.runtime.arch.registry import architecture_of
from conditional_balance.runtime.attribution.layers import chosen_layers
from conditional_balance.runtime.attribution.measured import Attribution, Measured
from conditional_balance.runtime.attribution.prediction import Prediction
from conditional_balance.runtime.attribution.propagation import Propagation
from conditional_balance.runtime.attribution.question import Question
from conditional_balance.runtime.attribution.settings import AttributionSettings
from conditional_balance.runtime.attribution.subject import Subject
from conditional_balance.runtime.inject.blend import Blend, blend_reference
from tiny import cond, latent, sample

ALL_ONES = MaskSettings(blur=0, rule="top share", amount=1.0, dilate=0)
ALL_ZEROS = MaskSettings(blur=0, rule="top share", amount=0.0, dilate=0)
HALF = MaskSettings(blur=0, rule="top share", amount=0.5, dilate=0)


def subject_of(of: Any, seed: int = 1, positions: tuple[int, ...] = (2, 3), tokens: int = 77) -> Subject:
    """A subject in random text, the text that `run` samples with."""
    return Subject(cond(of, seed, tokens=tokens), (Phrase("fox", positions),))


def blended(
    of: Any, windows: str = "0.2-0.6, 0.6-0.9", subject: Subject | None = None, **settings: Any
) -> tuple[Any, Attribution]:
    """The model under a blend with a random reference, and what its runs measure."""
    attribution = {name: settings.pop(name) for name in ("method", "layers", "propagation") if name in settings}
    reference = settings.pop("reference", latent(5, height=HEIGHT, width=WIDTH)["samples"])
    settings["attribution"] = AttributionSettings(**attribution)
    return blend_reference(of, Blend(reference, subject or subject_of(of), parse_windows(windows), **settings))


def latest(attribution: Attribution) -> list[Measured]:
    """What the latest run measured."""
    return list(next(reversed(attribution._runs.values())).windows) if attribution._runs else []


def told_of(attribution: Attribution) -> tuple[str, ...]:
    """What the latest run said."""
    return next(reversed(attribution._runs.values())).warnings


def run(of: Any, batch: int = 1, **options: Any) -> torch.Tensor:
    """A short run with the subject's text, the same noise each time."""
    options = {"positive": cond(of, 1), "negative": cond(of, 2), "latent": empty(batch), "steps": 4, **options}
    return sample(of, **options)


def plain_copy(build: Callable[[], Any]) -> Any:
    """A tiny model whose weights are ordinary tensors, so that autograd needs no help with it."""
    of = build()
    with torch.inference_mode(False):
        for module in of.model.modules():
            for name, value in module.named_parameters(recurse=False):
                setattr(module, name, torch.nn.Parameter(value.clone(), requires_grad=False))
            for name, value in module.named_buffers(recurse=False):
                setattr(module, name, value.clone())
    return of


def written_out(q: torch.Tensor, k: torch.Tensor, heads: int) -> torch.Tensor:
    """Attention probabilities [rows, heads, queries, keys], by the book."""
    q, k = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k))
    return (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)


def applied(weights: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    heads = weights.shape[1]
    return rearrange(weights @ rearrange(v, "b n (h d) -> b h n d", h=heads), "b h n d -> b n (h d)")


def by_the_book(
    function: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """An attention override that has every kind of derivative."""
    heads = args[0] if args else kwargs["heads"]
    return applied(written_out(q, k, heads), v)


def prediction_of(of: Any, context: torch.Tensor, x: torch.Tensor, sigma: float, **options: Any) -> Prediction:
    """One prediction of a model outside any sampler."""
    of.model.current_patcher = of
    sigmas = torch.full((len(x),), sigma)
    options = {"cond_or_uncond": [0], "uuids": ["it"], "sigmas": sigmas, **options}

    def predict(options: dict[str, Any]) -> torch.Tensor:
        return of.model.apply_model(x, sigmas, c_crossattn=context, transformer_options=options)

    return Prediction(predict, options, None, x, sigmas, {"it": context.shape[1]}, torch.float32, architecture_of(of))


def question_of(of: Any, prediction: Prediction, settings: AttributionSettings, *phrases: Phrase) -> Question:
    """What a method is given, by the model's own choice of layers."""
    layers = chosen_layers(of, settings)
    return Question(prediction, phrases, layers, settings, Propagation(prediction, layers, settings.propagation))


def layer(text: str) -> LayerId:
    return LayerId.parse(text)
