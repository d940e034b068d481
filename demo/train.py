"""Train the demo models: `python dev.py train [PART ...]`; all parts in order by default.

Parts are autoencoder, decoder, judge, unet, profile, controlnet and geometry. Each trains for `--samples` pictures or
`--minutes`, whichever ends first, and writes its weights to `--out`; profile and geometry measure the shipped UNet. The
learning rate falls to zero over that span. They go on from weights that are there unless `--fresh`. On a CPU one
single-threaded process per core shares each step, which is faster than threads. Pictures are drawn by the world's own
generator, so there is no data set to fetch.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import Upsample
from comfy.sd1_clip import SDTokenizer
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from demo import models, world
from demo.autoencoder import SHRINK, Autoencoder
from demo.hands import HANDS
from demo.judge import Judge
from demo.muon import Muon

if TYPE_CHECKING:
    from conditional_balance.engine.profile import SensitivityProfile


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--samples", type=float, help="pictures to train each part on")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop each part after this long")
    parser.add_argument("--batch", type=int, default=32, help="pictures per step and process; 512 suits a GPU")
    parser.add_argument("--pool", type=int, default=12_000, help="pictures drawn in advance")
    parser.add_argument("--rate", type=float, default=1e-3, help="the highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="start anew")
    parser.add_argument("--out", type=Path, default=models.WEIGHTS)
    parser.add_argument("--processes", type=int, help="processes that share each step; a CPU's cores by default")
    options = parser.parse_args(argv)
    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    options.dtype = models.fast_dtype(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    options.rank = int(os.environ.get("RANK", 0))
    options.processes = int(os.environ.get("WORLD_SIZE", 0)) or options.processes or default_processes(options.device)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part '{unknown[0]}'; choose from {', '.join(PARTS)}.")
    if options.processes > 1 and "RANK" not in os.environ:
        sys.exit(spread(options.processes))
    train(options)


def default_processes(device: str) -> int:
    return 1 if device == "cuda" else os.cpu_count() or 1


def spread(processes: int) -> int:
    """Run this very command once per process, each told its rank; returns the worst exit status."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "OMP_NUM_THREADS": "1"}
    ranks = ({"RANK": str(rank), "WORLD_SIZE": str(processes)} for rank in range(processes))
    running = [subprocess.Popen(sys.orig_argv, env=os.environ | meeting | rank) for rank in ranks]
    return max(abs(process.wait()) for process in running)


def train(options: argparse.Namespace) -> None:
    torch.backends.cudnn.benchmark = True
    if options.processes > 1:
        torch.distributed.init_process_group("gloo")
    for part in options.parts or list(PARTS):
        torch.manual_seed(options.seed + 1000 * options.rank)
        PARTS[part](options)


def save(weights: dict[str, Tensor], path: Path) -> None:
    """Write fp16 weights; the file is replaced whole or not at all."""
    halves = {k: (v.half() if v.is_floating_point() else v).cpu().contiguous() for k, v in weights.items()}
    part = path.with_suffix(".part")
    save_file(halves, part)
    os.replace(part, path)


def steps(options: argparse.Namespace, batch: int, samples: float, what: str) -> Iterator[tuple[float, bool]]:
    """Yield progress in [0, 1) and whether to speak, once per optimiser step."""
    start, spoken, seen = time.monotonic(), -10.0, 0
    while True:
        elapsed = time.monotonic() - start
        progress = agreed(max(seen / (options.samples or samples), elapsed / 60 / options.minutes))
        speak = elapsed - spoken > 10 or progress >= 1
        if speak and options.rank == 0:
            spoken = elapsed
            print(f"{what}: {seen:,} pictures, {elapsed:.0f} s, {100 * progress:.0f} %", end=" ", flush=True)
        if progress >= 1:
            print("done" * (options.rank == 0), flush=True)
            return
        yield progress, speak and options.rank == 0
        seen += batch


