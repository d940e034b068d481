"""Muon, the optimiser: momentum made orthogonal, one weight matrix at a time (Jordan et al. 2024, "Muon").

The demo UNet learns from about half as many pictures with it as with AdamW. Torch's own works in bfloat16, which most
processors only emulate; this one works in fp32 and iterates on the small Gram matrix instead of the whole one.
"""

from __future__ import annotations

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)  # carries singular values from (0, 1] to about 1 in five rounds


def orthogonal(matrix: Tensor, rounds: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix to a [M, N] one, roughly: singular values end in about [0.7, 1.2].

    Newton-Schulz: X <- (a + b A + c A^2) X with A = X X^T. The factors commute, so their product is gathered on the
    short side's Gram matrix and applied once.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T, rounds).T
    a, b, c = QUINTIC
    scaled = matrix / (matrix.norm() + 1e-7)
    gram = scaled @ scaled.T
    identity = torch.eye(len(gram), device=gram.device)
    product = identity
    for number in range(rounds):
        factor = a * identity + b * gram + c * (gram @ gram)
        product = factor @ product
        if number + 1 < rounds:
            gram = factor @ gram @ factor
    return product @ scaled


class Muon:
    """Steps over fp32 weights of two or more axes (convolutions as [out, in * height * width])."""

    def __init__(self, weights: list[Tensor], momentum: float = 0.95, decay: float = 0.01) -> None:
        self.weights, self.momentum, self.decay = weights, momentum, decay
        self.moments = [torch.zeros_like(weight) for weight in weights]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for weight, moment in zip(self.weights, self.moments, strict=True):
            moment.lerp_(weight.grad, 1 - self.momentum)
            update = orthogonal(weight.grad.lerp(moment, self.momentum).flatten(1))
            scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
            weight.mul_(1 - rate * self.decay).add_(update.view(weight.shape), alpha=-rate * scale)
