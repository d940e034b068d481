"""Muon, the optimiser: momentum made orthogonal, one weight matrix at a time (Jordan et al. 2024, "Muon").

The demo UNet learns from about half as many pictures with it as with AdamW. Torch's own works in bfloat16, which most
processors only emulate; this one works in fp32 and iterates on the small Gram matrix instead of the whole one.
"""

from __future__ import annotations

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)  # carries singular values from (0, 1] to about 1 in five rounds


def orthogonal(matrix: Tensor, rounds: int = 4) -> Tensor:
    """The nearest semi-orthogonal matrices to [..., M, N] ones, roughly: singular values end in about [0.7, 1.2].

    Newton-Schulz: X <- (a + b A + c A^2) X with A = X X^T. The factors commute, so their product is gathered on the
    short side's Gram matrix and applied once. Scaling by the fourth root of tr A^2, nearer to the largest singular
    value than the usual Frobenius norm, saves a round.
    """
    if matrix.shape[-2] > matrix.shape[-1]:
        return orthogonal(matrix.mT, rounds).mT
    a, b, c = QUINTIC
    gram = matrix @ matrix.mT
    size = gram.norm(dim=(-2, -1), keepdim=True) + 1e-14
    gram = gram / size
    identity = torch.eye(gram.shape[-1], device=gram.device)
    product = identity / size.sqrt()
    for number in range(rounds):
        factor = a * identity + b * gram + c * (gram @ gram)
        product = factor @ product
        if number + 1 < rounds:
            gram = factor @ gram @ factor
    return product @ matrix


class Muon:
    """Steps over fp32 weights of two or more axes (convolutions as [out, in * height * width]).

    Processes that train together share the matrices out among them and exchange the updates.
    """

    def __init__(self, weights: list[Tensor], momentum: float = 0.95, decay: float = 0.01) -> None:
        self.weights, self.momentum, self.decay = weights, momentum, decay
        self.moments = [torch.zeros_like(weight) for weight in weights]
        self.scales = [max(1.0, len(weight) / weight[0].numel()) ** 0.5 for weight in weights]
        self.grouped = bool(weights) and weights[0].is_cuda
        together = torch.distributed.is_initialized()
        self.rank, self.ranks = (
            (torch.distributed.get_rank(), torch.distributed.get_world_size()) if together else (0, 1)
        )

    @torch.no_grad()
    def step(self, rate: float) -> None:
        if not self.weights:
            return
        updates = self.exchanged(self.updates())
        torch._foreach_mul_(updates, self.scales)
        torch._foreach_mul_(self.weights, 1 - rate * self.decay)
        torch._foreach_add_(self.weights, updates, alpha=-rate)

    def updates(self) -> list[Tensor]:
        """One per weight; zeros for those that are another process's."""
        gradients = [weight.grad for weight in self.weights]
        torch._foreach_lerp_(self.moments, gradients, 1 - self.momentum)
        ahead = torch._foreach_lerp(gradients, self.moments, self.momentum)
        results = [torch.zeros_like(weight) if self.ranks > 1 else weight for weight in self.weights]
        for alike in self.mine():
            updates = orthogonal(torch.stack([ahead[number].flatten(1) for number in alike]))
            for number, update in zip(alike, updates, strict=True):
                results[number] = update.view(results[number].shape)
        return results

    def mine(self) -> list[list[int]]:
        """This process's weights. On a GPU those of one shape go together, which spares it thousands of tiny steps."""
        numbers = range(self.rank, len(self.weights), self.ranks)
        if not self.grouped:
            return [[number] for number in numbers]
        shapes: dict[tuple[int, int], list[int]] = {}
        for number in numbers:
            shapes.setdefault(tuple(self.weights[number].flatten(1).shape), []).append(number)
        return list(shapes.values())

    def exchanged(self, updates: list[Tensor]) -> list[Tensor]:
        if self.ranks == 1 or not updates:
            return updates
        message = torch.cat([update.flatten() for update in updates])
        torch.distributed.all_reduce(message)
        parts = message.split([update.numel() for update in updates])
        return [part.view_as(update) for part, update in zip(parts, updates, strict=True)]
