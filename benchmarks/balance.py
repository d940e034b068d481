"""Style against content: do layers ranked first bring the style and leave content and the reference's subject behind?

References show one subject. Those of *known hands* are painted by the model; *drawn references* are drawings by the
same hands, those of *unseen hands* drawings by hands that it never saw. Prompts name another subject, or two with a
relation, before another place, and no style: all style comes through sharing. *style distance* is the judge's, to the
reference. *subjects*: all that were asked for are seen, each where the relation puts it; *content*: the place too.
*leaked*: the reference's subject is seen instead of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks import harness
from benchmarks._workers import forked, gathered
from benchmarks.harness import Demo, Painted, Paintings, Truth
from conditional_balance.engine.gates import LayerGate, RankedGate, WrittenGate, policy_of
from conditional_balance.engine.grammar import parse
from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.engine.style import AUTO, StyleSettings
from conditional_balance.runtime.inject.style import StyleInjection, inject_style
from conditional_balance.runtime.profile.effect import measure_layers
from demo import judge, models
from demo.judge import style_distance
from demo.world import scenes
from demo.world.scenes import Specs
from demo.world.sets import HELD_OUT_HANDS, KNOWN_HANDS
from demo.world.subjects import SUBJECTS

POLICIES = {  # what they are called here, and in the pack
    "ranked": "per-step",
    "static": "static",
    "style minus content": "style, low content",
    "random": "random",
    "evenly spaced": "evenly spaced",
    "reversed": "reversed",
    "measured": "per-step",
    "measured, low content": "style, low content",
}
MEASURED_LEVELS = 4  # noise levels at which Measure Layers looks
SWEEP = (0.1, 0.2, 0.43, 0.7)
NONE, ALL, RANKED = "none", "all", "ranked"
MEASURES = (
    "style distance", "hand distance", "content", "subjects", "sure of the subjects", "place", "leaked", "place leaked",
)  # fmt: skip
STYLE = MEASURES.index("style distance")


class Setting(NamedTuple):
    """Whose references, which ways to choose layers are tried on them, and whether they are drawings."""

    hands: tuple[str, ...]
    policies: tuple[str, ...]
    drawn: bool = False


SETTINGS = {
    "known hands": Setting(KNOWN_HANDS, tuple(POLICIES)),
    "drawn references": Setting(KNOWN_HANDS, ("ranked", "random", "reversed", "measured"), drawn=True),
    "unseen hands": Setting(HELD_OUT_HANDS, ("ranked", "random", "reversed"), drawn=True),
}


class Job(NamedTuple):
    setting: str
    policy: str
    amount: float
    index: int  # which reference; also the seed

    @property
    def way(self) -> str:
        return self.policy if self.policy in (NONE, ALL) else f"{self.policy} {self.amount:g}"

    @property
    def name(self) -> str:
        return f"{self.setting} {self.index:03} {self.way}"


def main() -> None:
    chosen = harness.options(
        __doc__, references=16, unseen=16, prompts=1, steps=12, cfg=harness.CFG, workers=2, chart="", setting="",
        prepared=harness.PREPARED, weights=models.WEIGHTS, model="unet", content=harness.WELL, position=AUTO, share=1.0,
        only="",
    )  # fmt: skip
    torch.set_num_threads(1)
    harness.check_position(chosen.position)
    jobs = [job for job in planned(chosen) if chosen.setting in job.setting]
    if not jobs:
        raise SystemExit(f"--setting is part of {', '.join(map(repr, SETTINGS))}; it is {chosen.setting!r}.")
    truth = Truth(chosen.prepared) if any(SETTINGS[job.setting].drawn for job in jobs) else None
    demo = Demo(cfg=chosen.cfg, weights=chosen.weights, paints=chosen.model)
    profile = harness.profile_of(chosen.model, chosen.weights)
    shared = demo, truth, profile, chosen, *kept(chosen, harness.sharing(chosen))
    with forked(chosen.workers, share_objects, *shared) as pool:
        rows = gathered(pool, run, jobs, lambda job: (job.setting, job.way), every=25)
        if chosen.pictures:
            show(pool, jobs, chosen.pictures)
    measured: dict[str, dict[str, Tensor]] = {}
    for (setting, way), parts in rows.items():
        measured.setdefault(setting, {})[way] = torch.stack(parts)
    results = summarised(measured, chosen)
    harness.report(results, chosen)
    if chosen.chart:
        plot(results["settings"]["known hands"], tried("known hands", chosen.only), Path(chosen.chart))


def kept(chosen: Any, sharing: str = "") -> tuple[Paintings, Paintings]:
    """Where what was painted is kept, and what was measured of it. The first depends on the weights, the profile and
    the subjects that are painted, the second on the judge too."""
    files = (*harness.weights_of(chosen.weights, chosen.model), harness.profile_file(chosen.model, chosen.weights))
    settings = f"{chosen.prompts} {chosen.steps} {chosen.cfg} {chosen.seed}"
    subjects, media = harness.content(chosen.content)
    told = " ".join(subjects if chosen.content == harness.WELL else (*subjects, *media))
    whole = (*files, told, f"{settings}{sharing}")
    return Paintings("balance", *whole), Paintings("balance-judged", *whole, judge.WEIGHTS, " ".join(MEASURES))


def tried(setting: str, only: str) -> tuple[str, ...]:
    """A setting's policies: "ranked", which the others are compared with, and those whose names hold `only`."""
    return tuple(policy for policy in SETTINGS[setting].policies if policy == RANKED or only in policy)


