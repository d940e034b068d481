"""Training of the UNet and its text encoder."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import Upsample
from safetensors.torch import load_file
from torch import Tensor, nn

from demo import nets
from demo.training.autoencoder import load_autoencoder
from demo.training.couples import LOSS_SHARES, Batch, SubjectHead, couples, diptychs, subject_weighted
from demo.training.diffusion import (
    OutOfPlace,
    coupled_attention,
    drawn_times,
    encoded_prompts,
    noised,
    plain_attention,
    pooled_error,
)
from demo.training.loop import Trainer, save
from demo.training.pool import Pool, World, new_pool
from demo.training.recorded import stepper
from demo.training.run import Run
from demo.training.sampling import painted_sheet
from demo.world.words import Vocabulary

Kind = Callable[[Pool, int], Batch]
LEAN = 1.2  # a little denser toward the noisy end, where it is decided what is where


def train_unet(options: argparse.Namespace, world: World) -> None:
    """UNet and text encoder together, v-prediction on SD's schedule (arXiv 2202.00512).

    Subjects' latents count three times, and a head tells which subject is where.

    Nothing in single pictures teaches self-attention that style is worth looking for in another scene, which large
    models learn from all they are trained on; without it sharing attention moves little. So pictures come in couples of
    one style, and the second of each sees the first, but by self-attention alone. Every fourth step shows diptychs
    instead, two scenes in one style side by side under a caption that names the style alone; there convolutions and
    normalisation carry style across as well, and leave attention less to learn.

    Under the noise of training are true pictures, under that of sampling the UNet's own estimates (exposure bias,
    arXiv 2301.11706), and one that has only met the former trusts whatever colours it has begun with. So the second of
    a couple has drifted toward another style, and the first tells which is the true one.
    """
    unet = nets.new_unet(options.device).to(memory_format=torch.channels_last)
    text = new_text(world.vocabulary, options)
    begin_with(unet, text, options, world)
    pupil = Pupil(unet, text, options)
    trainer = Trainer(pupil, rate=options.rate, muon_rate=10 * options.rate, average=options.average)
    pupil.to(options.dtype)  # the trainer's copies keep what this rounds off
    run = Run("unet", options, trainer)
    vae = load_autoencoder(options)
    pool = new_pool(world, vae, options, options.pool)
    pool.fill(run.step)
    shares = {name: share for name, share in LOSS_SHARES.items() if name != "subjects" or pupil.head is not None}
    learn = {
        kind: stepper(partial(pupil.losses, kind), shares, trainer.weights, options.record)
        for kind in (couples, diptychs)
    }
    for progress, speak in run.steps(options.batch):
        kind = diptychs if run.step % 4 == 3 else couples
        losses, gradients = learn[kind](pupil.inputs(kind, pool, options.batch))
        pool.renew(run.step)
        trainer.apply(gradients, progress)
        if speak:
            print(", ".join(f"{name} {loss.item():.4f}" for name, loss in losses.items()), flush=True)
    trainer.use_averages()
    if options.rank == 0:
        save(trainer.averages_of(unet), options.out / "unet.safetensors")
        keep_words(text, trainer, options, world)
        painted_sheet(unet_guess(unet, text, options), vae, world, options, "unet")


def new_text(vocabulary: Vocabulary, options: argparse.Namespace) -> nn.Module:
    """An untrained text encoder on the world's own words."""
    tokens = vocabulary.tokens.to(options.device)
    return nets.with_vocabulary(nets.new_text_model(options.device), tokens).to(options.dtype)


def begin_with(unet: nn.Module, text: nn.Module, options: argparse.Namespace, world: World) -> None:
    """Weights of an earlier training, where a folder of them is given; its words stay as ControlNet and transformer
    know them."""
    if options.begin:
        unet.load_state_dict(load_file(options.begin / "unet.safetensors"))
        packed = load_file(options.begin / "text_encoder.safetensors")
        nets.load_packed_text_weights(text, packed, world.vocabulary.tokens)
        text.requires_grad_(False)


