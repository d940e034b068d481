"""Training of the judges: features of drawn, autoencoded and spoilt scenes, kept by the block, then heads on them."""

from __future__ import annotations

import argparse
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from demo import judge as judging
from demo.autoencoder import Autoencoder
from demo.judge import Head, Judge
from demo.training.autoencoder import load_autoencoder
from demo.training.loop import save
from demo.training.pool import World, joined
from demo.training.redrawn import redrawn, warped
from demo.world import scenes
from demo.world.atlas import Atlas, filled, premultiplied
from demo.world.sets import HANDS, ICON_FAMILIES, KNOWN_HANDS, ONE_COLOUR
from demo.world.subjects import SUBJECTS

PAIRS = 100  # scenes in one style, two and two, to a block
PAIR_BLOCKS = 14
STRANGE = 32  # scenes by one strange hand, to a block
REDRAWN = 54  # hands that redraw a known one
CHUNK = 8  # pictures drawn at once

Features = dict[str, Tensor]


def train_judge(options: argparse.Namespace, world: World) -> None:
    """Heads on features of about `--samples` scenes, 5,000 at most; features of finished blocks are not made again."""
    folder = options.out / "judge_features"
    folder.mkdir(exist_ok=True)
    makers = list(blocks(world, load_autoencoder(options), min(options.samples, 5000)))
    for name, make in makers[options.rank :: options.processes]:
        if not (folder / name).exists() and time.monotonic() < options.deadline:
            start = time.monotonic()
            keep(make(), folder / name)
            print(f"judge: features {name}, {time.monotonic() - start:.0f} s", flush=True)
    if options.processes > 1:
        torch.distributed.barrier()
    if options.rank or not all((folder / name).exists() for name, _ in makers):
        return
    shown = gathered([folder / name for name, _ in makers])
    judge = fitted(shown, torch.Generator().manual_seed(options.seed))
    save(judge.state_dict(), options.out / "judge.safetensors")
    torch.save({"done": True}, options.out / "judge.checkpoint")


