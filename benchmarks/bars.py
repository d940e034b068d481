"""Is the demo world fit to judge by? Prompts obeyed, style moved by full sharing, what that costs, and the judges."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks._workers import forked, gathered
from benchmarks.harness import CONTENTS, Demo, Paintings, Truth, auc, described
from conditional_balance.engine.gates import WrittenGate
from conditional_balance.engine.grammar import parse
from conditional_balance.engine.style import AUTO, StyleSettings
from conditional_balance.runtime.inject.reference import StyleReference
from conditional_balance.runtime.inject.style import StyleInjection, inject_style
from demo import models
from demo.judge import Judge, style_distance
from demo.world import scenes
from demo.world.media import MEDIA, PLAIN
from demo.world.scenes import NOTHING, PLACE_NAMES, Specs
from demo.world.sets import HANDS, HELD_OUT_HANDS, KNOWN_HANDS
from demo.world.subjects import SUBJECTS

Rows = dict[str, Tensor]
Found = dict[str, Any]


class Job(NamedTuple):
    content: str  # which of CONTENTS
    index: int  # which reference; also the seed


def main() -> None:
    chosen = harness.options(
        __doc__,
        references=12,
        prompts=4,
        steps=12,
        judged=150,
        workers=2,
        cfg=harness.CFG,
        only="",
        prepared=harness.PREPARED,
        weights=models.WEIGHTS,
        model="unet",
        position=AUTO,
        share=1.0,
    )
    torch.set_num_threads(1)
    jobs = [Job(name, index) for index in range(chosen.references) for name in CONTENTS if chosen.only in name]
    demo = Demo(cfg=chosen.cfg, weights=chosen.weights, paints=chosen.model)
    if not jobs:
        raise SystemExit(f"--only is part of {', '.join(map(repr, CONTENTS))}; it is {chosen.only!r}.")
    harness.check_position(chosen.position)
    shared = demo, Truth(chosen.prepared), chosen, paintings(chosen)
    with forked(chosen.workers, share_objects, *shared) as pool:
        painted = gathered(pool, paint, jobs, lambda job: job.content, every=1)
        judged = dict(zip(KINDS, pool.map(own_rates, KINDS), strict=True))
    found: Found = {
        name: {
            "bars": bars(rows),
            "hands": hands_told(rows),
            "generated": generated(rows),
            "pictures": 6 * chosen.prompts * len(rows),
        }
        for name, rows in painted.items()
    }
    harness.report({"painted": found, "judges": judged, "steps": chosen.steps, "cfg": chosen.cfg}, chosen)
    if chosen.pictures:
        for name, outcomes in painted.items():
            for way in WAYS:
                shown = torch.cat([outcome[f"{way} pictures"] for outcome in outcomes])
                harness.sheet(shown, 2 * chosen.prompts, chosen.pictures / f"bars {name}, {way}.png")


def paintings(chosen: Any) -> Paintings:
    return Paintings(
        "bars",
        *harness.weights_of(chosen.weights, chosen.model),
        f"{CONTENTS}",
        f"{chosen.prompts} {chosen.steps} {chosen.cfg} {chosen.seed}",
    )


def share_objects(demo: Demo, truth: Truth, chosen: Any, kept: Paintings) -> None:
    global DEMO, TRUTH, CHOSEN, KEPT
    DEMO, TRUTH, CHOSEN, KEPT = demo, truth, chosen, kept


# named: the style in words; none: no words for it; full: the same, and all layers share the reference's attention.
WAYS = ("named", "none", "full")


def paint(job: Job) -> Rows:
    """What is seen in all pictures for one drawn reference, a row each, scenes of one subject before scenes of two."""
    reference, wanted = pair(job)
    picture = TRUTH.draw(reference)
    prompts, plain = scenes.captions(wanted), harness.captions_without_style(wanted)
    prompt = DEMO.conditioning(harness.captions_without_style(reference))
    shown = StyleReference(DEMO.encode(picture), prompt)
    settings = StyleSettings(share=CHOSEN.share, position=CHOSEN.position)
    sharing = inject_style(DEMO.model, StyleInjection(WrittenGate(parse("all")), shown, settings))
    told = dict(zip(WAYS, ((DEMO.model, prompts), (DEMO.model, plain), (sharing, plain)), strict=True))
    point = DEMO.judge.style(DEMO.autoencoded(picture))
    rows = {"alone": wanted.subject[:, 1] == NOTHING, "plain": wanted.medium == list(MEDIA).index(PLAIN)}
    rows["floor"] = style_distance(point, DEMO.judge.style(DEMO.autoencoded(TRUTH.draw(wanted))))
    for way, (model, texts) in told.items():
        sampled = partial(DEMO.sample, model, texts, job.index, CHOSEN.steps)
        shared = harness.sharing(CHOSEN) if way == "full" else ""
        pictures = DEMO.decode(KEPT.of(f"{job.content} {job.index:03} {way}{shared}", sampled))
        measured = verdicts(DEMO.judge, pictures, wanted)
        measured["leak"] = (measured.pop("seen") == reference.subject[0, 0]).any(1)
        told_hand = measured.pop("told hand")
        if way == "named":
            rows["told hand"], rows["meant hand"] = told_hand, wanted.hand
        measured["distance"] = style_distance(point, DEMO.judge.style(pictures))
        rows |= {f"{way} {name}": column.float() for name, column in measured.items()} | {f"{way} pictures": pictures}
    return rows


def pair(job: Job) -> tuple[Specs, Specs]:
    """A reference of one subject, and scenes in its style, of one subject and of two, without its subject or place."""
    subjects, media = CONTENTS[job.content]
    dice = torch.Generator().manual_seed(1000 * CHOSEN.seed + job.index)
    reference, parts = scenes.random_specs(1, dice, subjects=subjects, media=media, alone=1.0), []
    for alone in (1.0, 0.0):
        many = scenes.random_specs(16 * CHOSEN.prompts, dice, subjects=subjects, alone=alone)
        other = (many.subject != reference.subject[0, 0]).all(1) & (many.place != reference.place)
        parts.append(many[other.nonzero()[: CHOSEN.prompts, 0]])
    wanted = scenes.joined(*parts)
    return reference, wanted.in_style_of(reference[torch.zeros(len(wanted), dtype=torch.long)])


def verdicts(judge: Judge, pictures: Tensor, specs: Specs) -> Rows:
    """Per picture: subjects seen [N, 2], whether all, the place and the hand are those meant, and the judge's trust."""
    log_shares = torch.full((len(pictures), 2, len(SUBJECTS)), -torch.inf)
    alone = specs.subject[:, 1] == NOTHING
    log_shares[alone, 0] = judge.subjects(pictures[alone])
    log_shares[~alone] = judge.pairs(pictures[~alone], specs.relation[~alone])
    trust, seen = log_shares.max(2)
    seen = torch.where(trust.isinf(), NOTHING, seen)
    place = torch.where(specs.place == NOTHING, len(PLACE_NAMES), specs.place)
    hand_trust, hand = judge.named_hands(pictures).max(1)
    known = torch.tensor([list(HANDS).index(name) for name in KNOWN_HANDS])
    return {
        "seen": seen, "content": (seen == specs.subject).all(1), "place": judge.places(pictures).argmax(1) == place,
        "hand": known[hand] == specs.hand, "hand trust": hand_trust.exp(), "told hand": known[hand],
        "trust": torch.where(trust.isinf(), 0.0, trust).sum(1).exp(),
    }  # fmt: skip


