"""A LoRA of the demo UNet (arXiv 2106.09685), in the names that ComfyUI and other trainers use."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor, nn

from demo.training.diffusion import OutOfPlace, drawn_times, noised, plain_attention

TARGETS = re.compile(r"\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$|\.ff\.net\.(0\.proj|2)$")
LEAN = 1.2  # as the UNet's own training


class Lessons(NamedTuple):
    """What is learnt: latents [N, 8, h, w], and the text [N, 77, D] and `y` [N, Y] of their captions.

    The last row of the two is no text at all, which one picture in ten is shown under.
    """

    latents: Tensor
    context: Tensor
    y: Tensor


class How(NamedTuple):
    rank: int = 8
    steps: int = 100
    batch: int = 4
    rate: float = 2e-3
    seed: int = 0


class Adapter(nn.Module):
    """up(down(x)) beside a linear layer."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def beside(self, _layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + self.up(self.down(inputs[0]))


def train_lora(unet: nn.Module, lessons: Lessons, how: How) -> dict[str, Tensor]:
    """Weights of a LoRA at the UNet's attention and feed-forward layers; the UNet, in fp32, is left as it was."""
    torch.manual_seed(how.seed)
    layers = {name: layer for name, layer in unet.named_modules() if TARGETS.search(name)}
    adapters = {name: Adapter(layer, how.rank) for name, layer in layers.items()}
    hooks = [layers[name].register_forward_hook(adapter.beside) for name, adapter in adapters.items()]
    learnt = [weight for adapter in adapters.values() for weight in adapter.parameters()]
    optimiser = torch.optim.AdamW(learnt, how.rate, weight_decay=0.0)
    slowing = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, how.steps)
    try:
        with torch.enable_grad():
            for step in range(how.steps):
                loss = misfit(unet, lessons, how.batch)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                slowing.step()
                if step % 20 == 0:
                    print(f"step {step}, loss {loss.item():.3f}", flush=True)
    finally:
        for hook in hooks:
            hook.remove()
    return named(adapters, how.rank)


def misfit(unet: nn.Module, lessons: Lessons, count: int) -> Tensor:
    """Mean square error of v on `count` pictures drawn at random."""
    rows = torch.randint(len(lessons.latents), (count,))
    said = torch.where(torch.rand(count) < 0.1, len(lessons.latents), rows)
    times = drawn_times(count, "cpu", LEAN)
    noisy, target = noised(lessons.latents[rows], times, torch.float32)
    options = {"optimized_attention_override": plain_attention}
    with OutOfPlace():
        v = unet(noisy, times, lessons.context[said], y=lessons.y[said], transformer_options=options)
    return (v - target).square().mean()


def named(adapters: dict[str, Adapter], rank: int) -> dict[str, Tensor]:
    found = {}
    for name, adapter in adapters.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        found[f"{key}.lora_down.weight"] = adapter.down.weight.detach().contiguous()
        found[f"{key}.lora_up.weight"] = adapter.up.weight.detach().contiguous()
        found[f"{key}.alpha"] = torch.tensor(float(rank))
    return found
