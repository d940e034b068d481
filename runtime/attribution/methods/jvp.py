"""The method jvp: how far a prediction moves when the attention to a phrase is turned up."""

from __future__ import annotations

from typing import ClassVar

import torch

from ....engine.attribution import strength
from ..question import Question
from ..rounding import exact
from ..scaling import scaled, step_of
from .base import Method, register


@register
class JVP(Method):
    """|d eps / d a| at a = 1, where a is a common factor of a phrase's columns of attention.

    A finite difference, the softmax left as it is: one forward pass for each phrase, any backend, and every output's
    own derivative at once (the sum over heads and queries of W dL/dW).
    """

    name: ClassVar[str] = "jvp"
    about: ClassVar[str] = (
        "how far the prediction moves when attention to the subject is turned up; one more pass for each phrase, wants "
        "fp32 or fp16."
    )
    sees_areas: ClassVar[bool] = True

    def maps(self, question: Question) -> torch.Tensor:
        prediction = exact(question.prediction)
        step = step_of(prediction)
        steps = {layer: step * weight for layer, weight in question.layers.targets.items()}
        maps = []
        for phrase in question.phrases:
            moved = prediction.predict(question.propagation.recording(scaled(prediction, phrase, steps)))
            maps.append(strength(prediction.noise(moved) - prediction.noise(prediction.base)) / step)
        return torch.stack(maps)
