"""Gates made of gates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch

from ..grammar import Selection
from ..layers import LayerId
from .base import LayerGate, ToSigma, inside
from .written import WrittenGate


class WindowReversed(ValueError):
    """A window whose `end` comes before its `start`, in percent."""

    def __init__(self, start: float, end: float) -> None:
        super().__init__(f"A window cannot end at {end:g} before it starts at {start:g}: swap the two.")
        self.start, self.end = start, end


@dataclass(frozen=True)
class WindowedGate(LayerGate):
    """A gate that is closed outside a window of percent: `start` <= percent <= `end`."""

    gate: LayerGate
    start: float = 0.0
    end: float = 1.0

    def weights(self, sigma: float, layers: Sequence[LayerId], to_sigma: ToSigma) -> torch.Tensor:
        weights = self.gate.weights(sigma, layers, to_sigma)
        return weights if inside(sigma, self.start, self.end, to_sigma) else torch.zeros_like(weights)

    @property
    def windows(self) -> tuple[tuple[float, float], ...]:
        return ((self.start, self.end), *self.gate.windows)


@dataclass(frozen=True)
class CombinedGate(LayerGate):
    """Two gates under one of OPERATIONS, weight by weight."""

    first: LayerGate
    second: LayerGate
    operation: str

    def weights(self, sigma: float, layers: Sequence[LayerId], to_sigma: ToSigma) -> torch.Tensor:
        combine = OPERATIONS[self.operation]
        return combine(self.first.weights(sigma, layers, to_sigma), self.second.weights(sigma, layers, to_sigma))

    @property
    def windows(self) -> tuple[tuple[float, float], ...]:
        return (*self.first.windows, *self.second.windows)


@dataclass(frozen=True)
class ScaledGate(LayerGate):
    """A gate whose weights are multiplied by `factor`, at most 1 in the end."""

    gate: LayerGate
    factor: float

    def weights(self, sigma: float, layers: Sequence[LayerId], to_sigma: ToSigma) -> torch.Tensor:
        return (self.gate.weights(sigma, layers, to_sigma) * self.factor).clamp(0.0, 1.0)

    @property
    def windows(self) -> tuple[tuple[float, float], ...]:
        return self.gate.windows


OPERATIONS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = MappingProxyType(
    {"and": torch.minimum, "or": torch.maximum, "minus": lambda first, second: first * (1 - second)}
)


def pinned(gate: LayerGate, pins: Selection, exclusions: Selection) -> LayerGate:
    """`gate` with layers added and taken away by hand; where both name a layer, the exclusion wins."""
    if pins.terms:
        gate = CombinedGate(gate, WrittenGate(pins), "or")
    if exclusions.terms:
        gate = CombinedGate(gate, WrittenGate(exclusions), "minus")
    return gate


def windowed(gate: LayerGate, start: float, end: float) -> LayerGate:
    """`gate` inside a window of percent; the full window changes nothing.

    Raises WindowReversed when the window ends before it starts.
    """
    if end < start:
        raise WindowReversed(start, end)
    return gate if (start, end) == (0.0, 1.0) else WindowedGate(gate, start, end)
