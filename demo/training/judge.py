"""Training of the judge."""

from __future__ import annotations

import argparse

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from demo import world
from demo.autoencoder import Autoencoder
from demo.judge import Judge
from demo.training.loop import Trainer, save, steps
from demo.training.pictures import encode_bytes, joined, load_autoencoder, rendered


def train_judge(options: argparse.Namespace) -> None:
    """All three networks on pairs of scenes in one style, drawn, autoencoded and spoilt as samplers spoil pictures.

    Half of the pairs are in remixed styles, which are of no family.
    """
    vae, judge, path = load_autoencoder(options), Judge(), options.out / "judge.safetensors"
    if path.exists() and not options.fresh:
        print(f"judge: going on from {path.name}", flush=True)
        judge.load_state_dict(load_file(path))
    judge.to(options.device, memory_format=torch.channels_last).train()
    trainer = Trainer(judge, rate=options.rate, muon_rate=10 * options.rate)
    draw = torch.Generator(options.device).manual_seed(options.seed + 1 + options.rank)
    pairs = options.pool // 4 // options.processes
    first = joined(world.random_specs(pairs // 2, draw), world.random_specs(pairs - pairs // 2, draw, remixed=True))
    second = world.random_specs(pairs, draw).in_style_of(first)
    pictures = rendered(first), rendered(second)
    for progress, speak in steps(options, 2 * options.batch * options.processes, 100_000, "judge"):
        rows = torch.randperm(pairs, device=options.device)[: options.batch]
        batch = torch.cat([part[rows] for part in pictures])
        truth = joined(first[rows], second[rows])
        seen = shifted(spoilt(batch, vae, options.dtype))
        with torch.autocast(options.device, torch.bfloat16, enabled=options.dtype == torch.bfloat16):
            guesses = *judge.content(seen), judge.family(seen)
            style = judge.point(seen)
        truths = truth.subject, truth.background, family_or_none(truth)
        wrong = sum(functional.cross_entropy(*pair) for pair in zip(guesses, truths, strict=True))
        trainer.step(wrong + contrast(style), progress)
        if speak:
            shares = (f"{right(*pair):.3f}" for pair in zip(guesses, truths, strict=True))
            print(
                "subject {}, background {}, family {}".format(*shares), f"style loss {contrast(style):.3f}", flush=True
            )
    trainer.use_averages()
    if options.rank == 0:
        save(judge.state_dict(), path)


NONE = -100  # what `cross_entropy` leaves out


def family_or_none(specs: world.Specs) -> Tensor:
    """[B] family indices, `NONE` for remixed styles."""
    is_pure = (specs.family == specs.family[:, :1]).all(1)
    return torch.where(is_pure, specs.family[:, 0], NONE)


def right(logits: Tensor, truth: Tensor) -> float:
    known = truth != NONE
    return (logits.argmax(1) == truth)[known].float().mean().item()


def shifted(pictures: Tensor, reach: float = 0.12) -> Tensor:
    """Pairs (rows i and i + N) mirrored together, every picture moved by up to `reach` of half its side."""
    count, device = len(pictures), pictures.device
    mirror = torch.where(torch.rand(count // 2, device=device) < 0.5, -1.0, 1.0).repeat(2)
    moves = torch.zeros(count, 2, 3, device=device)
    moves[:, 0, 0], moves[:, 1, 1] = mirror, 1.0
    moves[:, :, 2] = reach * (2 * torch.rand(count, 2, device=device) - 1)
    grid = functional.affine_grid(moves, pictures.shape, align_corners=False)
    return functional.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)


@torch.no_grad()
def spoilt(pictures: Tensor, vae: Autoencoder, dtype: torch.dtype) -> Tensor:
    """Bytes to pictures in [0, 1]: half go through the autoencoder with noisy latents; all get some grain or blur."""
    count = len(pictures)
    kept = torch.rand(count, device=pictures.device) < 0.5
    kept[-1] = False  # an empty batch does not pass through the autoencoder
    latents = encode_bytes(vae, pictures[~kept], dtype)
    noise = 0.3 * torch.rand(len(latents), 1, 1, 1, device=latents.device) * torch.randn_like(latents)
    seen = pictures.float() / 255
    seen[~kept] = (vae.decode(latents + noise.to(dtype)).float() / 2 + 0.5).clamp(0, 1)
    share = torch.rand(count, 1, 1, 1, device=pictures.device)
    blurred = functional.interpolate(functional.avg_pool2d(seen, 2), scale_factor=2, mode="bilinear")
    return torch.lerp(seen, blurred, (2 * share - 1).clamp_min(0)) + 0.05 * share * torch.randn_like(seen)


def contrast(style: Tensor, temperature: float = 0.07) -> Tensor:
    """NT-Xent over [2N, D] unit vectors whose rows i and i + N share a style (arXiv 2002.05709, eq. 1)."""
    count = len(style) // 2
    likeness = style @ style.T / temperature
    likeness.fill_diagonal_(-1e9)
    partner = torch.arange(2 * count, device=style.device).roll(count)
    return functional.cross_entropy(likeness, partner)
