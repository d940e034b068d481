"""Steps recorded once and replayed: launching the kernels of a small network takes longer than running them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from demo.training.loop import taken_gradients

Losses = Callable[..., dict[str, Tensor]]
ROUNDS = 3  # before recording, so that libraries have chosen their kernels and taken their memory


class Recorded:
    """Losses and gradients of one kind of step as a CUDA graph, for inputs of the shapes given."""

    def __init__(self, losses: Losses, shares: dict[str, float], weights: list[Tensor], inputs: list[Tensor]) -> None:
        self.inputs = [part.clone() for part in inputs]

        def learn() -> dict[str, Tensor]:
            told = losses(*self.inputs)
            sum(share * told[name] for name, share in shares.items()).backward()
            return {name: loss.detach() for name, loss in told.items()}

        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(ROUNDS):
                learn()
                taken_gradients(weights)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.losses = learn()
        self.gradients = taken_gradients(weights)

    def __call__(self, inputs: list[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Losses and gradients, good until the next call."""
        torch._foreach_copy_(self.inputs, inputs)
        self.graph.replay()
        return self.losses, self.gradients


class Eager:
    """The same, launched anew each time."""

    def __init__(self, losses: Losses, shares: dict[str, float], weights: list[Tensor]) -> None:
        self.losses, self.shares, self.weights = losses, shares, weights

    def __call__(self, inputs: list[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        told = self.losses(*inputs)
        sum(share * told[name] for name, share in self.shares.items()).backward()
        return told, taken_gradients(self.weights)


def stepper(losses: Losses, shares: dict[str, float], weights: list[Tensor], recording: bool) -> Callable:
    """Recorded at its first call, where that is wanted."""
    made: list[Recorded] = []
    eager = Eager(losses, shares, weights)

    def step(inputs: list[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        if not recording:
            return eager(inputs)
        if not made:
            made.append(Recorded(losses, shares, weights, inputs))
        return made[0](inputs)

    return step
