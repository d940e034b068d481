"""Training of the autoencoder, and of its decoder alone."""

from __future__ import annotations

import argparse

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from demo import world
from demo.autoencoder import Autoencoder
from demo.training.loop import Trainer, save, steps
from demo.training.pictures import batch_of, drawn_pool, load_autoencoder


def train_autoencoder(options: argparse.Namespace) -> None:
    """On every style, half of the pictures remixed; latents are kept near unit spread and restored despite noise.

    Latents halved in size or mirrored must give the picture halved or mirrored (EQ-VAE, arXiv 2502.09509): without that
    they look like noise to the UNet, which then learns several times as slowly.
    """
    path = options.out / "autoencoder.safetensors"
    vae = Autoencoder()
    if path.exists() and not options.fresh:
        print(f"autoencoder: going on from {path.name}", flush=True)
        vae.load_state_dict(load_file(path))
    vae.to(options.device, options.dtype, memory_format=torch.channels_last)
    trainer = Trainer(vae, rate=options.rate, muon_rate=10 * options.rate)
    pictures = drawn_pool(options, options.pool // options.processes, world.FAMILY_NAMES)
    for progress, speak in steps(options, options.batch * options.processes, 80_000, "autoencoder"):
        clean = batch_of(pictures, options)
        latents = vae.encode(clean)
        mean, spread = latents.float().mean((0, 2, 3)), latents.float().std((0, 2, 3))
        noisy, target = latents + 0.07 * torch.randn_like(latents), clean
        if trainer.count % 2:
            noisy, target = noisy.flip(3), clean.flip(3)
        fine = difference(vae.decode(noisy), target)
        coarse = difference(vae.decode(functional.avg_pool2d(noisy, 2)), functional.avg_pool2d(target, 2))
        loss = misfit(fine) + 0.5 * misfit(coarse) + 0.01 * (mean.square() + (spread - 1).square()).mean()
        trainer.step(loss, progress)
        if speak:
            print(f"PSNR {-10 * fine.square().mean().log10():.2f} dB, spread {spread.mean():.2f}", flush=True)
    trainer.use_averages()
    if options.rank == 0:
        save(vae.state_dict(), path)


def train_decoder(options: argparse.Namespace) -> None:
    """The decoder alone, on latents that stay as they are: better pictures, and a trained UNet stays valid."""
    vae = load_autoencoder(options)
    trainer = Trainer(vae.decoder.requires_grad_(), rate=options.rate, muon_rate=10 * options.rate)
    pictures = drawn_pool(options, options.pool // options.processes, world.FAMILY_NAMES)
    for progress, speak in steps(options, options.batch * options.processes, 80_000, "decoder"):
        clean = batch_of(pictures, options)
        with torch.no_grad():
            latents = vae.encode(clean)
        noise = 0.05 * torch.rand(len(clean), 1, 1, 1, device=latents.device, dtype=latents.dtype)
        error = difference(vae.decode(latents + noise * torch.randn_like(latents)), clean)
        trainer.step(misfit(error), progress)
        if speak:
            print(f"PSNR {-10 * error.square().mean().log10():.2f} dB", flush=True)
    trainer.use_averages()
    if options.rank == 0:
        save(vae.state_dict(), options.out / "autoencoder.safetensors")


def difference(restored: Tensor, target: Tensor) -> Tensor:
    """In units of the whole brightness range."""
    return (restored - target).float() / 2


def misfit(error: Tensor) -> Tensor:
    return error.abs().mean() + 4 * error.square().mean()
