"""What a gate is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch

from ..layers import LayerId
from ..windows import ROUNDING

ToSigma = Callable[[float], float]
"""Percent of the schedule (0 start, 1 end) to sigma, as the model's sampling object converts it."""


class LayerGate(ABC):
    """Weights in [0, 1] by feature, layer and noise level. Immutable, so that branches of a graph can share one."""

    @abstractmethod
    def weights(self, sigma: float, layers: Sequence[LayerId], to_sigma: ToSigma) -> torch.Tensor:
        """Weights [3, L] in float64, along FEATURES (q, k, v) and `layers`, the model's attention layers.

        Raises ValueError when the gate was made for a model with other layers.
        """

    @property
    def windows(self) -> tuple[tuple[float, float], ...]:
        """The windows of percent, start and end, of all gates that this one is made of."""
        return ()


def inside(sigma: float, start: float, end: float, to_sigma: ToSigma) -> bool:
    """Whether a noise level lies in a window of percent, both ends included, as ComfyUI's ControlNets count.

    One of few steps often begins just where a window does: rounding must not decide whether it counts. A window that
    ends at 0 holds nothing, also on flow models, whose sigma is 1 there.
    """
    return end > 0 and to_sigma(end) <= sigma * ROUNDING and sigma <= to_sigma(start) * ROUNDING
