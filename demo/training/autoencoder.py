"""Training of the autoencoder, from the shipped one where there is one."""

from __future__ import annotations

import argparse

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from demo.autoencoder import Autoencoder
from demo.training.loop import Trainer, save
from demo.training.pool import Pool, World
from demo.training.run import Run
from demo.world import scenes

CROP = 128


def train_autoencoder(options: argparse.Namespace, world: World) -> None:
    """On crops of scenes; latents are kept near unit spread and restored despite noise.

    Latents halved in size or mirrored must give the picture halved or mirrored (EQ-VAE, arXiv 2502.09509).
    """
    vae = Autoencoder()
    if options.start.exists():
        vae.load_state_dict({name: weight.float() for name, weight in load_file(options.start).items()})
    vae.to(options.device, options.dtype, memory_format=torch.channels_last)
    trainer = Trainer(vae, rate=options.rate / 2, muon_rate=5 * options.rate)
    run = Run("autoencoder", options, trainer)

    def drawn(number: int) -> Tensor:
        specs = scenes.random_specs(options.renew, world.dice(number), subjects=world.subjects, plain=0.4)
        return world.pictures(specs)[0]

    pool = Pool(drawn, max(1, options.pool // 4), options.renew, options.pause)
    pool.fill(run.step)
    for progress, speak in run.steps(options.batch):
        clean = crops(pool.content[pool.rows(options.batch)], options)
        loss, fine = misfits(vae, clean, mirrored=bool(run.step % 2))
        pool.renew(run.step)
        trainer.step(loss, progress)
        if speak:
            print(f"PSNR {-10 * fine.square().mean().log10():.2f} dB", flush=True)
    trainer.use_averages()
    if options.rank == 0:
        save(trainer.averages_of(vae), options.out / "autoencoder.safetensors")


def misfits(vae: Autoencoder, clean: Tensor, mirrored: bool) -> tuple[Tensor, Tensor]:
    """The loss, and the errors [B, 3, H, W] in units of the whole brightness range."""
    latents = vae.encode(clean)
    mean, spread = latents.float().mean((0, 2, 3)), latents.float().std((0, 2, 3))
    noisy = latents + 0.04 * torch.randn_like(latents)
    target = clean
    if mirrored:
        noisy, target = noisy.flip(3), clean.flip(3)
    fine = difference(vae.decode(noisy), target)
    coarse = difference(vae.decode(functional.avg_pool2d(noisy, 2)), functional.avg_pool2d(target, 2))
    steady = (mean.square() + (spread - 1).square()).mean()
    return misfit(fine) + 0.25 * misfit(coarse) + 0.01 * steady, fine


def crops(pictures: Tensor, options: argparse.Namespace) -> Tensor:
    """Bytes to a batch in [-1, 1], one random square of each picture."""
    count, _, height, width = pictures.shape
    top, left = (torch.randint(side - CROP + 1, (count,), device=pictures.device) for side in (height, width))
    span = torch.arange(CROP, device=pictures.device)
    rows, columns = top[:, None] + span, left[:, None] + span
    each = torch.arange(count, device=pictures.device)[:, None, None]
    cut = pictures[each, :, rows[:, :, None], columns[:, None]].movedim(-1, 1)
    return (cut.to(options.dtype) / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def load_autoencoder(options: argparse.Namespace) -> Autoencoder:
    path = options.out / "autoencoder.safetensors"
    if not path.exists():
        raise SystemExit(f"There is no {path}: train the part 'autoencoder' first.")
    vae = Autoencoder()
    vae.load_state_dict(load_file(path))
    return vae.to(options.device, options.dtype, memory_format=torch.channels_last).requires_grad_(False)


def difference(restored: Tensor, target: Tensor) -> Tensor:
    """In units of the whole brightness range."""
    return (restored - target).float() / 2


def misfit(error: Tensor) -> Tensor:
    return error.abs().mean() + 4 * error.square().mean()
