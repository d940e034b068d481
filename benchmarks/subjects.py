"""How to sample the demo model so that it obeys most, and which subjects it draws well: no reference, no ranking.

Eighty scenes are a round: every subject that the model was trained on, alone, by the known hands in turns, and sixteen
scenes of two, in chance order, with all of their captions. From round to round each subject passes to the next hand.
Settings of cfg and steps paint the same scenes from the same noise. *style distance* is to the same scene, drawn.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks._workers import forked, gathered
from benchmarks.harness import Demo, Paintings, Truth, described
from demo import models
from demo.judge import style_distance
from demo.world import scenes
from demo.world.scenes import NOTHING, Specs
from demo.world.sets import HANDS, KNOWN_HANDS
from demo.world.subjects import KNOWN_SUBJECTS, SUBJECTS, rows_of

SETTINGS = "3x12 4.5x12 6x12 3x8"  # cfg x steps
MEASURES = ("subjects", "sure of the subjects", "place", "hand", "style distance")
ROUND = 80
PART = 8  # scenes painted in one call

Found = dict[str, Any]


class Job(NamedTuple):
    setting: str
    part: int

    @property
    def cfg(self) -> float:
        return float(self.setting.partition("x")[0])

    @property
    def steps(self) -> int:
        return int(self.setting.partition("x")[2])


def main() -> None:
    chosen = harness.options(
        __doc__, scenes=80, settings=SETTINGS, workers=2, prepared=harness.PREPARED, weights=models.WEIGHTS
    )
    torch.set_num_threads(1)
    wanted = scenes_of(chosen.scenes, chosen.seed)
    parts = range(len(wanted) // PART)
    jobs = [Job(setting, part) for part in parts for setting in chosen.settings.split()]
    shared = Demo(weights=chosen.weights), Truth(chosen.prepared), wanted, paintings(chosen)
    with forked(chosen.workers, share_objects, *shared) as pool:
        rows = gathered(pool, run, jobs, lambda job: job.setting, every=20)
        if chosen.pictures:
            for setting in rows:
                some = pool.map(shown, [Job(setting, part) for part in parts[:6]])
                harness.sheet(torch.cat(some), PART, chosen.pictures / f"subjects {setting}.png")
    measured = {setting: torch.cat(found) for setting, found in rows.items()}
    harness.report(summarised(measured, wanted), chosen)


def paintings(chosen: Any) -> Paintings:
    return Paintings("subjects", *harness.weights_of(chosen.weights), f"{chosen.seed}")


def share_objects(demo: Demo, truth: Truth, wanted: Specs, kept: Paintings) -> None:
    global DEMO, TRUTH, WANTED, KEPT
    DEMO, TRUTH, WANTED, KEPT = demo, truth, wanted, kept


def scenes_of(count: int, seed: int) -> Specs:
    """The first `count` scenes of as many rounds as they take."""
    rounds = [one_round(number, seed) for number in range(math.ceil(count / ROUND))]
    return scenes.joined(*rounds)[torch.arange(count)]


def one_round(number: int, seed: int) -> Specs:
    dice = torch.Generator().manual_seed(1000 * (seed + 1) + number)
    rows = torch.tensor(rows_of(KNOWN_SUBJECTS))
    turn = (torch.arange(len(rows)) + number) % len(KNOWN_HANDS)
    hand = torch.tensor([list(HANDS).index(name) for name in KNOWN_HANDS])[turn]
    alone = scenes.random_specs(len(rows), dice, alone=1.0)
    alone = replace(alone, subject=torch.stack([rows, torch.full_like(rows, NOTHING)], 1))
    both = scenes.random_specs(ROUND - len(rows), dice, alone=0.0)
    return scenes.joined(by_hand(alone, hand, dice), both)[torch.randperm(ROUND, generator=dice)]


def by_hand(specs: Specs, hand: Tensor, dice: torch.Generator) -> Specs:
    """The same scenes by other hands, in a colour where the hand knows black alone."""
    parts = [scenes.random_specs(1, dice, (list(HANDS)[row],)) for row in hand.tolist()]
    return replace(specs, hand=hand, colour=torch.cat([part.colour for part in parts]))


def painted(job: Job) -> Tensor:
    """Latents of one part of the scenes."""

    def paint() -> Tensor:
        DEMO.cfg = job.cfg
        return DEMO.sample(DEMO.model, scenes.captions(WANTED[rows_of_part(job.part)]), job.part, job.steps)

    return KEPT.of(f"{job.setting} {job.part:03}", paint)


def shown(job: Job) -> Tensor:
    return DEMO.decode(painted(job))


def run(job: Job) -> Tensor:
    """Measures [PART, MEASURES]."""
    pictures, wanted = shown(job), WANTED[rows_of_part(job.part)]
    right, sure = harness.as_prompted(harness.subjects_seen(DEMO.judge, pictures, wanted), wanted)
    known = torch.tensor([list(HANDS).index(name) for name in KNOWN_HANDS])
    columns = {
        "subjects": right,
        "sure of the subjects": sure,
        "place": harness.place_as_prompted(DEMO.judge, pictures, wanted),
        "hand": known[DEMO.judge.named_hands(pictures).argmax(1)] == wanted.hand,
        "style distance": style_distance(DEMO.judge.style(pictures), true_style(job.part)),
    }
    return torch.stack([columns[name].float() for name in MEASURES], 1)


@lru_cache(4)
def true_style(part: int) -> Tensor:
    return DEMO.judge.style(DEMO.autoencoded(TRUTH.draw(WANTED[rows_of_part(part)])))


def rows_of_part(part: int) -> Tensor:
    return torch.arange(PART * part, PART * (part + 1))


def summarised(measured: dict[str, Tensor], wanted: Specs) -> Found:
    alone = wanted.subject[:, 1] == NOTHING
    return {
        "scenes": {"of one": int(alone.sum()), "of two": int((~alone).sum())},
        "settings, cfg x steps": {name: means(rows, alone) for name, rows in measured.items()},
        "by subject": {name: by_subject(rows[alone], wanted.subject[alone, 0]) for name, rows in measured.items()},
    }


def means(rows: Tensor, alone: Tensor) -> Found:
    """With 95 % intervals over scenes."""
    each = torch.arange(len(rows))
    subjects = {"one subject": alone, "both of two": ~alone}
    found = {name: described(rows[which, 0], each[which]) for name, which in subjects.items()}
    return found | {name: described(rows[:, at], each) for at, name in enumerate(MEASURES) if at}


def by_subject(rows: Tensor, subject: Tensor) -> Found:
    """Of every subject how often it is recognised and how sure the judge is of it; the surest half is `well drawn`."""
    found = {SUBJECTS[row]: rows[subject == row, :2].mean(0) for row in subject.unique().tolist()}
    order = sorted(found, key=lambda name: -float(found[name][1]))
    shares = {name: [round(float(value), 3) for value in found[name]] for name in order}
    half = set(order[: len(order) // 2])
    return {"well drawn": [name for name in SUBJECTS if name in half], "recognised, sure": shares}


if __name__ == "__main__":
    main()
