"""Steps of a training: fp32 master weights, running averages, gradients shared over processes."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from demo.training.muon import Muon


def save(weights: dict[str, Tensor], path: Path) -> None:
    """Write fp16 weights; the file is replaced whole or not at all."""
    halves = {k: (v.half() if v.is_floating_point() else v).cpu().contiguous() for k, v in weights.items()}
    part = path.with_suffix(".part")
    save_file(halves, part)
    os.replace(part, path)


def agreed(progress: float) -> float:
    """The first process's clock counts for all, or they would not stop at the same step."""
    if not torch.distributed.is_initialized():
        return progress
    message = torch.tensor(progress, dtype=torch.float64)
    torch.distributed.broadcast(message, 0)
    return float(message)


AVERAGE_EVERY = 10  # steps; averaging every step would cost a CPU a tenth of its time


class Trainer:
    """Steps on fp32 master copies of the weights, with warm-up, cosine decay and a running average.

    AdamW; with a `muon_rate`, Muon for the layers' matrices.
    """

    def __init__(self, *modules: nn.Module, rate: float, muon_rate: float | None = None, average: float = 0.99) -> None:
        self.weights = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.masters = [p.detach().float().clone() for p in self.weights]
        share_start(self.masters)
        self.averages = [p.clone() for p in self.masters]
        self.gradients = torch.zeros(sum(p.numel() for p in self.masters), device=self.masters[0].device)
        parts = self.gradients.split([p.numel() for p in self.masters])
        for master, part in zip(self.masters, parts, strict=True):
            master.grad = part.as_strided(master.shape, master.stride())  # a fused step needs one layout
        orthogonal = layer_matrices(modules) if muon_rate else set()
        of_muon = [id(weight) in orthogonal for weight in self.weights]
        self.muon = Muon([m for m, chosen in zip(self.masters, of_muon, strict=True) if chosen])
        rest = [m for m, chosen in zip(self.masters, of_muon, strict=True) if not chosen]
        self.adamw = torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.rate, self.muon_rate, self.average, self.count = rate, muon_rate or 0.0, average, 0

    def step(self, loss: Tensor, progress: float) -> None:
        loss.backward()
        self.apply(taken_gradients(self.weights), progress)

    def apply(self, gradients: list[Tensor], progress: float) -> None:
        """One step along gradients of the weights."""
        torch._foreach_copy_([p.grad for p in self.masters], gradients)
        if torch.distributed.is_initialized():
            share_gradients(self.gradients)
        if self.gradients.is_cuda:  # one bad number in bfloat16 must not cost ten minutes of a GPU
            self.gradients.nan_to_num_(0.0, 0.0, 0.0)
        nn.utils.clip_grad_norm_(self.masters, 1.0, foreach=True)
        warmth, decay = min(1.0, (progress + 1e-3) / 0.03), 0.5 + 0.5 * math.cos(math.pi * progress)
        self.adamw.param_groups[0]["lr"] = self.rate * warmth * decay
        self.adamw.step()
        self.muon.step(self.muon_rate * warmth * decay)
        self.count += 1
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.masters)
            if self.count < AVERAGE_EVERY or self.count % AVERAGE_EVERY == 0:
                done = self.count / AVERAGE_EVERY
                torch._foreach_lerp_(self.averages, self.masters, 1 - min(self.average, done / (done + 10)))

    def state(self) -> dict[str, object]:
        """All that `restore` needs to go on as if there had been no stop."""
        return {**self._kept(), "adamw": self.adamw.state_dict(), "count": self.count}

    @torch.no_grad()
    def restore(self, state: dict[str, object]) -> None:
        """Raises ValueError where the state is of other weights."""
        for name, mine in self._kept().items():
            if [part.shape for part in mine] != [part.shape for part in state[name]]:
                raise ValueError("A checkpoint is of networks of other shapes: delete it, or train in another folder.")
            if mine:
                torch._foreach_copy_(mine, [part.to(mine[0].device) for part in state[name]])
        self.adamw.load_state_dict(state["adamw"])
        self.count = state["count"]
        torch._foreach_copy_(self.weights, self.masters)

    def _kept(self) -> dict[str, list[Tensor]]:
        return {"masters": self.masters, "averages": self.averages, "moments": self.muon.moments}

    def averages_of(self, module: nn.Module) -> dict[str, Tensor]:
        """The state of a module that learnt, its weights averaged, in fp32."""
        averages = {id(weight): average for weight, average in zip(self.weights, self.averages, strict=True)}
        learnt = {name: averages[id(p)] for name, p in module.named_parameters() if id(p) in averages}
        return module.state_dict() | learnt

    @torch.no_grad()
    def use_averages(self) -> None:
        torch._foreach_copy_(self.weights, self.averages)


def layer_matrices(modules: tuple[nn.Module, ...]) -> set[int]:
    """Identities of the weights that Muon suits: of linear and convolution layers with at least 32 outputs."""
    layers = (layer for module in modules for layer in module.modules() if isinstance(layer, (nn.Linear, nn.Conv2d)))
    return {id(layer.weight) for layer in layers if len(layer.weight) >= 32}


@torch.no_grad()
def share_start(weights: list[Tensor]) -> None:
    """Every process begins with the first one's weights: those drawn at random differ."""
    if torch.distributed.is_initialized():
        for weight in weights:
            torch.distributed.broadcast(weight, 0)


def share_gradients(gradients: Tensor) -> None:
    """Average gradients over the processes, in one message."""
    torch.distributed.all_reduce(gradients)
    gradients /= torch.distributed.get_world_size()


def taken_gradients(weights: list[Tensor]) -> list[Tensor]:
    """The weights' gradients, zero where there are none, which the weights keep no longer."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in weights]
    for weight in weights:
        weight.grad = None
    return gradients