def keep_words(text: nn.Module, trainer: Trainer, options: argparse.Namespace, world: World) -> None:
    """Write the text encoder next to the UNet that reads it."""
    path = options.out / "text_encoder.safetensors"
    if options.begin:
        path.write_bytes((options.begin / path.name).read_bytes())
    else:
        save(nets.pack_text_weights(trainer.averages_of(text), world.vocabulary.tokens), path)


def load_painters(options: argparse.Namespace, world: World) -> tuple[nn.Module, nn.Module]:
    """The trained UNet and text encoder, which learn no more."""
    paths = options.out / "unet.safetensors", options.out / "text_encoder.safetensors"
    if not all(path.exists() for path in paths):
        raise SystemExit(f"There is no {paths[0]} with its text encoder: train the part 'unet' first.")
    unet = nets.new_unet(options.device).to(options.dtype, memory_format=torch.channels_last)
    unet.load_state_dict(load_file(paths[0]))
    text = new_text(world.vocabulary, options)
    nets.load_packed_text_weights(text, load_file(paths[1]), world.vocabulary.tokens)
    return unet.requires_grad_(False), text.requires_grad_(False)


def unet_guess(unet: nn.Module, text: nn.Module, options: argparse.Namespace):
    """v of noisy latents at time indices under captions."""

    def guess(noisy: Tensor, times: Tensor, captions: Tensor) -> Tensor:
        context, y = encoded_prompts(text, captions, options.dtype)
        attention = {"optimized_attention_override": plain_attention}
        return unet(noisy.to(options.dtype), times, context, y=y, transformer_options=attention).float()

    return guess


class Pupil(nn.Module):
    """UNet and text encoder with the head that only training needs, and only from the start.

    Its first gradients are as large as the pictures' own and say nothing: they would unteach what a UNet knows.
    """

    def __init__(self, unet: nn.Module, text: nn.Module, options: argparse.Namespace) -> None:
        super().__init__()
        self.unet, self.text, self.dtype, self.head = unet, text, options.dtype, None
        if options.begin:
            return
        last_upsample = [module for module in unet.output_blocks.modules() if isinstance(module, Upsample)][-1]
        last_upsample.register_forward_pre_hook(self.keep)
        self.head = SubjectHead(last_upsample.channels).to(options.device, options.dtype)

    def keep(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.features = inputs[0]  # [B, C, 12, 12], of diptychs [B, C, 12, 24]: the transformers' last word

    def inputs(self, kind: Kind, pool: Pool, count: int) -> list[Tensor]:
        """Noise levels and a batch; both of a couple are equally noisy."""
        batch = kind(pool, count)
        alike = 2 if kind is couples else 1
        times = drawn_times(len(batch.latents) // alike, batch.latents.device, LEAN).repeat(alike)
        return [times, *batch]

    def losses(self, kind: Kind, times: Tensor, *parts: Tensor) -> dict[str, Tensor]:
        """How far off the pictures are, at three scales, and what the head tells of their subjects."""
        batch = Batch(*parts)
        noisy, target = noised(batch.latents, times, self.dtype, batch.drift)
        options = {"optimized_attention_override": coupled_attention if kind is couples else plain_attention}
        with OutOfPlace():
            context, y = encoded_prompts(self.text, batch.captions, self.dtype)
            predicted = self.unet(noisy, times, context, y=y, transformer_options=options).float()
        error = predicted - target
        told = {
            "pictures": subject_weighted(error.square().mean(1), batch.masks),
            "patches": pooled_error(error, times, 4, batch.drift),
            "colours": pooled_error(error, times, nets.CELLS // 2, batch.drift),
        }
        if self.head is not None:
            features, self.features = self.features, None  # which would keep this step's whole graph alive
            told["subjects"] = self.head(features, batch)
        return told
