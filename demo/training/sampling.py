"""Pictures by a model in training, for the eye: no part of ComfyUI's sampling is needed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from demo.autoencoder import CHANNELS, Autoencoder
from demo.nets import CELLS
from demo.training.diffusion import signal_shares
from demo.training.pool import World
from demo.world import scenes

Guess = Callable[[Tensor, Tensor, Tensor], Tensor]


@torch.no_grad()
def painted_sheet(
    guess: Guess, vae: Autoencoder, world: World, options: argparse.Namespace, name: str, flow: bool = False
) -> None:
    """32 prompts painted, and the same scenes drawn beneath each, as one sheet with the prompts in a text file."""
    count = options.sheet
    if not count:
        return
    specs = scenes.random_specs(count, world.dice(-1), subjects=world.subjects)
    texts = scenes.captions(specs.to("cpu"))
    captions, nothing = (world.vocabulary.rows(part).long().to(options.device) for part in (texts, [""] * count))
    torch.manual_seed(options.seed)
    noise = torch.randn(count, CHANNELS, CELLS, CELLS, device=options.device)

    def guided(noisy: Tensor, level: Tensor) -> Tensor:
        levels = level.expand(2 * count)
        wanted, plain = guess(torch.cat([noisy, noisy]), levels, torch.cat([captions, nothing])).chunk(2)
        return plain + 3.0 * (wanted - plain)

    latents = (flowed if flow else denoised)(noise, guided)
    painted = (vae.decode(latents.to(options.dtype)).float() / 2 + 0.5).clamp(0, 1)
    drawn = world.pictures(specs)[0].float() / 255
    rows = [part for pair in zip(painted.split(8), drawn.split(8), strict=True) for part in pair]
    write_sheet(rows, options.out / f"{name}.png")
    (options.out / f"{name}.txt").write_text("\n".join(texts), encoding="utf-8")


def denoised(noisy: Tensor, guided: Callable[[Tensor, Tensor], Tensor], steps: int = 20) -> Tensor:
    """DDIM (arXiv 2010.02502) by v-prediction on SD's schedule."""
    shares = signal_shares(noisy.device)
    times = torch.linspace(999, 0, steps, device=noisy.device).long()
    for index, time in enumerate(times):
        alpha = shares[time]
        sigma = (1 - alpha**2).sqrt()
        v = guided(noisy, time)
        clean, noise = alpha * noisy - sigma * v, sigma * noisy + alpha * v
        after = shares[times[index + 1]] if index + 1 < steps else torch.ones_like(alpha)
        noisy = after * clean + (1 - after**2).sqrt() * noise
    return noisy


def flowed(noisy: Tensor, guided: Callable[[Tensor, Tensor], Tensor], steps: int = 20) -> Tensor:
    """Euler steps along the flow, denser at the noisy end as with Flux's shift of 1.15."""
    even = torch.linspace(1, 0, steps + 1, device=noisy.device)
    levels = torch.e**1.15 * even / (1 + (torch.e**1.15 - 1) * even)
    for level, after in pairwise(levels):
        noisy = noisy + (after - level) * guided(noisy, level)
    return noisy


def write_sheet(rows: list[Tensor], path: Path) -> None:
    """Rows of pictures [N, 3, H, W] in [0, 1] as one PNG; without Pillow a PPM."""
    whole = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
    pixels = (255 * whole).round().byte().movedim(0, -1).cpu().contiguous()
    try:
        from PIL import Image
    except ImportError:
        Image = None
    if Image is None:
        header = f"P6 {pixels.shape[1]} {pixels.shape[0]} 255\n".encode()
        path.with_suffix(".ppm").write_bytes(header + bytes(pixels.flatten().tolist()))
    else:
        Image.fromarray(pixels.numpy()).save(path)
