"""The one thing that every attribution method is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...engine.subject import Phrase
from .calls import Respond, with_calls_read
from .gradients import with_sdpa
from .prediction import Prediction
from .rounding import unrounded

if TYPE_CHECKING:
    from .layers import Layers
    from .propagation import Propagation
    from .settings import AttributionSettings


class InParts(Exception):
    """A method that reads maps was given a prediction whose calls show a part of the picture each."""


@dataclass(frozen=True)
class Question:
    """Where do these phrases act in this prediction, as the target layers see it?"""

    prediction: Prediction
    phrases: tuple[Phrase, ...]
    layers: Layers
    settings: AttributionSettings
    propagation: Propagation

    def predict(self, respond: Respond, differentiable: bool = False) -> torch.Tensor:
        """The prediction x0 [B, C, h, w] made once more, with every target layer's call going through `respond`.

        What propagation needs is recorded on the way. With `differentiable`, attention runs in a kernel that has a
        backward pass, and no layer rounds its input, which has none.
        """
        options = with_calls_read(self.prediction, self.layers.targets, respond)
        if differentiable:
            options = unrounded(with_sdpa(options))
        out = self.prediction.predict(self.propagation.recording(options))
        if self.prediction.calls.in_parts and not self.settings.way.sees_areas:
            raise InParts
        return out
