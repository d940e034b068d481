"""Turns the attention to a phrase up: the method jvp, and weights of layers and heads by what they move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...engine.attribution import COARSE_STEP, STEPS, contribution
from ...engine.layers import LayerId
from ...engine.subject import Phrase
from .calls import LayerCall, with_calls_read
from .prediction import Prediction


def step_of(prediction: Prediction) -> float:
    """How far a column is turned up, for the precision in which the model computes."""
    return STEPS.get(prediction.precision, COARSE_STEP)


def scaled(prediction: Prediction, phrase: Phrase, steps: Mapping[LayerId, float | torch.Tensor]) -> dict[str, Any]:
    """Options under which each layer adds (1 + step) times the phrase's contribution; a step may differ by head."""

    def turn_up(call: LayerCall) -> torch.Tensor:
        out, step = call.output.clone(), steps[call.layer]
        for part in call.parts:
            column = call.column(part, phrase)
            column = column * (step.to(column)[:, None, None] if isinstance(step, torch.Tensor) else step)
            out[part.rows] += contribution(column, call.v[part.rows], part.positions(phrase), call.heads)
        return out

    return with_calls_read(prediction, steps, turn_up)


def layer_sensitivity(prediction: Prediction, phrases: Sequence[Phrase], layer: LayerId, heads: int) -> torch.Tensor:
    """How far the predicted noise moves with this layer's columns alone [heads], alike for all: one pass a phrase."""
    return _moved(prediction, phrases, layer, torch.ones(heads)).expand(heads)


def head_sensitivity(prediction: Prediction, phrases: Sequence[Phrase], layer: LayerId, heads: int) -> torch.Tensor:
    """How far the predicted noise moves with each head's columns alone [heads]: one pass a head and phrase."""
    return torch.stack([_moved(prediction, phrases, layer, one) for one in torch.eye(heads)])


def _moved(prediction: Prediction, phrases: Sequence[Phrase], layer: LayerId, heads: torch.Tensor) -> torch.Tensor:
    step = step_of(prediction)
    changes = [
        prediction.predict(scaled(prediction, phrase, {layer: step * heads})) - prediction.base for phrase in phrases
    ]
    return torch.linalg.vector_norm(torch.stack(changes).float()) / step
