"""What is trained on: pictures by the world's own generator, as bytes and as latents."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from demo import world
from demo.autoencoder import SHRINK, Autoencoder


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


def joined(a: world.Specs, b: world.Specs) -> world.Specs:
    return world.Specs(*(torch.cat([getattr(a, f), getattr(b, f)]) for f in a.__dataclass_fields__))


def load_autoencoder(options: argparse.Namespace) -> Autoencoder:
    path = options.out / "autoencoder.safetensors"
    if not path.exists():
        sys.exit(f"There is no {path}: train the part 'autoencoder' first.")
    vae = Autoencoder()
    vae.load_state_dict(load_file(path))
    return vae.to(options.device, options.dtype, memory_format=torch.channels_last).requires_grad_(False)


def encode_bytes(vae: Autoencoder, pictures: Tensor, dtype: torch.dtype) -> Tensor:
    return vae.encode((pictures.to(dtype) / 127.5 - 1).contiguous(memory_format=torch.channels_last))


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
    print(f"pool: {len(specs):,} latents, spread {pool.latents.float().std():.3f}", flush=True)
    return pool


@torch.no_grad()
def strayed_latents(options: argparse.Namespace, vae: Autoencoder, specs: world.Specs) -> Tensor:
    """The same scenes in other styles: [N, 8, 16, 16]."""
    strayed = in_other_styles(specs, torch.Generator(options.device).manual_seed(options.seed + 4 + options.rank))
    rows = torch.arange(len(specs), device=options.device)
    return torch.cat([encode_bytes(vae, rendered(strayed[part]), options.dtype) for part in rows.split(32)])


def in_other_styles(specs: world.Specs, draw: torch.Generator) -> world.Specs:
    """Half of them of the same family."""
    other = world.random_specs(len(specs), draw)
    same_family = torch.rand(len(specs), 1, generator=draw, device=draw.device) < 0.5
    return replace(specs, style=other.style, family=torch.where(same_family, specs.family, other.family))


def contour_pool(specs: world.Specs) -> Tensor:
    """Edge maps [N, 128, 128] as bytes, drawn a few at a time so that they stay in cache."""
    rows = torch.arange(len(specs), device=specs.subject.device)
    drawn = (world.contours(world.draw_scene(specs[part], world.SIZE)) for part in rows.split(32))
    return torch.cat([(255 * part).round().byte() for part in drawn])
