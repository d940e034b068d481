"""The method jvp: how far a prediction moves when the subject's attention is turned up."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ....engine.attribution import COARSE_STEP, STEPS, columns, spoken, strength
from ....engine.layers import LayerId
from ....engine.subject import Phrase
from ...arch.attention import ReplaceFunction, with_attention_replaced
from ..layers import Layers
from ..prediction import Prediction, attend, rows_of
from ..propagation import Spread


def by_scaling(
    prediction: Prediction, phrases: Sequence[Phrase], layers: Layers, spread: Spread | None = None
) -> torch.Tensor:
    """How far the predicted noise moves when a phrase's columns of attention are turned up: |d eps / d a| at a = 1.

    A finite difference in the columns' common factor a, the softmax left as it is: one forward pass for each phrase,
    any backend, and every output's own derivative at once (the sum over heads and queries of W dL/dW).
    """
    step = STEPS.get(prediction.precision, COARSE_STEP)
    maps = []
    for phrase in phrases:
        options = scaled(prediction, phrase, {layer: step * weight for layer, weight in layers.asked.items()})
        if spread is not None:
            options = spread.watching(options)
        moved = prediction.predict(options)
        maps.append(strength(prediction.noise(moved) - prediction.noise(prediction.base)) / step)
    return torch.stack(maps)


def scaled(prediction: Prediction, phrase: Phrase, steps: Mapping[LayerId, float | torch.Tensor]) -> dict[str, Any]:
    """Options under which each layer says (1 + step) times what it says of the phrase; a step may differ by head."""

    def scaling(layer: LayerId, step: float | torch.Tensor, earlier: ReplaceFunction | None) -> ReplaceFunction:
        def replaced(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
            prediction.ran.add(layer)
            out = attend(earlier, q, k, v, extra).clone()
            for part in rows_of(prediction, q, k, extra):
                rows, heads, positions = part.rows, extra["n_heads"], part.positions(phrase)
                column = columns(q[rows], k[rows], positions, heads)
                column = column * (step.to(column)[:, None, None] if isinstance(step, torch.Tensor) else step)
                out[rows] += spoken(column, v[rows], positions, heads)
            return out

        return replaced

    make = {layer: functools.partial(scaling, layer, step) for layer, step in steps.items()}
    return with_attention_replaced(prediction.options, "attn2", make)


def layer_sensitivity(prediction: Prediction, phrases: Sequence[Phrase], layer: LayerId, heads: int) -> torch.Tensor:
    """How far the predicted noise moves with this layer's columns alone [heads], alike for all: one pass a phrase."""
    return _moved(prediction, phrases, layer, torch.ones(heads)).expand(heads)


def head_sensitivity(prediction: Prediction, phrases: Sequence[Phrase], layer: LayerId, heads: int) -> torch.Tensor:
    """How far the predicted noise moves with each head's columns alone [heads]: one pass a head and phrase."""
    return torch.stack([_moved(prediction, phrases, layer, one) for one in torch.eye(heads)])


def _moved(prediction: Prediction, phrases: Sequence[Phrase], layer: LayerId, heads: torch.Tensor) -> torch.Tensor:
    step = STEPS.get(prediction.precision, COARSE_STEP)
    changes = [
        prediction.predict(scaled(prediction, phrase, {layer: step * heads})) - prediction.base for phrase in phrases
    ]
    return torch.stack(changes).float().norm() / step
