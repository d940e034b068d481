"""Inversion: the noise from which a model paints a given picture, and what is lost on the way.

In ComfyUI's scale x = x0 + sigma * noise (flow models: (1 - sigma) * x0 + sigma * noise) a step of DDIM is a step of
Euler along d = (x - x0) / sigma, so one function inverts eps, v and flow. A step down from (x', s') to (x, s) is
x = x' + (s - s') d(x', s'). Its inverse is implicit, x' = x + (s' - s) d(x', s'): DDIM inversion (arXiv 2010.02502, eq.
14) puts x for x' on the right; each refinement puts in what it just found (AIDI, arXiv 2306.05425).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .devices import double

Predict = Callable[[torch.Tensor, float], torch.Tensor]
"""The clean picture x0 [B, C, ..., H, W] that a model predicts from x at sigma > 0."""


@dataclass(frozen=True)
class Pull:
    """RF-Inversion's controller (arXiv 2410.10792, eq. 8): `gamma` of every step goes straight to `target`.

    `target` [B, C, ..., H, W] is what should be reached at sigma `top`; gamma 0 is the model's own way.
    """

    gamma: float
    target: torch.Tensor
    top: float


def invert(
    picture: torch.Tensor, sigmas: Sequence[float], predict: Predict, refinements: int = 0, pull: Pull | None = None
) -> list[torch.Tensor]:
    """The states at falling `sigmas` [T + 1], whose last is 0: the picture itself comes last, its noise first."""
    states = [picture]
    for low, high in zip(sigmas[:0:-1], sigmas[-2::-1], strict=True):
        x = states[0]
        found = x
        for _ in range(1 + refinements):
            slope = (found - predict(found, high)) / high
            found = x + (high - low) * (slope if pull is None else _pulled(slope, x, low, pull))
        states.insert(0, found)
    return states


def _pulled(slope: torch.Tensor, x: torch.Tensor, sigma: float, pull: Pull) -> torch.Tensor:
    straight = (pull.target - x) / (pull.top - sigma)
    return torch.lerp(slope, straight, pull.gamma)


def wanted(x: torch.Tensor, after: torch.Tensor, sigma: float, sigma_after: float) -> torch.Tensor:
    """The prediction x0 with which a step of Euler from `x` at `sigma` ends at `after`."""
    return x - sigma * (after - x) / (sigma_after - sigma)


def retrace(
    states: Sequence[torch.Tensor], sigmas: Sequence[float], predict: Predict, correct: bool
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The picture that Euler's steps reach from the first state, and what every prediction was corrected by.

    With `correct` each prediction is moved to the one that ends at the next state (Direct Inversion, arXiv 2310.01506):
    the corrections [T], in the order of steps, bring the picture back exactly. Without, they are zero.
    """
    x, corrections = states[0], []
    for after, sigma, sigma_after in zip(states[1:], sigmas, sigmas[1:], strict=False):
        predicted = predict(x, sigma)
        missing = wanted(x, after, sigma, sigma_after) - predicted if correct else torch.zeros_like(x)
        corrections.append(missing)
        x = x + (sigma_after - sigma) * (x - predicted - missing) / sigma
    return x, corrections


def decibels(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Peak signal to noise ratio in dB, where the peak is the range of what was expected; infinite when equal."""
    error = double(found - expected).square().mean()
    span = double(expected.max() - expected.min())
    return float("inf") if error == 0 else float(10 * torch.log10(span.square() / error))
