"""The demo UNet's shipped profiles, measured by the pack's own node."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from demo import models, world
from demo.hands import HANDS

if TYPE_CHECKING:
    from conditional_balance.engine.profile import SensitivityProfile


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
    from conditional_balance.nodes.profile import CBProfileSensitivity
    from conditional_balance.runtime.profile.clusters import with_cluster

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
    from conditional_balance.engine.profile_file import save as save_profile

    name = f"demo.{profile.provenance['what']}.safetensors"
    save_profile(profile, Path(__file__).parents[2] / "sensitivity_profiles" / name)
