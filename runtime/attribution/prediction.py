"""One conditional prediction of a run that can be made again, and where a subject's text stands in a layer's call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.model_base import BaseModel

from ...engine.layers import LayerId
from ...engine.subject import Phrase
from ..arch.attention import ReplaceFunction, plain_attention
from .subject import Subject


@dataclass(frozen=True)
class Prediction:
    """The conditional prediction of a run at one noise level, which can be made again with other options.

    `predict` takes transformer_options and returns x0 [B, C, h, w]; `known` is what it returned under `options`, where
    the run has already asked. `texts` gives the number of tokens of each prompt that holds the subject's text, by
    ComfyUI's id for it. `ran` collects the cross-attention layers that were asked and did run.
    """

    predict: Callable[[dict[str, Any]], torch.Tensor]
    options: dict[str, Any]
    known: torch.Tensor | None
    x: torch.Tensor
    sigma: torch.Tensor
    texts: Mapping[Any, int]
    precision: torch.dtype
    ran: set[LayerId] = field(default_factory=set)

    @functools.cached_property
    def base(self) -> torch.Tensor:
        """The prediction as it is."""
        return self.predict(self.options) if self.known is None else self.known

    def noise(self, denoised: torch.Tensor) -> torch.Tensor:
        """The predicted noise, whatever the model predicts: (x - x0) / sigma."""
        return (self.x - denoised) / self.sigma.reshape(-1, 1, 1, 1)


def texts_of(prompts: Sequence[dict[str, Any]], subject: Subject, method: str) -> dict[Any, int]:
    """Which of a run's positive prompts hold the subject's text, and how many tokens each has.

    Raises ValueError when none does, or when one is confined to an area and the method cannot see where.
    """
    text = subject.text
    found = [prompt for prompt in prompts if _begins_with(prompt.get("cross_attn"), text)]
    if not found:
        raise ValueError(
            "'subject' was read from another prompt than the sampler's positive one: connect the conditioning of the "
            "same Subject node to 'positive'."
        )
    if method != "jvp" and any("area" in prompt for prompt in found):
        raise ValueError(f"'method' {method} cannot tell where a prompt's area lies: choose jvp, or remove the area.")
    return {prompt["uuid"]: prompt["cross_attn"].shape[1] for prompt in found}


def _begins_with(context: torch.Tensor | None, text: torch.Tensor) -> bool:
    if context is None or context.shape[1] < text.shape[1] or context.shape[2] != text.shape[2]:
        return False
    start = context[:, : text.shape[1]]
    return bool((start.to(text) == text).all())


def precision_of(model: BaseModel) -> torch.dtype:
    """What the UNet computes in."""
    return model.manual_cast_dtype or model.get_dtype()


@dataclass(frozen=True)
class Rows:
    """The pictures of one prompt inside a layer's call, and where a phrase's tokens stand in its keys."""

    rows: slice
    keys: int
    tokens: int

    def positions(self, phrase: Phrase) -> list[int]:
        """ComfyUI repeats a short prompt when it runs beside a long one; the tokens then stand there several times."""
        starts = range(0, self.keys, self.tokens)
        return [start + position for start in starts for position in phrase.positions]


def rows_of(prediction: Prediction, q: torch.Tensor, k: torch.Tensor, options: dict[str, Any]) -> Iterator[Rows]:
    """The chunks of a call that run the subject's text; rows behind the pictures are other nodes' own."""
    ids = options.get("uuids", ())
    for place, name in enumerate(ids):
        if name in prediction.texts:
            start = place * (q.shape[0] // len(ids))
            yield Rows(slice(start, start + prediction.x.shape[0]), k.shape[1], prediction.texts[name])


def attend(
    earlier: ReplaceFunction | None, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor:
    return plain_attention(q, k, v, None, options) if earlier is None else earlier(q, k, v, options)


def grid_of(options: dict[str, Any]) -> tuple[int, int]:
    return tuple(options["activations_shape"][2:4])