def bars(painted: list[Rows]) -> Found:
    """The measures that have a bar, with 95 % intervals over references."""
    groups = torch.arange(len(painted)).repeat_interleave(len(painted[0]["alone"]))
    rows = {name: torch.cat([outcome[name] for outcome in painted]) for name in painted[0] if "pictures" not in name}
    one = rows["alone"]
    moved = torch.stack([rows["none distance"], rows["full distance"], rows["floor"]], 1)
    costs = rows["none content"] - rows["full content"]
    result = {
        "subject as prompted": described(rows["named content"][one], groups[one]),
        "both subjects as prompted": described(rows["named content"][~one], groups[~one]),
        "hand as prompted": described(rows["named hand"], groups),
        "style moved by full sharing, of the way": described(moved, groups, share_of_way),
        "full sharing loses one subject": described(costs[one], groups[one]),
        "full sharing loses one of two or their relation": described(costs[~one], groups[~one]),
        "full sharing leaks the reference's subject": described(rows["full leak"], groups),
        "more than without": described(rows["full leak"] - rows["none leak"], groups),
    }
    if rows["plain"].any():
        result["hand as prompted, no medium"] = described(rows["named hand"][rows["plain"]], groups[rows["plain"]])
    return result


def hands_told(painted: list[Rows]) -> Found:
    """For each hand that prompts name, its references, and the share of pictures that are told to be by each hand."""
    meant, told = (torch.cat([outcome[f"{which} hand"] for outcome in painted]) for which in ("meant", "told"))
    found: Found = {}
    for row, name in enumerate(HANDS):
        if len(theirs := told[meant == row]):
            shares = torch.bincount(theirs, minlength=len(HANDS)) / len(theirs)
            references = sum(int(outcome["meant hand"][0] == row) for outcome in painted)
            found[name] = {"references": references} | {
                other: round(float(share), 4) for other, share in zip(HANDS, shares, strict=True) if share > 0
            }
    return found


