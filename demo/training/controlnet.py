"""Training of the ControlNet, beside a UNet that learns no more."""

from __future__ import annotations

import argparse
import sys

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from demo import models
from demo.training.captions import caption_rows, caption_tokens
from demo.training.diffusion import (
    OutOfPlace,
    attention_options,
    drawn_times,
    encoded_prompts,
    noised,
    subject_weighted,
)
from demo.training.loop import Trainer, save, steps
from demo.training.pictures import contour_pool, encoded_pool, load_autoencoder


def train_controlnet(options: argparse.Namespace) -> None:
    """A ControlNet on the scenes' true contours, beside a frozen UNet with the UNet's own loss (arXiv 2302.05543).

    Time is drawn twice as densely at the noisy end as in the middle, since layout is decided there. Muon goes
    twice as fast as for the UNet: what starts at zero has far to go.
    """
    path = options.out / "controlnet.safetensors"
    unet, text, word_rows = frozen_models(options)
    control = models.new_control_net(options.device, unet=unet)
    if path.exists() and not options.fresh:
        print(f"controlnet: going on from {path.name}", flush=True)
        control.load_state_dict(load_file(path))
    control.to(options.dtype, memory_format=torch.channels_last)
    pool = encoded_pool(options, load_autoencoder(options))
    maps = contour_pool(pool.specs)
    trainer = Trainer(control, rate=options.rate, muon_rate=20 * options.rate)
    attention = attention_options(options.device)

    for progress, speak in steps(options, options.batch * options.processes, 3e5, "controlnet"):
        rows = torch.randint(len(pool.latents), (options.batch,), device=options.device)
        times = drawn_times(options.batch, options.device, lean=2.0)
        noisy, target = noised(pool.latents[rows], times, options.dtype)
        hint = (maps[rows, None].to(options.dtype) / 255).expand(-1, 3, -1, -1)
        with torch.no_grad():
            context, y = encoded_prompts(text, word_rows[caption_rows(pool.specs[rows])], options.dtype)
        inputs = {"x": noisy, "timesteps": times, "context": context, "y": y}
        with OutOfPlace():
            residuals = control(hint=hint, **inputs)
            predicted = unet(control=residuals, transformer_options=attention, **inputs)
        error = (predicted.float() - target).square().mean(1)
        trainer.step(subject_weighted(error, pool.coverage[rows].float()), progress)
        if speak:
            with torch.no_grad():
                alone = (unet(transformer_options=attention, **inputs).float() - target).square().mean()
            print(f"loss {error.mean().item():.4f}, {alone.item():.4f} without control", flush=True)
        if trainer.count % 500 == 0 and options.rank == 0:
            with trainer.averaged():
                save(control.state_dict(), path)
    trainer.use_averages()
    if options.rank == 0:
        save(control.state_dict(), path)


def frozen_models(options: argparse.Namespace) -> tuple[nn.Module, nn.Module, Tensor]:
    """The trained UNet and text encoder, which learn no more, and the captions in its small vocabulary."""
    paths = options.out / "unet.safetensors", options.out / "text_encoder.safetensors"
    if not all(path.exists() for path in paths):
        sys.exit(f"There is no {paths[0]} with its text encoder: train the part 'unet' first.")
    unet = models.new_unet(options.device).to(options.dtype, memory_format=torch.channels_last)
    unet.load_state_dict(load_file(paths[0]))
    tokens = caption_tokens().to(options.device)
    words = tokens.unique()
    text = models.with_vocabulary(models.new_text_model(options.device), words).to(options.dtype)
    models.load_packed_text_weights(text, load_file(paths[1]), words)
    return unet.requires_grad_(False), text.requires_grad_(False), torch.searchsorted(words, tokens)
