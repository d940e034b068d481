"""Training of the judges: heads on features of scenes, which `features` makes."""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from demo import judge as judging
from demo.judge import Head, Judge
from demo.training.autoencoder import load_autoencoder
from demo.training.features import PAIRS, Features, blocks, gathered, keep
from demo.training.loop import save
from demo.training.pool import World
from demo.world.sets import KNOWN_HANDS

SHRUNK = (0.01, 0.02, 0.05, 0.1)


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
