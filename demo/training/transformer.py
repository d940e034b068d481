"""Training of the transformer, on the UNet's text encoder."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from demo import nets
from demo.training.autoencoder import load_autoencoder
from demo.training.couples import (
    Batch,
    SubjectHead,
    couples,
    joint_attention,
    subject_weighted,
)
from demo.training.diffusion import OutOfPlace
from demo.training.loop import Trainer, save
from demo.training.pool import World, new_pool
from demo.training.run import Run
from demo.training.sampling import painted_sheet
from demo.training.unet import load_painters

WATCHED = 4  # the single-stream block behind which the head looks
GRID = nets.CELLS // 2


def train_transformer(options: argparse.Namespace, world: World) -> None:
    """Flow matching on straight paths (arXiv 2209.03003), noise levels logit-normal (arXiv 2403.03206, section 3.1).

    Couples as for the UNet: the second of each has drifted, and its joint attention also sees the first's picture.
    """
    _, text = load_painters(options, world)
    model = nets.new_transformer(options.device).to(options.dtype)
    pupil = Pupil(model, text, options)
    trainer = Trainer(model, pupil.head, rate=options.rate, muon_rate=10 * options.rate, average=options.average)
    run = Run("transformer", options, trainer)
    vae = load_autoencoder(options)
    pool = new_pool(world, vae, options, options.pool)
    pool.fill(run.step)
    for progress, speak in run.steps(options.batch):
        losses = pupil.losses(couples(pool, options.batch), coupled=run.step % 4 != 3)
        pool.renew(run.step)
        trainer.step(losses["pictures"] + 0.1 * losses["subjects"], progress)
        if speak:
            print(", ".join(f"{name} {loss.item():.4f}" for name, loss in losses.items()), flush=True)
    trainer.use_averages()
    if options.rank == 0:
        save(trainer.averages_of(model), options.out / "transformer.safetensors")
        painted_sheet(flow_guess(model, text, options), vae, world, options, "transformer", flow=True)


def flow_guess(model: nn.Module, text: nn.Module, options: argparse.Namespace):
    """Noise minus clean of noisy latents at noise levels under captions."""

    def guess(noisy: Tensor, levels: Tensor, captions: Tensor) -> Tensor:
        context, _, pooled, _ = text(captions, dtype=options.dtype)
        attention = {"optimized_attention_override": joint_attention(coupled=False)}
        inputs = noisy.to(options.dtype), levels, context, pooled
        return model(*inputs, transformer_options=attention).float()

    return guess


class Pupil(nn.Module):
    """The transformer with the head that only training needs."""

    def __init__(self, model: nn.Module, text: nn.Module, options: argparse.Namespace) -> None:
        super().__init__()
        self.model, self.text, self.dtype = model, text, options.dtype
        self.head = SubjectHead(model.hidden_size).to(options.device, options.dtype)
        model.single_blocks[WATCHED].register_forward_hook(self.keep)

    def keep(self, _module: nn.Module, _inputs: tuple[object, ...], tokens: Tensor) -> None:
        picture = tokens[:, -GRID * GRID :].transpose(1, 2)
        self.features = picture.unflatten(2, (GRID, GRID))  # [B, C, GRID, GRID]

    def losses(self, batch: Batch, coupled: bool) -> dict[str, Tensor]:
        clean = batch.latents.float()
        count = len(clean) // 2
        parts = (torch.arange(count, device=clean.device) + torch.rand(1, device=clean.device)) / count
        normal = torch.special.ndtri(parts.clamp(1e-4, 1 - 1e-4))[torch.randperm(count, device=clean.device)]
        levels = torch.sigmoid(normal + 0.4).repeat(2)
        noisy, target = flowing(clean, torch.randn_like(clean), levels, batch.drift)
        with torch.no_grad():
            context, _, pooled, _ = self.text(batch.captions, dtype=self.dtype)
        attention = {"optimized_attention_override": joint_attention(coupled)}
        with OutOfPlace():
            inputs = noisy.to(self.dtype), levels, context, pooled
            predicted = self.model(*inputs, transformer_options=attention).float()
        error = (predicted - target).square().mean(1)
        return {"pictures": subject_weighted(error, batch.masks), "subjects": self.head(self.features, batch)}


def flowing(clean: Tensor, noise: Tensor, levels: Tensor, drift: Tensor | float) -> tuple[Tensor, Tensor]:
    """Latents on the straight path at levels [B] in (0, 1], and the velocity that leads back to the clean ones.

    A drift shrinks at both ends, as in the UNet's training.
    """
    level = levels[:, None, None, None]
    noisy = (1 - level) * clean + level * noise + torch.minimum(1 - level, level) * drift
    return noisy, (noisy - clean) / level
