"""The demo models' profiles, measured by the pack's own node on crossed series: every style draws the same subjects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from demo import models
from demo.world import scenes
from demo.world.atlas import Atlas
from demo.world.media import KNOWN_MEDIA, MEDIA, PLAIN
from demo.world.sets import HANDS, KNOWN_HANDS
from demo.world.subjects import WORDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from comfy.model_patcher import ModelPatcher

    from conditional_balance.engine.profile import SensitivityProfile

PROFILES = Path(__file__).parents[2] / "sensitivity_profiles"
DRAWN = ("fox", "whale", "owl", "mushroom", "car", "house", "teacup", "rocket")  # by every style


def measure_profile(atlas: Atlas, weights: Path) -> None:
    """Of style, for the UNet in a folder of weights and, where it is trained, the transformer."""
    clusters = styles(atlas)
    keep(measured(models.load_unet, weights, "unet", clusters, "style"), weights, "demo.style")
    if (weights / "transformer.safetensors").exists():
        found = measured(models.load_transformer, weights, "transformer", clusters, "style")
        keep(found, weights, "demo.transformer.style")


def styles(atlas: Atlas) -> dict[str, Tensor]:
    """The eight known hands, and the six known media, each over another hand."""
    others = [name for name in KNOWN_MEDIA if name != PLAIN]
    named = [(hand, PLAIN) for hand in KNOWN_HANDS]
    named += [(KNOWN_HANDS[number], medium) for number, medium in enumerate(others)]
    clusters = {}
    for number, (hand, medium) in enumerate(named):
        name = f"{HANDS[hand]} drawing" if medium == PLAIN else f"{HANDS[hand]} drawing, {medium} style"
        clusters[name] = scenes.render(drawn_in(hand, medium, number), atlas, atlas.half())[0]
    return clusters


def measure_geometry(atlas: Atlas, weights: Path) -> None:
    """Of what hands do without any colour, their drawings as black lines on white: for the UNet, which a ControlNet
    leads."""
    clusters = {}
    for number, hand in enumerate(KNOWN_HANDS):
        specs = replace(drawn_in(hand, PLAIN, number), place=torch.full((len(DRAWN),), scenes.NOTHING))
        lines = scenes.contours(scenes.composed(specs, atlas, atlas.half()))
        clusters[f"{HANDS[hand]} drawing"] = (1 - lines)[:, None].expand(-1, 3, -1, -1)
    keep(measured(models.load_unet, weights, "unet", clusters, "geometry"), weights, "demo.geometry")


def drawn_in(hand: str, medium: str, seed: int) -> scenes.Specs:
    """The same subjects, each alone in one place and pose, by a hand in a medium whose open parameters `seed` fixes."""
    specs = scenes.random_specs(len(DRAWN), torch.Generator().manual_seed(0), alone=1.0)
    painter = scenes.random_specs(1, torch.Generator().manual_seed(seed), hands=(hand,))
    styled = specs.in_style_of(painter[torch.zeros(len(DRAWN), dtype=torch.long)])
    subject = torch.tensor([[WORDS.index(word), scenes.NOTHING] for word in DRAWN])
    return replace(styled, subject=subject, medium=torch.full((len(DRAWN),), list(MEDIA).index(medium)))


@torch.inference_mode()
def measured(
    load: Callable[[Path], ModelPatcher], weights: Path, part: str, clusters: dict[str, Tensor], what: str
) -> SensitivityProfile:
    """A model's profile by the pack's own node, from named clusters of pictures [B, 3, 192, 192] of DRAWN."""
    from conditional_balance.nodes.profile import CBProfileSensitivity
    from conditional_balance.runtime.profile.clusters import with_cluster

    for name in (part, "text_encoder", "autoencoder"):
        if not (weights / f"{name}.safetensors").exists():
            raise SystemExit(f"There is no {name}.safetensors in {weights}: train it first, or give another --out.")
    with torch.inference_mode(False):
        model = load(weights / f"{part}.safetensors")
        clip = models.load_clip(weights / "text_encoder.safetensors")
        vae = models.load_vae(weights / "autoencoder.safetensors")
    chained = ()
    for name, pictures in clusters.items():
        chained = with_cluster(chained, name, list(pictures.movedim(1, -1)), DRAWN)
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a picture", ""))
    result = CBProfileSensitivity.execute(
        model, chained, vae, positive, what, 12, "q and k", 0, "from images", scenes.SIZE, "jensen_shannon", negative
    ).result
    print(result[2], flush=True)
    return result[0]


def keep(profile: SensitivityProfile, weights: Path, name: str) -> None:
    """Write the profile of shipped weights among the pack's own, of others beside them."""
    from conditional_balance.engine.profile_file import save as save_profile

    save_profile(profile, (PROFILES if weights == models.WEIGHTS else weights) / f"{name}.safetensors")
