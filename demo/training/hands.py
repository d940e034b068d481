"""Training of the judge that names hands: blocks of the network that learnt on photographs, trained on drawn scenes.

Some subjects are left out of it, so that what is printed at the end also says how well hands are told by what they have
in common, not by drawings that were learnt by heart.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

from demo.autoencoder import Autoencoder
from demo.imagenet import load_imagenet
from demo.judge import STROKES, HandNamer, seen
from demo.training.autoencoder import load_autoencoder
from demo.training.features import Features, dice_of, drawn_by, gathered, keep, spoilt
from demo.training.judge import temperature
from demo.training.loop import save
from demo.training.pool import World
from demo.world import scenes
from demo.world.media import MEDIA, PLAIN
from demo.world.subjects import SUBJECTS

BLOCKS, BLOCK = 190, 100  # how many blocks, of how many scenes
LEARNT = 180  # blocks; by the others the namer is calibrated
LEFT_OUT = torch.arange(len(SUBJECTS)) % 9 == 4
CROP = 40  # of the 48 cells a side
BATCH, ROUNDS = 64, 8
RATES = {"blocks": 5e-4, "rest": 1.5e-3}


def train_hands(options: argparse.Namespace, world: World) -> None:
    """On the maps of 18,000 scenes, which take 2 GB; those of finished blocks are not made again. `--samples` is how
    many crops to learn from, eight of each scene by default."""
    folder = options.out / "hand_maps"
    folder.mkdir(exist_ok=True)
    vae, paths = load_autoencoder(options), [folder / f"{number:03}.pt" for number in range(BLOCKS)]
    for number, path in list(enumerate(paths))[options.rank :: options.processes]:
        if not path.exists() and time.monotonic() < options.deadline:
            start = time.monotonic()
            keep(maps_of(world, vae, number), path)
            print(f"hands: block {number + 1} of {BLOCKS}, {time.monotonic() - start:.0f} s", flush=True)
    if options.processes > 1:
        torch.distributed.barrier()
    if options.rank or not all(path.exists() for path in paths):
        return
    torch.set_num_threads(options.processes)
    namer = begun()
    shown, others = gathered(paths[:LEARNT]), gathered(paths[LEARNT:])
    left_out = LEFT_OUT[shown["subject"]].any(1)
    steps = math.ceil(min(options.samples, ROUNDS * int((~left_out).sum())) / BATCH)
    fit(namer, shown["maps"], shown["hand"], (~left_out).nonzero()[:, 0], steps, options.seed)
    calibrate(namer, others)
    for name, told in (("other scenes", others), ("subjects left out", part(shown, left_out))):
        print(f"hands: {name}: {rates(namer, told)}", flush=True)
    save(namer.state_dict(), options.out / "hands.safetensors")
    torch.save({"done": True}, options.out / "hands.checkpoint")


@torch.no_grad()
def maps_of(world: World, vae: Autoencoder, number: int) -> Features:
    """A block of scenes by known hands: the network's maps before the blocks that learn, and what is known of them."""
    dice = dice_of(world, 50_000 + number)
    specs = scenes.random_specs(BLOCK, dice, subjects=SUBJECTS)
    pictures = spoilt(drawn_by(world, specs, world.atlas, world.small), vae, dice)
    maps = seen(pictures, lambda maps, _: maps[STROKES.start]).cpu()
    specs = specs.to("cpu")
    plain = specs.medium == list(MEDIA).index(PLAIN)
    return {"maps": maps, "hand": specs.hand, "subject": specs.subject, "plain": plain}


def begun() -> HandNamer:
    namer = HandNamer()
    namer.blocks.begin(load_imagenet())
    return namer.to(memory_format=torch.channels_last)


@torch.enable_grad()
def fit(namer: HandNamer, maps: Tensor, hand: Tensor, rows: Tensor, steps: int, seed: int) -> None:
    """AdamW over one cycle, the network's blocks at a third of the rate; a random crop of the maps at each step."""
    torch.manual_seed(seed)
    blocks = set(namer.blocks.parameters())
    parts = [list(blocks), [weight for weight in namer.parameters() if weight not in blocks]]
    groups = [{"params": part, "lr": rate} for part, rate in zip(parts, RATES.values(), strict=True)]
    adamw = torch.optim.AdamW(groups, weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(adamw, list(RATES.values()), steps, pct_start=0.1)
    namer.train()
    for step in range(steps):
        some = rows[torch.randint(len(rows), (BATCH,))]
        top, left = torch.randint(maps.shape[-1] - CROP + 1, (2,)).tolist()
        crops = maps[some][:, :, top : top + CROP, left : left + CROP].float()
        logits = namer(crops.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits, hand[some], label_smoothing=0.05)
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(namer.parameters(), 2.0)
        adamw.step()
        cycle.step()
        if step % 100 == 99:
            print(f"hands: step {step + 1} of {steps}, loss {float(loss.detach()):.3f}", flush=True)
    namer.eval()


@torch.no_grad()
def calibrate(namer: HandNamer, others: Features) -> None:
    heat = temperature(logits_of(namer, others), others["hand"])
    namer.read[-1].weight /= heat
    namer.read[-1].bias /= heat


@torch.no_grad()
def logits_of(namer: HandNamer, told: Features) -> Tensor:
    return torch.cat([namer(maps.float()) for maps in told["maps"].split(BATCH)])


def rates(namer: HandNamer, told: Features) -> str:
    sure, named = logits_of(namer, told).softmax(1).max(1)
    right, plain = (named == told["hand"]).float(), told["plain"]
    found = f"right in {100 * right.mean():.1f} % of {len(right)}, sure to {100 * sure.mean():.1f} %"
    return f"{found}; without a medium right in {100 * right[plain].mean():.1f} % of {int(plain.sum())}"


def part(told: Features, rows: Tensor) -> Features:
    return {name: value[rows] for name, value in told.items()}
