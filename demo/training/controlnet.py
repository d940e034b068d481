"""Training of the ControlNet, beside a UNet that learns no more."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from demo import nets
from demo.training.autoencoder import load_autoencoder
from demo.training.couples import both, subject_weighted
from demo.training.diffusion import OutOfPlace, drawn_times, encoded_prompts, noised, plain_attention
from demo.training.loop import Trainer, save
from demo.training.pool import Pairs, World, new_pool
from demo.training.run import Run
from demo.training.unet import load_painters


def train_controlnet(options: argparse.Namespace, world: World) -> None:
    """On the scenes' edges, with the UNet's own loss (arXiv 2302.05543), time twice as dense at the noisy end."""
    unet, text = load_painters(options, world)
    control = nets.new_control_net(options.device, unet=unet)
    control.to(options.dtype, memory_format=torch.channels_last)
    trainer = Trainer(control, rate=options.rate, muon_rate=20 * options.rate, average=options.average)
    run = Run("controlnet", options, trainer)
    vae = load_autoencoder(options)
    blocks = max(1, options.pool // 4)
    pool = new_pool(world, vae, options, blocks, with_edges=True)
    pool.fill(run.step)
    attention = {"optimized_attention_override": plain_attention}
    for progress, speak in run.steps(options.batch):
        pairs: Pairs = pool.content[pool.rows(max(1, options.batch // 2))]
        times = drawn_times(2 * len(pairs), options.device, lean=2.0)
        noisy, target = noised(both(pairs.latents), times, options.dtype)
        with torch.no_grad():
            context, y = encoded_prompts(text, both(pairs.captions).long(), options.dtype)
        inputs = {"x": noisy, "timesteps": times, "context": context, "y": y}
        with OutOfPlace():
            residuals = control(hint=hints(both(pairs.edges), options.dtype), **inputs)
            predicted = unet(control=residuals, transformer_options=attention, **inputs)
        error = (predicted.float() - target).square().mean(1)
        pool.renew(run.step)
        trainer.step(subject_weighted(error, both(pairs.masks).float() / 255), progress)
        if speak:
            with torch.no_grad():
                alone = (unet(transformer_options=attention, **inputs).float() - target).square().mean()
            print(f"loss {error.mean().item():.4f}, {alone.item():.4f} without control", flush=True)
    trainer.use_averages()
    if options.rank == 0:
        save(trainer.averages_of(control), options.out / "controlnet.safetensors")


def hints(edges: Tensor, dtype: torch.dtype) -> Tensor:
    """Edge maps [B, H, W] of bytes as the ControlNet takes them."""
    return (edges[:, None].to(dtype) / 255).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