def share_of_way(distances: Tensor) -> Tensor:
    """From [N, 3] distances without sharing, with it, and of the same scenes drawn in the style: how far it went."""
    none, full, floor = distances.mean(0)
    return (none - full) / (none - floor)


def generated(painted: list[Rows]) -> Found:
    """All means by way, for one subject and for two; trust beside rates says whether the judges are calibrated."""
    rows = {name: torch.cat([outcome[name] for outcome in painted]) for name in painted[0] if "pictures" not in name}
    found: Found = {"floor": round(float(rows["floor"].mean()), 4)}
    for name, column in rows.items():
        if name.split()[0] in WAYS:
            found[name] = [round(float(column[part].mean()), 4) for part in (rows["alone"], ~rows["alone"])]
    return found


KINDS = ("drawn", "autoencoded")


def own_rates(kind: str) -> Found:
    """How often the judges are right about scenes that they never saw; AUC of pairs by hand and by style."""
    dice = torch.Generator().manual_seed(90_000 + CHOSEN.seed)
    first = scenes.random_specs(CHOSEN.judged, dice, subjects=SUBJECTS)
    second = scenes.random_specs(CHOSEN.judged, dice, subjects=SUBJECTS).in_style_of(first)
    specs, judge = scenes.joined(first, second), DEMO.judge
    pictures = shown(specs, kind)
    told, one = verdicts(judge, pictures, specs), specs.subject[:, 1] == NOTHING
    plain = specs.medium == list(MEDIA).index(PLAIN)
    parts = {"one subject": ("content", one), "both of two": ("content", ~one), "place": ("place", one | ~one)}
    parts |= {"hand": ("hand", one | ~one), "hand, no medium": ("hand", plain), "trust, one": ("trust", one)}
    parts |= {"trust, both": ("trust", ~one), "trust, hand": ("hand trust", one | ~one)}
    found: Found = {name: round(float(told[key][rows].float().mean()), 4) for name, (key, rows) in parts.items()}
    points = judge.style(pictures)
    others = style_distance(points[: CHOSEN.judged, None], points[None, CHOSEN.judged :])
    found["AUC style"] = round(auc(others.diagonal(), others[~torch.eye(len(others), dtype=torch.bool)]), 4)
    return found | hand_aucs(kind, dice)


def hand_aucs(kind: str, dice: torch.Generator) -> Found:
    """Of pairs of scenes without medium, by one hand or by two; *unseen*: by the two hands that no one was shown."""
    found: Found = {}
    for name, hands in (("known", KNOWN_HANDS), ("unseen", HELD_OUT_HANDS)):
        each = CHOSEN.judged // len(hands)
        specs = scenes.joined(*(TRUTH.scenes_by(hand, each, dice) for hand in hands))
        pictures = shown(specs, kind)
        for sense, points in (("hand", DEMO.judge.hands(pictures)), ("geometry", DEMO.judge.geometry(pictures))):
            rows = torch.arange(len(points))
            found[f"AUC {sense}, {name}"] = described(rows, rows, partial(pair_auc, points, specs.hand))
    return found


def pair_auc(points: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """Over all pairs of different rows: probability that two of one label lie nearer than two of different ones."""
    points, labels = points[rows], labels[rows]
    distances, same = style_distance(points[:, None], points[None]), labels[:, None] == labels
    pairs = (rows[:, None] != rows) & torch.ones(len(rows), len(rows)).triu(1).bool()
    return torch.tensor(auc(distances[same & pairs], distances[~same & pairs]))


def shown(specs: Specs, kind: str) -> Tensor:
    pictures = TRUTH.draw(specs)
    return pictures if kind == "drawn" else DEMO.autoencoded(pictures)


if __name__ == "__main__":
    main()