def agreed(progress: float) -> float:
    """The first process's clock counts for all, or they would not stop at the same step."""
    if not torch.distributed.is_initialized():
        return progress
    message = torch.tensor(progress, dtype=torch.float64)
    torch.distributed.broadcast(message, 0)
    return float(message)


AVERAGE_EVERY = 10  # steps; averaging every step would cost a CPU a tenth of its time


class Trainer:
    """Steps on fp32 master copies of the weights, with warm-up, cosine decay and a running average.

    AdamW; with a `muon_rate`, Muon for the layers' matrices.
    """

    def __init__(self, *modules: nn.Module, rate: float, muon_rate: float | None = None, average: float = 0.99) -> None:
        self.weights = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.masters = [p.detach().float().clone() for p in self.weights]
        self.averages = [p.clone() for p in self.masters]
        for master in self.masters:
            master.grad = torch.zeros_like(master)
        orthogonal = layer_matrices(modules) if muon_rate else set()
        of_muon = [id(weight) in orthogonal for weight in self.weights]
        self.muon = Muon([m for m, chosen in zip(self.masters, of_muon, strict=True) if chosen])
        rest = [m for m, chosen in zip(self.masters, of_muon, strict=True) if not chosen]
        self.adamw = torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.rate, self.muon_rate, self.average, self.count = rate, muon_rate or 0.0, average, 0

    def step(self, loss: Tensor, progress: float) -> None:
        loss.backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.weights]
        torch._foreach_copy_([p.grad for p in self.masters], grads)
        if torch.distributed.is_initialized():
            share_gradients([p.grad for p in self.masters])
        for weight in self.weights:
            weight.grad = None
        nn.utils.clip_grad_norm_(self.masters, 1.0, foreach=True)
        warmth, decay = min(1.0, (progress + 1e-3) / 0.03), 0.5 + 0.5 * math.cos(math.pi * progress)
        self.adamw.param_groups[0]["lr"] = self.rate * warmth * decay
        self.adamw.step()
        self.muon.step(self.muon_rate * warmth * decay)
        self.count += 1
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.masters)
            if self.count < AVERAGE_EVERY or self.count % AVERAGE_EVERY == 0:
                done = self.count / AVERAGE_EVERY
                torch._foreach_lerp_(self.averages, self.masters, 1 - min(self.average, done / (done + 10)))

    @torch.no_grad()
    def use_averages(self) -> None:
        torch._foreach_copy_(self.weights, self.averages)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        self.use_averages()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, self.masters)


def layer_matrices(modules: tuple[nn.Module, ...]) -> set[int]:
    """Identities of the weights that Muon suits: of linear and convolution layers with at least 32 outputs."""
    layers = (layer for module in modules for layer in module.modules() if isinstance(layer, (nn.Linear, nn.Conv2d)))
    return {id(layer.weight) for layer in layers if len(layer.weight) >= 32}


def share_gradients(grads: list[Tensor]) -> None:
    """Average gradients over the processes, in one message."""
    message = torch.cat([grad.flatten() for grad in grads])
    torch.distributed.all_reduce(message)
    parts = (message / torch.distributed.get_world_size()).split([grad.numel() for grad in grads])
    torch._foreach_copy_(grads, [part.view_as(grad) for part, grad in zip(parts, grads, strict=True)])


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