def planned(chosen: Any) -> Iterator[Job]:
    """Reference by reference, so that a run that is stopped has the whole story of some."""
    for setting in SETTINGS:
        policies = tried(setting, chosen.only)
        points = [(NONE, 0.0), *((policy, amount) for policy in policies for amount in SWEEP), (ALL, 1.0)]
        for index in range(chosen.unseen if setting == "unseen hands" else chosen.references):
            for policy, amount in points:
                yield Job(setting, policy, amount, index)


def share_objects(
    demo: Demo, truth: Truth | None, profile: SensitivityProfile, chosen: Any, painted: Paintings, measured: Paintings
) -> None:
    global DEMO, TRUTH, PROFILED, CHOSEN, PAINTED, MEASURED
    DEMO, TRUTH, PROFILED, CHOSEN, PAINTED, MEASURED = demo, truth, profile, chosen, painted, measured


@lru_cache(64)
def pair(setting: str, index: int) -> tuple[Painted, Specs]:
    """A reference of one subject, and the scenes that are painted in its style."""
    hands = SETTINGS[setting].hands
    dice = torch.Generator().manual_seed(1000 * (CHOSEN.seed + 1) + index)
    hand = hands[index % len(hands)]
    subjects, media = harness.content(CHOSEN.content)
    specs = scenes.random_specs(1, dice, (hand,), drawn_by(hand, subjects), media, alone=1.0)
    if SETTINGS[setting].drawn:
        reference = harness.drawn_reference(DEMO, TRUTH, specs)
    else:
        reference = harness.painted_reference(DEMO, specs, index, CHOSEN.steps)
    return reference, harness.scenes_beside(specs, CHOSEN.prompts, dice, subjects=subjects)


