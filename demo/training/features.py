"""What the judges learn from: features of drawn, autoencoded and spoilt scenes, made and kept by the block."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path

import torch
from torch import Tensor

from demo import judge as judging
from demo.autoencoder import Autoencoder
from demo.nets import fast_dtype
from demo.training.pool import World
from demo.training.redrawn import redrawn, warped
from demo.world import scenes
from demo.world.atlas import Atlas, filled, premultiplied
from demo.world.sets import HANDS, ICON_FAMILIES, KNOWN_HANDS, ONE_COLOUR
from demo.world.subjects import SUBJECTS

PAIRS = 100  # scenes in one style, two and two, to a block
PAIR_BLOCKS = 48
SUBJECTS_ONLY = 320  # scenes from which only subjects are learnt, to a block
SUBJECT_BLOCKS = 24
STRANGE = 32  # scenes by one strange hand, to a block
REDRAWN = 108  # hands that redraw a known one
CHUNK = 8  # pictures drawn at once

Features = dict[str, Tensor]
Maker = Callable[[], Features]


def keep(features: Features, path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save({name: value.half() if value.is_floating_point() else value for name, value in features.items()}, part)
    os.replace(part, path)


def gathered(paths: list[Path]) -> Features:
    parts = [torch.load(path, weights_only=True) for path in paths]
    names = parts[0].keys()
    return {name: torch.cat([part[name] for part in parts if name in part]) for name in names}


def blocks(world: World, vae: Autoencoder, scenes_wanted: float) -> list[tuple[str, Maker]]:
    """Names and makers: scenes by known hands in pairs of one style, scenes for their subjects alone, and scenes by
    strange hands. All kinds come in turns, so that a few blocks hold as much of each as all of them do."""
    strange = [(family, hand) for family, hands in ICON_FAMILIES.items() for hand in hands]
    makers = {
        "pairs": [partial(of_pairs, world, vae, number) for number in range(PAIR_BLOCKS)],
        "subjects": [partial(of_subjects, world, vae, number) for number in range(SUBJECT_BLOCKS)],
        "icons": [partial(of_icons, world, vae, number, *hand) for number, hand in enumerate(strange)],
        "redrawn": [partial(of_redrawn, world, vae, number) for number in range(REDRAWN)],
    }
    whole = 2 * PAIRS * PAIR_BLOCKS + SUBJECTS_ONLY * SUBJECT_BLOCKS + STRANGE * (len(strange) + REDRAWN)
    share = min(1.0, scenes_wanted / whole)
    wanted = [
        ((number + 0.5) / len(each), f"{kind}{number:03}.pt", make)
        for kind, each in makers.items()
        for number, make in enumerate(each[: math.ceil(share * len(each))])
    ]
    return [(name, make) for _, name, make in sorted(wanted, key=itemgetter(0, 1))]


def dice_of(world: World, number: int) -> torch.Generator:
    """Chance that depends on the block alone, whichever process makes it."""
    return torch.Generator(world.device).manual_seed(number)


def of_pairs(world: World, vae: Autoencoder, number: int) -> Features:
    """Scenes by known hands; rows i and i + PAIRS share a style."""
    dice = dice_of(world, 10_000 + number)
    first = scenes.random_specs(PAIRS, dice, subjects=SUBJECTS)
    second = scenes.random_specs(PAIRS, dice, subjects=SUBJECTS).in_style_of(first)
    specs = scenes.joined(first, second)
    style = (number * PAIRS + torch.arange(PAIRS)).repeat(2)
    return features(specs, drawn_by(world, specs, world.atlas, world.small), vae, dice, specs.hand.cpu(), style)


def of_subjects(world: World, vae: Autoencoder, number: int) -> Features:
    """Features of subjects and nothing else, which cost half as much."""
    dice = dice_of(world, 40_000 + number)
    specs = scenes.random_specs(SUBJECTS_ONLY, dice, subjects=SUBJECTS, alone=0.3)
    pictures = spoilt(drawn_by(world, specs, world.atlas, world.small), vae, dice)
    thing, subject = things_of(specs.to("cpu"), pictures)
    return {"thing": thing, "subject": subject}


def of_icons(world: World, vae: Autoencoder, number: int, family: str, hand: str) -> Features:
    atlas = icon_atlas(family, hand)
    return of_strange(world, vae, 20_000 + number, atlas, 100 + number, True)


def of_redrawn(world: World, vae: Autoencoder, number: int) -> Features:
    """A known hand, redrawn."""
    hand = KNOWN_HANDS[number % len(KNOWN_HANDS)]
    rows = random.Random(number).sample(range(len(SUBJECTS)), 32)
    drawings = redrawn(world.atlas.drawings[list(HANDS).index(hand), rows], number)
    atlas = Atlas(drawings[None], (hand,), tuple(SUBJECTS[row] for row in rows))
    return of_strange(world, vae, 30_000 + number, atlas, 200 + number, hand in ONE_COLOUR)


def of_strange(world: World, vae: Autoencoder, seed: int, atlas: Atlas, hand: int, coloured: bool) -> Features:
    """Scenes by the one hand of an atlas, whose subjects are not told."""
    dice = dice_of(world, seed)
    specs = scenes.random_specs(STRANGE, dice, subjects=SUBJECTS, alone=0.7, plain=0.6)
    count = len(atlas.subjects)
    second = (specs.subject[:, 1] % (count - 1) + specs.subject[:, 0] + 1) % count
    alone = specs.subject[:, 1] == scenes.NOTHING
    paint = torch.randint(len(scenes.COLOURS), (STRANGE,), generator=dice, device=dice.device)
    mine = replace(
        specs,
        hand=torch.zeros_like(specs.hand),
        subject=torch.stack([specs.subject[:, 0] % count, torch.where(alone, scenes.NOTHING, second)], 1),
        colour=paint if coloured else torch.full_like(paint, scenes.NOTHING),
    )
    pictures = drawn_by(world, mine, atlas.to(world.device), atlas.half().to(world.device))
    untold = replace(mine, subject=torch.full_like(mine.subject, scenes.NOTHING))
    none = torch.full((STRANGE,), -1)
    return features(untold, pictures, vae, dice, torch.full((STRANGE,), hand), none)


def icon_atlas(family: str, hand: str, count: int = 48) -> Atlas:
    """One hand of an icon family, its enclosed parts filled with paper as all one-colour hands' are."""
    from demo.world.drawing import drawing_of, drawn, fitted, icon_subjects, icons_of

    before, behind = ICON_FAMILIES[family][hand]
    names = random.Random(0).sample(icon_subjects(family), count)
    icons = icons_of(family)
    drawings = [filled(drawn(fitted(drawing_of(icons, f"{before}{name}{behind}")), scenes.SIZE)) for name in names]
    return Atlas(torch.stack([premultiplied(one) for one in drawings])[None], (hand,), tuple(names))


