"""One conditional prediction of a run that can be made again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.model_base import BaseModel

from ...engine.layers import LayerId
from ..arch.base import Architecture


@dataclass
class Calls:
    """The layers whose calls were read: those that held the subject's prompt, other prompts alone, or changed tokens.

    Changed are rows or tokens that another node's patch has merged, tiled or multiplied. `in_parts`: calls with the
    subject's prompt showed a part of the picture each, as an area of the prompt or a node that tiles makes them.
    """

    subject: set[LayerId] = field(default_factory=set)
    other: set[LayerId] = field(default_factory=set)
    changed: set[LayerId] = field(default_factory=set)
    in_parts: bool = False


@dataclass(frozen=True)
class Prediction:
    """The conditional prediction of a run at one noise level, which can be made again with other options.

    `predict` takes transformer_options and returns x0 [B, C, (1,) h, w]; `known` is what it returned under `options`,
    where the run has already asked. `texts` gives the number of tokens of each prompt that holds the subject's text, by
    ComfyUI's id for it. `calls` collects what the target layers' calls turned out to hold.
    """

    predict: Callable[[dict[str, Any]], torch.Tensor]
    options: dict[str, Any]
    known: torch.Tensor | None
    x: torch.Tensor
    sigma: torch.Tensor
    texts: Mapping[Any, int]
    precision: torch.dtype
    architecture: Architecture
    calls: Calls = field(default_factory=Calls)

    @functools.cached_property
    def base(self) -> torch.Tensor:
        """The prediction as it is."""
        return self.predict(self.options) if self.known is None else self.known

    def noise(self, denoised: torch.Tensor) -> torch.Tensor:
        """The predicted noise [B, C, h, w], whatever the model predicts: (x - x0) / sigma; a flow model's velocity."""
        return of_one_frame((self.x - denoised) / self.sigma.reshape(-1, *[1] * (self.x.ndim - 1)))


def of_one_frame(x: torch.Tensor) -> torch.Tensor:
    """A latent [B, C, h, w] whether it has an axis of one frame or not."""
    return x.flatten(1, -3)


def precision_of(model: BaseModel) -> torch.dtype:
    """What the network computes in."""
    return model.manual_cast_dtype or model.get_dtype()
