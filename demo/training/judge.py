"""Training of the judges: features of drawn, autoencoded and spoilt scenes, kept by the block, then heads on them."""

from __future__ import annotations

import argparse
import copy
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from demo import judge as judging
from demo.autoencoder import Autoencoder
from demo.judge import Head, Judge
from demo.nets import fast_dtype
from demo.training.autoencoder import load_autoencoder
from demo.training.loop import save
from demo.training.pool import World, joined
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
SHRUNK = (0.01, 0.02, 0.05, 0.1)

Features = dict[str, Tensor]
Maker = Callable[[], Features]


def train_judge(options: argparse.Namespace, world: World) -> None:
    """Heads on features of at most `--samples` scenes, and of all 21,000 by default; features of finished blocks are
    not made again."""
    folder = options.out / "judge_features"
    folder.mkdir(exist_ok=True)
    makers = blocks(world, load_autoencoder(options), options.samples)
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
    heads = {name: weight for name, weight in judge.state_dict().items() if not name.startswith("named_hand.")}
    save(heads, options.out / "judge.safetensors")
    torch.save({"done": True}, options.out / "judge.checkpoint")


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
    specs = joined(first, second)
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


def fitted(shown: Features, dice: torch.Generator) -> Judge:
    """All heads but the one that names hands (see `hands`), each on its own rows; a tenth of the blocks, the last, only
    say when to stop and how sure to be."""
    judge = Judge()
    torch.manual_seed(dice.initial_seed())
    look, hand = shown["whole"][:, : judging.LOOK], shown["hand"]
    known = hand < len(KNOWN_HANDS)
    discriminate("subject", judge.subject, shown["thing"], shown["subject"])
    told("place", judge.place, look, shown["place"], dice)
    for name, head, rows in (("hand", judge.hand, look), ("line", judge.line, shown["line"])):
        learn_hands(name, head, rows, hand, dice)
    learn_styles(judge.manner, look[known].view(-1, 2, PAIRS, judging.LOOK).transpose(1, 2).flatten(0, 1), dice)
    return judge.eval()


def standardise(head: Head, rows: Tensor) -> None:
    head.mean.copy_(rows.float().mean(0))
    head.spread.copy_(rows.float().std(0) + 1e-3)


def learn(name: str, head: Head, loss: Callable[[], Tensor], held: Callable[[], Tensor], steps: int = 2000) -> None:
    """AdamW with cosine decay. The head is left as it was when `held`, its loss on what it does not learn from, was
    least."""
    adamw = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.1)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adamw, steps)
    least, best, at = math.inf, copy.deepcopy(head.state_dict()), 0
    for step in range(steps):
        head.train()
        with torch.enable_grad():
            value = loss()
        adamw.zero_grad()
        value.backward()
        adamw.step()
        decay.step()
        if step % 100 == 99:
            head.eval()
            with torch.no_grad():
                now = float(held())
            if now < least:
                least, best, at = now, copy.deepcopy(head.state_dict()), step + 1
    head.load_state_dict(best)
    head.eval()
    print(f"judge: {name}: loss {float(value.detach()):.3f}, held out {least:.3f} after {at} steps", flush=True)


def told(name: str, head: Head, rows: Tensor, truth: Tensor, dice: torch.Generator, batch: int = 256) -> None:
    """A head that names things, calibrated."""
    count = len(rows) - len(rows) // 10
    standardise(head, rows[:count])
    held, held_truth = rows[count:].float(), truth[count:]

    def loss() -> Tensor:
        some = torch.randint(count, (batch,), generator=dice)
        return functional.cross_entropy(head(rows[some].float()), truth[some], label_smoothing=0.05)

    learn(name, head, loss, lambda: functional.cross_entropy(head(held), held_truth))
    with torch.no_grad():
        logits = head(held)
        right = (logits.argmax(1) == held_truth).float().mean()
        heat = temperature(logits, held_truth)
        head.read[-1].weight /= heat
        head.read[-1].bias /= heat
    print(f"judge: {name}: right in {100 * right:.1f} % of {len(held)} held out, temperature {heat:.2f}", flush=True)


def discriminate(name: str, head: Head, rows: Tensor, truth: Tensor) -> None:
    """A linear head in closed form, which overfits less than one that descends: of 6,000 scenes it was right in 86 % of
    others, and that one in 82 %. The last tenth decides how much the scatter is shrunk, and how sure the head is."""
    count = len(rows) - len(rows) // 10
    standardise(head, rows)
    even = ((rows.float() - head.mean) / head.spread).clamp(-6, 6)
    tried = []
    for shrunk in SHRUNK:
        weight, bias = discriminant(even[:count], truth[:count], head.read[-1].out_features, shrunk)
        logits = even[count:] @ weight.T + bias
        heat = temperature(logits, truth[count:])
        surprise = functional.cross_entropy(logits / heat, truth[count:])
        tried.append((float(surprise), shrunk, heat, float((logits.argmax(1) == truth[count:]).float().mean())))
    surprise, shrunk, heat, right = min(tried)
    weight, bias = discriminant(even, truth, head.read[-1].out_features, shrunk)
    head.read[-1].load_state_dict({"weight": weight / heat, "bias": bias / heat})
    head.eval()
    about = f"shrunk by {shrunk}, temperature {heat:.2f}, held out {surprise:.3f}"
    print(f"judge: {name}: right in {100 * right:.1f} % of {len(rows) - count} held out, {about}", flush=True)


