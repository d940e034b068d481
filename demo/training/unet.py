"""Training of the UNet and its text encoder."""

from __future__ import annotations

import argparse

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import Upsample
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from demo import models, world
from demo.training.captions import caption_rows, caption_tokens, sheet_captions
from demo.training.diffusion import (
    OutOfPlace,
    attention_options,
    coupled_attention,
    drawn_times,
    encoded_prompts,
    noised,
    pooled_error,
    subject_weighted,
)
from demo.training.loop import Trainer, save, steps
from demo.training.pictures import Pool, encoded_pool, load_autoencoder, strayed_latents

LOSS_SHARES = {"pictures": 1.0, "patches": 0.2, "colours": 0.4, "structure": 0.3}


def train_unet(options: argparse.Namespace) -> None:
    """UNet and text encoder together, v-prediction on SD's schedule (arXiv 2202.00512), levels drawn evenly in time.

    Two aids, since a CPU sees few pictures. The subject's latents count three times. And a linear head on the features
    before the finest blocks must tell which part of the scene is where, in whatever style: a true version of the
    representations that REPA aligns with (arXiv 2410.06940). The head is dropped afterwards.

    Nothing in single pictures teaches self-attention that style is worth looking for in another scene, which large
    models learn from all they are trained on; without it sharing attention moves little. So pictures come in couples of
    one style, and the second of each sees the first, but by self-attention alone. Every fourth step shows diptychs
    instead, two scenes in one style side by side under a caption that names the style alone; there convolutions and
    normalisation carry style across as well, and leave attention less to learn.

    Under the noise of training are true pictures, under that of sampling the UNet's own estimates (exposure bias,
    arXiv 2301.11706), and one that has only met the former trusts whatever colours it has begun with. So the second of
    a couple has drifted toward another style, and the first tells which is the true one.
    """
    unet = models.new_unet(options.device).to(options.dtype, memory_format=torch.channels_last)
    tokens = caption_tokens().to(options.device)
    words = tokens.unique()
    text = models.with_vocabulary(models.new_text_model(options.device), words).to(options.dtype)
    paths = options.out / "unet.safetensors", options.out / "text_encoder.safetensors"
    if paths[0].exists() and not options.fresh:
        print(f"unet: going on from {paths[0].name}", flush=True)
        unet.load_state_dict(load_file(paths[0]))
        models.load_packed_text_weights(text, load_file(paths[1]), words)
    vae = load_autoencoder(options)
    pool = encoded_pool(options, vae)
    strayed = strayed_latents(options, vae, pool.specs[len(pool.specs) // 2 :])
    pupil = Pupil(unet, text, torch.searchsorted(words, tokens), options)
    trainer = Trainer(pupil, rate=options.rate, muon_rate=10 * options.rate)

    def checkpoint() -> None:
        save(unet.state_dict(), paths[0])
        save(models.pack_text_weights(text.state_dict(), words), paths[1])

    for progress, speak in steps(options, options.batch * options.processes, 1e6, "unet"):
        if trainer.count % 4 == 3:
            losses = pupil.diptychs(pool, options.batch)
        else:
            losses = pupil.couples(pool, strayed, options.batch)
        trainer.step(sum(weight * losses[name] for name, weight in LOSS_SHARES.items()), progress)
        if speak:
            print(", ".join(f"{name} {loss.item():.4f}" for name, loss in losses.items()), flush=True)
        if trainer.count % 500 == 0 and options.rank == 0:
            with trainer.averaged():
                checkpoint()
    trainer.use_averages()
    if options.rank == 0:
        checkpoint()


def couples(pool: Pool, strayed: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents [B, 8, 16, 16], what they show [B, 6, 16, 16], the rows of their captions in `caption_tokens`, and drift.

    Rows i and i + B / 2 share a style, which half of the latter's captions do not name. These drift, more or less far,
    toward their scenes in other styles, which are `strayed` [N / 2, 8, 16, 16].
    """
    first, second = partners(pool, count)
    rows = torch.cat([first, second])
    captions = torch.cat([caption_rows(pool.specs[first]), caption_rows(pool.specs[second], unnamed=0.5)])
    astray = strayed[first].float() - pool.latents[second].float()
    astray *= torch.rand(len(second), 1, 1, 1, device=astray.device)
    return pool.latents[rows], pool.coverage[rows].float(), captions, torch.cat([torch.zeros_like(astray), astray])


def diptychs(pool: Pool, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `couples`, side by side: [B / 2, ..., 16, 32]."""
    rows = partners(pool, count)
    latents, roles = (torch.cat([part[side] for side in rows], 3) for part in (pool.latents, pool.coverage))
    family = pool.specs.family[rows[0], 0]
    unnamed = torch.rand(len(family), device=family.device) < 0.3
    return latents, roles.float(), sheet_captions(torch.where(unnamed, len(world.FAMILY_NAMES), family))


def partners(pool: Pool, count: int) -> tuple[Tensor, Tensor]:
    """Rows of `count` / 2 pictures and of as many other scenes in their styles: i and i + N / 2 of the pool."""
    half = len(pool.latents) // 2
    first = torch.randint(half, (max(1, count // 2),), device=pool.latents.device)
    return first, first + half


class Pupil(nn.Module):
    """UNet and text encoder with the head that tells roles, which only training needs."""

    def __init__(self, unet: nn.Module, text: nn.Module, word_rows: Tensor, options: argparse.Namespace) -> None:
        super().__init__()
        self.unet, self.text, self.word_rows, self.dtype = unet, text, word_rows, options.dtype
        last_upsample = [module for module in unet.output_blocks.modules() if isinstance(module, Upsample)][-1]
        last_upsample.register_forward_hook(self.keep)
        self.head = nn.Conv2d(last_upsample.out_channels, len(world.SLOTS), 1).to(options.device, options.dtype)
        self.alone = attention_options(options.device)

    def keep(self, _module: nn.Module, _inputs: tuple[object, ...], features: Tensor) -> None:
        self.features = features  # [B, C, 16, 16]

    def couples(self, pool: Pool, strayed: Tensor, count: int) -> dict[str, Tensor]:
        latents, roles, captions, drift = couples(pool, strayed, count)
        times = drawn_times(len(latents) // 2, latents.device).repeat(2)
        attention = {"optimized_attention_override": coupled_attention}
        return self.losses(latents, roles, captions, times, attention, drift)

    def diptychs(self, pool: Pool, count: int) -> dict[str, Tensor]:
        latents, roles, captions = diptychs(pool, count)
        return self.losses(latents, roles, captions, drawn_times(len(latents), latents.device), self.alone)

    def losses(
        self,
        latents: Tensor,
        roles: Tensor,
        captions: Tensor,
        times: Tensor,
        attention: dict[str, object],
        drift: Tensor | float = 0.0,
    ) -> dict[str, Tensor]:
        """How far off are the pictures, at three scales, and what the head tells of their structure."""
        noisy, target = noised(latents, times, self.dtype, drift)
        with OutOfPlace():
            context, y = encoded_prompts(self.text, self.word_rows[captions], self.dtype)
            predicted = self.unet(noisy, times, context, y=y, transformer_options=attention).float()
        error = predicted - target
        told = functional.log_softmax(self.head(self.features).float(), 1)
        return {
            "pictures": subject_weighted(error.square().mean(1), roles),
            "patches": pooled_error(error, times, 4, drift),
            "colours": pooled_error(error, times, latents.shape[2], drift),
            "structure": -(roles * told).sum(1).mean(),
        }
