"""A gate by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..grammar import Selection
from ..layers import LayerId
from .base import LayerGate, ToSigma


@dataclass(frozen=True)
class WrittenGate(LayerGate):
    """A selection by hand, the same at every noise level."""

    selection: Selection

    def weights(self, sigma: float, layers: Sequence[LayerId], to_sigma: ToSigma) -> torch.Tensor:
        return self.selection.weights(layers)