def discriminant(rows: Tensor, truth: Tensor, classes: int, shrunk: float) -> tuple[Tensor, Tensor]:
    """Weights [classes, D] and biases of the linear discriminant between rows [B, D], all classes as likely.

    The scatter within classes is shrunk toward a ball (Friedman, Regularized Discriminant Analysis, 1989, eq. 18).
    """
    seen = functional.one_hot(truth, classes).float()
    centres = (seen.T @ rows) / seen.sum(0).clamp_min(1)[:, None]
    off = rows - centres[truth]
    scatter = off.T @ off / len(rows)
    ball = shrunk * scatter.diagonal().mean() * torch.eye(len(scatter))
    weight = torch.linalg.solve((1 - shrunk) * scatter + ball, centres.T).T
    return weight, -0.5 * (weight * centres).sum(1)


def temperature(logits: Tensor, truth: Tensor) -> float:
    """What logits [B, N] are to be divided by for the least surprise at the truth (arXiv 1706.04599, section 4.2)."""
    heats = torch.logspace(-1, 2, 301, base=5)
    return float(min(heats, key=lambda heat: float(functional.cross_entropy(logits / heat, truth))))


def learn_hands(name: str, head: Head, rows: Tensor, hand: Tensor, dice: torch.Generator) -> None:
    """So that scenes by one hand lie together; every eighth of the strange hands is held out."""
    strange = hand.unique()[hand.unique() >= len(KNOWN_HANDS)]
    apart = torch.isin(hand, strange[::8])
    standardise(head, rows[~apart])
    mine, theirs = (rows[part] for part in (~apart, apart))
    chance = torch.Generator().manual_seed(0)
    some = chosen_by_hand(hand[apart], 0, len(strange[::8]), chance)
    learn(
        name, head,
        lambda: hand_loss(head, mine, hand[~apart], chosen_by_hand(hand[~apart], 8, 24, dice)),
        lambda: hand_loss(head, theirs, hand[apart], some),
    )  # fmt: skip


def chosen_by_hand(hand: Tensor, known: int, strange: int, dice: torch.Generator, scenes_each: int = 10) -> Tensor:
    """Rows of ten scenes each of so many known and strange hands."""
    names = hand.unique()
    named, others = names[names < len(KNOWN_HANDS)], names[names >= len(KNOWN_HANDS)]
    chosen = torch.cat([named[:known], others[torch.randperm(len(others), generator=dice)[:strange]]])
    rows = ((hand == name).nonzero()[:, 0] for name in chosen)
    return torch.cat([mine[torch.randint(len(mine), (scenes_each,), generator=dice)] for mine in rows])


def hand_loss(head: Head, rows: Tensor, hand: Tensor, some: Tensor) -> Tensor:
    """Supervised contrast (arXiv 2004.11362, eq. 2) among some rows."""
    points = functional.normalize(head(rows[some].float()), dim=1)
    likeness = points @ points.T / 0.1
    itself = torch.eye(len(points), dtype=torch.bool)
    likely = likeness.masked_fill(itself, -1e9).log_softmax(1)
    same = (hand[some][:, None] == hand[some]) & ~itself
    return -(likely * same).sum(1).div(same.sum(1)).mean()


def learn_styles(head: Head, pairs: Tensor, dice: torch.Generator, batch: int = 192) -> None:
    """From pairs [N, 2, LOOK] in one style; the last tenth is held out."""
    count = len(pairs) - len(pairs) // 10
    standardise(head, pairs[:count].flatten(0, 1))
    held = torch.arange(count, len(pairs))[:batch]

    def loss() -> Tensor:
        return style_loss(head, pairs[torch.randint(count, (batch,), generator=dice)])

    learn("style", head, loss, lambda: style_loss(head, pairs[held]))


def style_loss(head: Head, pairs: Tensor) -> Tensor:
    """NT-Xent (arXiv 2002.05709, eq. 1) over pairs in one style."""
    points = functional.normalize(head(pairs.transpose(0, 1).flatten(0, 1).float()), dim=1)
    likeness = (points @ points.T / 0.1).fill_diagonal_(-1e9)
    return functional.cross_entropy(likeness, torch.arange(len(points)).roll(len(pairs)))