def drawn_by(world: World, specs: scenes.Specs, atlas: Atlas, small: Atlas) -> Tensor:
    rows = torch.arange(len(specs), device=world.device).split(CHUNK)
    return torch.cat([scenes.render(specs[part], atlas, small)[0] for part in rows])


@torch.no_grad()
def features(
    specs: scenes.Specs, pictures: Tensor, vae: Autoencoder, dice: torch.Generator, hand: Tensor, style: Tensor
) -> Features:
    """All that the heads learn from: one row a scene, and for `thing` one row a subject."""
    pictures = spoilt(pictures, vae, dice)
    specs, dtype = specs.to("cpu"), fast_dtype(pictures.device.type)
    place = torch.where(specs.place == scenes.NOTHING, len(scenes.PLACE_NAMES), specs.place)
    whole = judging.seen(pictures, judging.whole_of, dtype).cpu()
    line = judging.seen(judging.grey(pictures), judging.line_of, dtype).cpu()
    thing, subject = things_of(specs, pictures, whole[:, judging.LOOK :])
    return {
        "whole": whole, "line": line, "hand": hand, "style": style, "place": place, "thing": thing, "subject": subject,
    }  # fmt: skip


@torch.no_grad()
def things_of(specs: scenes.Specs, pictures: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Features of every subject that is told, looked at where it is, and which it is; `known`: of whole pictures."""
    dtype = fast_dtype(pictures.device.type)
    rows, subjects = [torch.zeros(0, judging.THING)], []
    for which, alone in ((0, True), (0, False), (1, False)):
        told = (specs.subject[:, which] != scenes.NOTHING) & ((specs.subject[:, 1] == scenes.NOTHING) == alone)
        subjects.append(specs.subject[told, which])
        if told.any() and alone and known is not None:
            rows.append(known[told])
        elif told.any():
            at = told.to(pictures.device)
            relation = specs.relation[told].to(pictures.device)
            crops = pictures[at] if alone else judging.near(pictures[at], relation, which)
            rows.append(judging.seen(crops, judging.thing_of, dtype).cpu())
    return torch.cat(rows), torch.cat(subjects)


@torch.no_grad()
def spoilt(pictures: Tensor, vae: Autoencoder, dice: torch.Generator) -> Tensor:
    """A third as drawn, a third autoencoded, a third as a sampler would: unsteady, then with noisy latents."""
    kind = torch.randint(3, (len(pictures),), generator=dice, device=dice.device)
    torch.manual_seed(dice.initial_seed())
    result = []
    for picture, how in zip(pictures, kind.tolist(), strict=True):
        seen = picture[None]
        if how == 2 and torch.rand(()) < 0.6:
            seen = warped(seen, 0.01 + 0.02 * float(torch.rand(())), 16)
        if how:
            latents = vae.encode(2 * seen.to(next(vae.parameters()).dtype) - 1)
            noise = 0.35 * float(torch.rand(())) if how == 2 else 0.0
            seen = vae.decode(latents + noise * torch.randn_like(latents)).float() / 2 + 0.5
        result.append(seen.clamp(0, 1))
    return torch.cat(result)