def keep(features: Features, path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save({name: value.half() if value.is_floating_point() else value for name, value in features.items()}, part)
    os.replace(part, path)


def gathered(paths: list[Path]) -> Features:
    parts = [torch.load(path, weights_only=True) for path in paths]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return {name: value.float() if value.is_floating_point() else value for name, value in whole.items()}


def blocks(world: World, vae: Autoencoder, scenes_wanted: float) -> Iterator[tuple[str, Callable[[], Features]]]:
    """Names and makers: about three in five scenes by known hands, in pairs of one style, the rest by strange ones."""
    strange = [(family, hand) for family, hands in ICON_FAMILIES.items() for hand in hands]
    share = min(1.0, scenes_wanted / 5000)
    for number in range(math.ceil(share * PAIR_BLOCKS)):
        yield f"pairs{number:02}.pt", lambda number=number: of_pairs(world, vae, number)
    for number in range(math.ceil(share * len(strange))):
        yield f"icons{number:02}.pt", lambda number=number: of_icons(world, vae, number, *strange[number])
    for number in range(math.ceil(share * REDRAWN)):
        yield f"redrawn{number:02}.pt", lambda number=number: of_redrawn(world, vae, number)


def dice_of(world: World, number: int) -> torch.Generator:
    """Chance that depends on the block alone, whichever process makes it."""
    return torch.Generator(world.device).manual_seed(number)


def of_pairs(world: World, vae: Autoencoder, number: int) -> Features:
    """Scenes by known hands; rows i and i + PAIRS share a style."""
    dice = dice_of(world, 10_000 + number)
    first = scenes.random_specs(PAIRS, dice, subjects=SUBJECTS)
    second = scenes.random_specs(PAIRS, dice, subjects=SUBJECTS).in_style_of(first)
    specs = joined(first, second)
    style = (number * PAIRS + torch.arange(PAIRS)).repeat(2)
    return features(specs, drawn_by(world, specs, world.atlas, world.small), vae, dice, specs.hand.cpu(), style)


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
    """All that the heads learn from: one row a scene, and for `thing` one row a subject, -1 filling up the rest."""
    pictures = spoilt(pictures, vae, dice)
    specs = specs.to("cpu")
    thing, subject = things_of(specs, pictures)
    place = torch.where(specs.place == scenes.NOTHING, len(scenes.PLACE_NAMES), specs.place)
    look, line = judging.looks(pictures).cpu(), judging.lines(pictures).cpu()
    return {
        "look": look, "line": line, "hand": hand, "style": style, "place": place, "thing": thing, "subject": subject,
    }  # fmt: skip


def things_of(specs: scenes.Specs, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Features of every subject, looked at where it is, and which it is."""
    alone = specs.subject[:, 1] == scenes.NOTHING
    crops, subjects = [pictures[alone.to(pictures.device)]], [specs.subject[alone, 0]]
    both = (~alone).nonzero()[:, 0].to(pictures.device)
    for which in (0, 1):
        if len(both):
            crops.append(judging.near(pictures[both], specs.relation.to(both.device)[both], which))
            subjects.append(specs.subject[both.cpu(), which])
    subject = torch.cat(subjects)
    told = subject != scenes.NOTHING
    if not told.any():
        return torch.zeros(0, judging.THING), subject[told]
    return judging.things(torch.cat(crops)[told.to(pictures.device)]).cpu(), subject[told]


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


def fitted(shown: Features, dice: torch.Generator) -> Judge:
    """All heads, each on its own rows."""
    judge = Judge()
    torch.manual_seed(dice.initial_seed())
    standardise(judge.subject, shown["thing"])
    for head in (judge.place, judge.named_hand, judge.hand, judge.manner):
        standardise(head, shown["look"])
    standardise(judge.line, shown["line"])
    known = shown["hand"] < len(KNOWN_HANDS)
    told(judge.subject, shown["thing"], shown["subject"], dice)
    told(judge.place, shown["look"], shown["place"], dice)
    told(judge.named_hand, shown["look"][known], shown["hand"][known], dice)
    for head, look in ((judge.hand, "look"), (judge.line, "line")):
        learn(head, lambda head=head, look=look: hand_loss(head, shown[look], shown["hand"], dice))
    pairs = [shown["look"][known].view(-1, 2, PAIRS, judging.LOOK)[:, i].flatten(0, 1) for i in (0, 1)]
    learn(judge.manner, lambda: style_loss(judge.manner, pairs, dice))
    return judge.eval()


def standardise(head: Head, rows: Tensor) -> None:
    head.mean.copy_(rows.mean(0))
    head.spread.copy_(rows.std(0) + 1e-3)


def learn(head: Head, loss: Callable[[], Tensor], steps: int = 1200, rate: float = 1e-3) -> float:
    """AdamW with cosine decay."""
    head.train()
    adamw = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.05)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adamw, steps)
    with torch.enable_grad():
        for _ in range(steps):
            value = loss()
            adamw.zero_grad()
            value.backward()
            adamw.step()
            decay.step()
    print(f"judge: loss {value.item():.3f}", flush=True)
    return value.item()


def told(head: Head, rows: Tensor, truth: Tensor, dice: torch.Generator, batch: int = 256) -> None:
    def loss() -> Tensor:
        some = torch.randint(len(rows), (batch,), generator=dice)
        return functional.cross_entropy(head(rows[some]), truth[some], label_smoothing=0.02)

    learn(head, loss)


def hand_loss(
    head: Head, rows: Tensor, hand: Tensor, dice: torch.Generator, known: int = 8, strange: int = 24
) -> Tensor:
    """Supervised contrast (arXiv 2004.11362, eq. 2) over ten scenes each of known and of strange hands."""
    names = hand.unique()
    chosen = torch.cat([
        names[names < 100][:known],
        names[names >= 100][torch.randperm(int((names >= 100).sum()), generator=dice)[:strange]],
    ])  # fmt: skip
    some = []
    for name in chosen:
        mine = (hand == name).nonzero()[:, 0]
        some.append(mine[torch.randint(len(mine), (10,), generator=dice)])
    points = functional.normalize(head(rows[torch.cat(some)]), dim=1)
    labels = chosen.repeat_interleave(10)
    likeness = points @ points.T / 0.1
    itself = torch.eye(len(points), dtype=torch.bool)
    likely = likeness.masked_fill(itself, -1e9).log_softmax(1)
    same = (labels[:, None] == labels) & ~itself
    return -(likely * same).sum(1).div(same.sum(1)).mean()


def style_loss(head: Head, pairs: list[Tensor], dice: torch.Generator, batch: int = 192) -> Tensor:
    """NT-Xent (arXiv 2002.05709, eq. 1) over pairs in one style."""
    some = torch.randint(len(pairs[0]), (batch,), generator=dice)
    points = functional.normalize(head(torch.cat([part[some] for part in pairs])), dim=1)
    likeness = (points @ points.T / 0.1).fill_diagonal_(-1e9)
    return functional.cross_entropy(likeness, torch.arange(2 * batch).roll(batch))