def drawn_by(hand: str, subjects: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the subjects that a hand draws: all, of a hand that the model knows."""
    if hand in KNOWN_HANDS:
        return subjects
    drawn = {SUBJECTS[row] for row in TRUTH.atlas.drawn_by(hand)}
    return tuple(name for name in subjects if name in drawn)


def painted(job: Job) -> Tensor:
    """Latents of one reference's scenes under one gate."""

    def paint() -> Tensor:
        reference, wanted = pair(job.setting, job.index)
        prompts = harness.captions_without_style(wanted)
        return DEMO.sample(styled(job, reference), prompts, job.index, CHOSEN.steps)

    return PAINTED.of(job.name, paint)


def styled(job: Job, reference: Painted) -> Any:
    if job.policy == NONE:
        return DEMO.model
    settings = StyleSettings(share=CHOSEN.share, position=CHOSEN.position)
    return inject_style(DEMO.model, StyleInjection(gate_of(job), reference.source, settings))


def gate_of(job: Job) -> LayerGate:
    if job.policy == ALL:
        return WrittenGate(parse("all"))
    profile = measured_profile(job.setting, job.index) if job.policy.startswith("measured") else PROFILED
    return RankedGate(profile, job.amount, policy_of(POLICIES[job.policy], {"random_seed": job.index}))


@lru_cache(4)
def measured_profile(setting: str, index: int) -> SensitivityProfile:
    """What Measure Layers finds for one reference, looking at its scenes as they are painted without it."""
    reference, wanted = pair(setting, index)
    prompts = harness.captions_without_style(wanted)
    plain = painted(Job(setting, NONE, 0.0, index))
    with torch.inference_mode():
        return measure_layers(DEMO.model, reference.source, plain, DEMO.conditioning(prompts), MEASURED_LEVELS, index)


def run(job: Job) -> Tensor:
    """Measures [scenes, MEASURES] of one reference under one gate."""
    return MEASURED.of(job.name, partial(judged, job))


def judged(job: Job) -> Tensor:
    return measures(job, DEMO.decode(painted(job)))


def measures(job: Job, pictures: Tensor) -> Tensor:
    """What the judge says of pictures [scenes, 3, H, W] of a job's scenes, [scenes, MEASURES]."""
    reference, wanted = pair(job.setting, job.index)
    found = harness.subjects_seen(DEMO.judge, pictures, wanted)
    right, sure = harness.as_prompted(found, wanted)
    place, theirs = (harness.place_as_prompted(DEMO.judge, pictures, specs) for specs in (wanted, reference.specs))
    columns = {
        "style distance": style_distance(DEMO.judge.style(pictures), DEMO.judge.style(reference.picture)),
        "hand distance": style_distance(DEMO.judge.hands(pictures), DEMO.judge.hands(reference.picture)),
        "content": right & place,
        "subjects": right,
        "sure of the subjects": sure,
        "place": place,
        "leaked": (found.argmax(2) == reference.specs.subject[0, 0]).any(1),
        "place leaked": theirs,
    }
    return torch.stack([columns[name].float() for name in MEASURES], 1)


def shown(job: Job) -> Tensor:
    """The reference and what was painted, [1 + scenes, 3, H, W]."""
    return torch.cat([pair(job.setting, job.index)[0].picture, DEMO.decode(painted(job))])


def show(pool: Any, jobs: list[Job], folder: Path, references: int = 8) -> None:
    """Contact sheets: a row each way to choose layers, a reference beside its scenes."""
    for setting in dict.fromkeys(job.setting for job in jobs):
        mine = [job for job in jobs if job.setting == setting and job.index < references]
        ways = list(dict.fromkeys(job.way for job in mine))
        rows = [torch.cat(pool.map(shown, [job for job in mine if job.way == way])) for way in ways]
        harness.sheet(torch.cat(rows), len(rows[0]), folder / f"balance {setting}.png")


def summarised(measured: dict[str, dict[str, Tensor]], chosen: Any) -> dict[str, Any]:
    """Of measures [references, scenes, MEASURES]: means of every way, and what the ranking gives at equal style."""
    return {
        "pairs": {name: ways[NONE].shape[0] * ways[NONE].shape[1] for name, ways in measured.items()},
        "references": {name: len(ways[NONE]) for name, ways in measured.items()},
        "steps": chosen.steps,
        "cfg": chosen.cfg,
        "subjects painted": list(harness.content(chosen.content).subjects),
        "media": list(harness.content(chosen.content).media),
        "settings": {name: {way: row(values) for way, values in ways.items()} for name, ways in measured.items()},
        "at equal style": {name: at_equal_style(ways, tried(name, chosen.only)) for name, ways in measured.items()},
        "minus all layers": {
            name: {way: row(ways[way] - ways[ALL]) for way in curve(RANKED)[:-1]} for name, ways in measured.items()
        },
        "per-step minus static": {
            name: at_equal_amount(ways, RANKED, "static") for name, ways in measured.items() if "static 0.2" in ways
        },
    }


def row(values: Tensor) -> dict[str, Any]:
    return harness.means(values, MEASURES)


def at_equal_amount(measured: dict[str, Tensor], one: str, other: str) -> dict[str, Any]:
    """Differences between two policies that keep the same share of layers, of the same scenes."""
    return {f"{amount:g}": row(measured[f"{one} {amount:g}"] - measured[f"{other} {amount:g}"]) for amount in SWEEP}


def curve(policy: str) -> list[str]:
    """A policy's ways from no sharing to sharing everywhere."""
    return [NONE, *(f"{policy} {amount:g}" for amount in SWEEP), ALL]


def at_equal_style(measured: dict[str, Tensor], policies: Sequence[str]) -> dict[str, Any]:
    """What "ranked" keeps beyond each other policy where both come equally near to the style, with 95 % intervals.

    Every policy's ways are joined by straight lines from no sharing to all layers, and read at eight style distances
    between these two; the difference is the mean over the eight, the interval 1000 draws of references.
    """
    means = {name: np.stack([measured[way].mean(1).numpy() for way in curve(name)]) for name in policies}
    count = next(iter(means.values())).shape[1]
    draws = [np.arange(count), *np.random.default_rng(0).integers(count, size=(1000, count))]
    read = {name: np.stack([at_levels(table[:, rows].mean(1)) for rows in draws]) for name, table in means.items()}
    gained = {name: read[RANKED] - read[name] for name in policies[1:]}
    return {
        f"ranked over {name}": {measure: estimate(draws[:, at]) for at, measure in enumerate(MEASURES) if at != STYLE}
        for name, draws in gained.items()
    }


def at_levels(table: np.ndarray) -> np.ndarray:
    """Means [MEASURES] over eight equally spaced style distances of a curve [ways, MEASURES] from none to all."""
    far, near = table[0, STYLE], table[-1, STYLE]
    where = np.linspace(far, near, 8 + 2)[1:-1]  # without both ends
    order = np.argsort(table[:, STYLE], kind="stable")
    at = table[order]
    return np.array([np.interp(where, at[:, STYLE], at[:, column]).mean() for column in range(table.shape[1])])


def estimate(draws: np.ndarray) -> dict[str, float]:
    """Of draws [1 + N] whose first is the sample itself."""
    low, high = np.quantile(draws[1:], (0.025, 0.975))
    return {"mean": round(float(draws[0]), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def plot(found: dict[str, Any], policies: Sequence[str], path: Path) -> None:
    """Style across, content up, a line a policy from no sharing to all layers; right and up is better."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.8), layout="constrained")
    for policy in policies:
        points = [found[way] for way in curve(policy)]
        distance, content = ([100 * p[measure]["mean"] for p in points] for measure in ("style distance", "content"))
        main = policy in (RANKED, "style minus content")
        axes.plot(distance, content, marker="o", linewidth=2.5 if main else 1.2, label=policy)
    for name, label in ((NONE, "no sharing"), (ALL, "all layers")):
        where = (100 * found[name]["style distance"]["mean"], 100 * found[name]["content"]["mean"])
        axes.annotate(label, where, (6, 6), textcoords="offset points")
    axes.invert_xaxis()
    axes.set(xlabel="distance to the reference's style, % (nearer: right)", ylabel="subjects and place as prompted, %")
    axes.set_title("What a style costs, by which layers share it")
    axes.legend(title="layers chosen")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
