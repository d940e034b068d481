"""What a gate is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch

from ..layers import LayerId

ToSigma = Callable[[float], float]
"""Percent of the schedule (0 start, 1 end) to sigma, as the model's sampling object converts it."""


class LayerGate(ABC):
    """Weights in [0, 1] by feature, layer and noise level. Immutable, so that branches of a graph can share one."""

    @abstractmethod
    def weights(self, sigma: float, layers: Sequence[LayerId], to_sigma: ToSigma) -> torch.Tensor:
        """Weights [3, L] in float64, along FEATURES (q, k, v) and `layers`, the model's attention layers.

        Raises ValueError when the gate was made for a model with other layers.
        """


def inside(sigma: float, start: float, end: float, to_sigma: ToSigma) -> bool:
    """Whether a noise level lies in a window of percent, both ends included, as ComfyUI's ControlNets count."""
    return to_sigma(end) <= sigma <= to_sigma(start)