def drawn_pool(options: argparse.Namespace, count: int, families: tuple[str, ...]) -> Tensor:
    """Pictures [N, 3, H, W] as bytes, half of them in remixed styles."""
    draw = torch.Generator(options.device).manual_seed(options.seed + options.rank)
    specs = joined(
        world.random_specs(count // 2, draw, families), world.random_specs(count - count // 2, draw, families, True)
    )
    return rendered(specs)


def rendered(specs: world.Specs) -> Tensor:
    """Pictures as bytes, drawn a few at a time so that they stay in the processor's cache."""
    rows = torch.arange(len(specs), device=specs.subject.device)
    return torch.cat([(255 * world.render(specs[part])[0]).round().byte() for part in rows.split(32)])


def batch_of(pictures: Tensor, options: argparse.Namespace) -> Tensor:
    """A random batch in [-1, 1], half of it mirrored."""
    rows = torch.randint(len(pictures), (options.batch,), device=pictures.device)
    chosen = pictures[rows].to(options.dtype) / 127.5 - 1
    mirrored = torch.rand(options.batch, 1, 1, 1, device=pictures.device) < 0.5
    return torch.where(mirrored, chosen.flip(3), chosen).contiguous(memory_format=torch.channels_last)


def load_autoencoder(options: argparse.Namespace) -> Autoencoder:
    path = options.out / "autoencoder.safetensors"
    if not path.exists():
        sys.exit(f"There is no {path}: train the part 'autoencoder' first.")
    vae = Autoencoder()
    vae.load_state_dict(load_file(path))
    return vae.to(options.device, options.dtype, memory_format=torch.channels_last).requires_grad_(False)


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


def joined(a: world.Specs, b: world.Specs) -> world.Specs:
    return world.Specs(*(torch.cat([getattr(a, f), getattr(b, f)]) for f in a.__dataclass_fields__))


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


def train_unet(options: argparse.Namespace) -> None:
    """UNet and text encoder together, v-prediction on SD's schedule (arXiv 2202.00512), levels drawn evenly in time.

    Two aids, since a CPU sees few pictures. The subject's latents count three times. And a linear head on the features
    before the finest blocks must tell which part of the scene is where, in whatever style: a true version of the
    representations that REPA aligns with (arXiv 2410.06940). The head is dropped afterwards.

    Every fourth step shows diptychs: two scenes in one style side by side, under a caption that names the style alone.
    Large models meet such sheets in what they are trained on; without them nothing here teaches self-attention that
    style is worth looking for in another scene, and sharing attention moves little.
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
    pool = encoded_pool(options, load_autoencoder(options))
    head, features = structure_head(unet, options)
    trainer = Trainer(unet, text, head, rate=options.rate, muon_rate=10 * options.rate)
    word_rows = torch.searchsorted(words, tokens)
    sizes, alphas = size_embedding(options.device), signal_shares().to(options.device)
    attention = attention_options(options.device)

    def checkpoint() -> None:
        save(unet.state_dict(), paths[0])
        save(models.pack_text_weights(text.state_dict(), words), paths[1])

    for progress, speak in steps(options, options.batch * options.processes, 1e6, "unet"):
        latents, roles, rows = (diptychs if trainer.count % 4 == 3 else singles)(pool, options.batch)
        noisy, time_index, target = noised(latents, alphas, options.dtype)
        with OutOfPlace():
            context, y = encoded_prompts(text, word_rows[rows], sizes, options.dtype)
            predicted = unet(noisy, time_index, context, y=y, transformer_options=attention).float()
        error = (predicted - target).square().mean(1)
        loss = subject_weighted(error, roles)
        structure = -(roles * functional.log_softmax(head(features[0]).float(), 1)).sum(1).mean()
        trainer.step(loss + 0.3 * structure, progress)
        if speak:
            print(f"loss {error.mean().item():.4f}, structure {structure.item():.3f}", flush=True)
        if trainer.count % 500 == 0 and options.rank == 0:
            with trainer.averaged():
                checkpoint()
    trainer.use_averages()
    if options.rank == 0:
        checkpoint()


def singles(pool: Pool, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents [B, 8, 16, 16], what they show [B, 6, 16, 16], and the rows of their captions in `caption_tokens`."""
    rows = torch.randint(len(pool.latents), (count,), device=pool.latents.device)
    return pool.latents[rows], pool.coverage[rows].float(), caption_rows(pool.specs[rows])


def diptychs(pool: Pool, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `singles`, [B / 2, ..., 16, 32]: pictures i and i + N / 2 of the pool, which share a style."""
    half = len(pool.latents) // 2
    left = torch.randint(half, (max(1, count // 2),), device=pool.latents.device)
    latents, roles = (torch.cat([part[left], part[left + half]], 3) for part in (pool.latents, pool.coverage))
    family = pool.specs.family[left, 0]
    unnamed = torch.rand(len(left), device=left.device) < 0.3
    return latents, roles.float(), single_captions() + torch.where(unnamed, len(world.FAMILY_NAMES), family)


SUBJECT_ROLES = [world.SLOTS.index(name) for name in ("body", "detail")]


def noised(latents: Tensor, alphas: Tensor, dtype: torch.dtype, lean: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Latents with noise, their time indices, and what to predict: v = alpha * noise - sigma * clean."""
    time_index = drawn_times(len(latents), latents.device, lean)
    alpha, sigma = (share[time_index][:, None, None, None] for share in (alphas, (1 - alphas**2).sqrt()))
    clean = latents.float()
    noise = torch.randn_like(clean)
    noisy = (alpha * clean + sigma * noise).to(dtype, memory_format=torch.channels_last)
    return noisy, time_index, alpha * noise - sigma * clean


def subject_weighted(error: Tensor, roles: Tensor) -> Tensor:
    """Mean of an error [B, H, W] in which the subject counts three times."""
    weight = 1 + 2 * roles[:, SUBJECT_ROLES].sum(1)
    return (weight * error).mean() / weight.mean()


def structure_head(unet: nn.Module, options: argparse.Namespace) -> tuple[nn.Module, list[Tensor]]:
    """A head from features [B, C, 16, 16] to logits of the scene's roles, and where the features are put."""
    last_upsample = [module for module in unet.output_blocks.modules() if isinstance(module, Upsample)][-1]
    features: list[Tensor] = [torch.empty(0)]

    def keep(_module: nn.Module, _inputs: tuple[object, ...], output: Tensor) -> None:
        features[0] = output

    last_upsample.register_forward_hook(keep)
    head = nn.Conv2d(last_upsample.out_channels, len(world.SLOTS), 1)
    return head.to(options.device, options.dtype), features


def drawn_times(count: int, device: str | torch.device, lean: float = 1.0) -> Tensor:
    """`count` time indices, one from each equal part of the schedule: less chance in every step's loss.

    Their density grows as time^(lean - 1), toward the noisy end.
    """
    parts = (torch.arange(count, device=device) + torch.rand(1, device=device)) / count
    times = (1000 * parts ** (1 / lean)).long().clamp(max=999)  # a part that rounds up to 1 has no index
    return times[torch.randperm(count, device=device)]


def plain_attention(func: object, q: Tensor, k: Tensor, v: Tensor, heads: int, *_: object, **__: object) -> Tensor:
    """Softmax attention by matrix products: on a CPU its backward pass is four times as fast as the fused kernel's."""
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    shares = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    return rearrange(shares @ v, "b h n d -> b n (h d)")


def attention_options(device: str) -> dict[str, object]:
    return {"optimized_attention_override": plain_attention} if device == "cpu" else {}


class OutOfPlace(TorchFunctionMode):
    """Turns `x += y` into `x = x + y`: core's layers add in place, which backward forbids."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return (torch.add if func in (Tensor.__iadd__, Tensor.add_) else func)(*args, **(kwargs or {}))


def caption_tokens() -> Tensor:
    """Tokens of every caption, [subject or none, background or none, family or none, 77] flattened to two axes.

    After these `single_captions()` rows come those of diptychs, [family or none, 77].
    """
    tokenizer = SDTokenizer()
    families = (*world.FAMILY_NAMES, None)
    parts = itertools.product((*world.SUBJECT_NAMES, None), (*world.BACKGROUND_NAMES, None), families)
    texts = [*(world.caption(*names) for names in parts), *(world.diptych_caption(family) for family in families)]
    return torch.tensor([[token for token, _ in tokenizer.tokenize_with_weights(text)[0]] for text in texts])


def single_captions() -> int:
    return (len(world.SUBJECT_NAMES) + 1) * (len(world.BACKGROUND_NAMES) + 1) * (len(world.FAMILY_NAMES) + 1)


def caption_rows(specs: world.Specs) -> Tensor:
    """Rows of `caption_tokens` for a batch; words are left out at random, one caption in ten altogether."""
    device = specs.subject.device

    def dropped(names: Tensor, none: int, share: float) -> Tensor:
        gone = torch.rand(len(specs), device=device)
        return torch.where((gone < share) | silent, none, names)

    silent = torch.rand(len(specs), device=device) < 0.1
    subjects, backgrounds, families = (
        len(n) for n in (world.SUBJECT_NAMES, world.BACKGROUND_NAMES, world.FAMILY_NAMES)
    )
    subject = dropped(specs.subject, subjects, 0.06)
    background = dropped(specs.background, backgrounds, 0.06)
    family = dropped(specs.family[:, 0], families, 0.2)
    return (subject * (backgrounds + 1) + background) * (families + 1) + family


class Pool(NamedTuple):
    latents: Tensor  # [N, 8, 16, 16]
    coverage: Tensor  # [N, 6, 16, 16]: the share of each role of the scene
    specs: world.Specs


@torch.no_grad()
def encoded_pool(options: argparse.Namespace, vae: Autoencoder) -> Pool:
    """Pictures in known styles as latents, and what they show; rows i and i + N / 2 share a style.

    Drawn a few at a time so that they stay in the processor's cache.
    """
    draw = torch.Generator(options.device).manual_seed(options.seed + 2 + options.rank)
    half = world.random_specs(max(1, options.pool // options.processes // 2), draw)
    specs = joined(half, world.random_specs(len(half), draw).in_style_of(half))
    latents, coverage = [], []
    for part in torch.arange(len(specs), device=options.device).split(32):
        scene = world.draw_scene(specs[part], world.SIZE)
        pictures = (255 * world.paint(scene, specs[part])).round().byte()
        latents.append(encode_bytes(vae, pictures, options.dtype))
        coverage.append(functional.avg_pool2d(scene.coverage, SHRINK).to(options.dtype))
    pool = Pool(torch.cat(latents), torch.cat(coverage), specs)
    print(f"unet: {len(specs):,} latents, spread {pool.latents.float().std():.3f}", flush=True)
    return pool


def encode_bytes(vae: Autoencoder, pictures: Tensor, dtype: torch.dtype) -> Tensor:
    return vae.encode((pictures.to(dtype) / 127.5 - 1).contiguous(memory_format=torch.channels_last))


def encoded_prompts(text: nn.Module, tokens: Tensor, sizes: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What the UNet gets of tokens [B, 77]: the text [B, 77, D], and the pooled text beside the sizes [B, D + S]."""
    context, _, pooled, _ = text(tokens, dtype=dtype)
    return context, torch.cat([pooled, sizes.expand(len(pooled), -1).to(pooled.dtype)], 1)


def signal_shares() -> Tensor:
    """sqrt(alpha bar) of SD's scaled-linear schedule, [1000] by time index."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).sqrt().float()


def size_embedding(device: str) -> Tensor:
    """SDXL's six size numbers as core fills them in when no node sets them: 768 x 768, no crop."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import Timestep

    return Timestep(256)(torch.tensor([768.0, 768, 0, 0, 768, 768])).flatten()[None].to(device)


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
    sizes, alphas = size_embedding(options.device), signal_shares().to(options.device)
    attention = attention_options(options.device)

    for progress, speak in steps(options, options.batch * options.processes, 3e5, "controlnet"):
        rows = torch.randint(len(pool.latents), (options.batch,), device=options.device)
        noisy, time_index, target = noised(pool.latents[rows], alphas, options.dtype, lean=2.0)
        hint = (maps[rows, None].to(options.dtype) / 255).expand(-1, 3, -1, -1)
        with torch.no_grad():
            context, y = encoded_prompts(text, word_rows[caption_rows(pool.specs[rows])], sizes, options.dtype)
        inputs = {"x": noisy, "timesteps": time_index, "context": context, "y": y}
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


def contour_pool(specs: world.Specs) -> Tensor:
    """Edge maps [N, 128, 128] as bytes, drawn a few at a time so that they stay in cache."""
    rows = torch.arange(len(specs), device=specs.subject.device)
    drawn = (world.contours(world.draw_scene(specs[part], world.SIZE)) for part in rows.split(32))
    return torch.cat([(255 * part).round().byte() for part in drawn])


def measure_profile(options: argparse.Namespace) -> None:
    """The UNet's style profile: twelve known styles, each painting the same five scenes."""
    scenes = world.random_specs(5, torch.Generator().manual_seed(options.seed))
    styles = world.random_specs(12, torch.Generator().manual_seed(options.seed + 1))
    clusters = {}
    for number in range(12):
        painted = scenes.in_style_of(styles[torch.full((5,), number)])
        clusters[f"{world.FAMILY_NAMES[int(painted.family[0, 0])]} {number + 1}"] = world.render(painted)[0]
    if not options.rank:
        shipped(measured(clusters, "style"))


def measure_geometry(options: argparse.Namespace) -> None:
    """The UNet's profile of geometry: the trimmed mean of five series, each of ten hands drawing one scene.

    As the paper's (arXiv 2412.19853): a series shows one subject in one place, posed anew, in one flat
    outlined style, so that its pictures differ in the hand more than in what they show; series differ in the subject.
    """
    from conditional_balance.engine.combining import trimmed_mean

    if options.rank:
        return
    painter = world.random_specs(1, torch.Generator().manual_seed(options.seed + 3), ("poster",))
    series = []
    for number in range(5):
        posed = world.random_specs(4, torch.Generator().manual_seed(options.seed + 20 + number))
        first = torch.zeros(4, dtype=torch.long)
        scenes = replace(posed, subject=posed.subject[first], background=posed.background[first])
        painted = scenes.in_style_of(painter[first])
        series.append(measured({name: world.render(painted, hand=hand)[0] for name, hand in HANDS.items()}, "geometry"))
    shipped(trimmed_mean(series))


@torch.inference_mode()
def measured(clusters: dict[str, Tensor], what: str) -> SensitivityProfile:
    """The shipped UNet's profile by the pack's own node, from named clusters of pictures [B, 3, 128, 128]."""
    from conditional_balance.hooks.clusters import with_cluster
    from conditional_balance.nodes.profile import CBProfileSensitivity

    model, clip, vae = models.load_unet(), models.load_clip(), models.load_vae()
    chained = ()
    for name, pictures in clusters.items():
        chained = with_cluster(chained, name, list(pictures.movedim(1, -1)))
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a picture", ""))
    result = CBProfileSensitivity.execute(
        model, chained, vae, positive, what, 12, "q and k", 0, "from images", world.SIZE, "jensen_shannon", negative
    ).result
    print(result[2], flush=True)
    return result[0]


def shipped(profile: SensitivityProfile) -> None:
    """Put a profile among the pack's own."""
    from conditional_balance.engine.profile import save as save_profile

    name = f"demo.{profile.provenance['what']}.safetensors"
    save_profile(profile, Path(__file__).parent.parent / "sensitivity_profiles" / name)


PARTS = {
    "autoencoder": train_autoencoder,
    "decoder": train_decoder,
    "judge": train_judge,
    "unet": train_unet,
    "profile": measure_profile,
    "controlnet": train_controlnet,
    "geometry": measure_geometry,
}

if __name__ == "__main__":
    main()
