"""Does it work? Style against content: ranked layers, random, evenly spaced and least sensitive ones, and all."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import harness
from benchmarks.harness import Demo, draw, interval
from conditional_balance.engine.gates import RankedGate, WrittenGate, policy_of
from conditional_balance.engine.grammar import parse
from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.engine.profile_file import load
from conditional_balance.runtime.inject.reference import StyleReference
from conditional_balance.runtime.inject.style import StyleInjection, StyleSettings, inject_style
from demo import world
from demo.judge import style_distance
from demo.world.sets import HELD_OUT_HANDS, KNOWN_HANDS
from devtools.bootstrap import ROOT

PROFILE = ROOT / "sensitivity_profiles" / "demo.style.safetensors"
POLICIES = ("per-step", "static", "random", "evenly spaced", "reversed")
SWEEP = (0.2, 0.43, 0.7)
MEASURES = ("style distance", "subject", "background", "subject leaked", "background leaked")


class Setting(NamedTuple):
    name: str
    families: tuple[str, ...]
    named: bool  # does the caption name the style family?
    policies: tuple[str, ...]
    sweep: tuple[float, ...]


SETTINGS = (
    Setting("style named, parameters open", KNOWN_HANDS, True, POLICIES, SWEEP),
    Setting("no style word, known styles", KNOWN_HANDS, False, ("per-step", "random", "reversed"), (0.43,)),
    Setting("no style word, unseen styles", HELD_OUT_HANDS, False, ("per-step", "random", "reversed"), (0.43,)),
)


@dataclass(frozen=True)
class Job:
    setting: Setting
    policy: str
    amount: float
    index: int  # which reference; also the seed
    prompts: int
    steps: int


def main() -> None:
    chosen = harness.options(__doc__, references=25, prompts=16, steps=12, workers=2, chart="")
    torch.set_num_threads(1)
    demo, profile = Demo(), load(PROFILE)
    jobs = list(planned(chosen))
    with multiprocessing.get_context("fork").Pool(chosen.workers, share_objects, (demo, profile)) as pool:
        outcomes = []
        for number, outcome in enumerate(pool.imap(run, jobs)):
            outcomes.append(outcome)
            if number % chosen.references == chosen.references - 1:
                job = jobs[number]
                print(f"{job.setting.name}: {job.policy} {job.amount:g} done, {number + 1} of {len(jobs)}", flush=True)
    results = summarised(jobs, outcomes, chosen)
    harness.report(results, chosen)
    if chosen.chart:
        plot(results, Path(chosen.chart))


def planned(chosen: Any) -> Iterator[Job]:
    for setting in SETTINGS:
        points = [("none", 0.0), ("all layers", 1.0), *((p, s) for p in setting.policies for s in setting.sweep)]
        for policy, amount in points:
            for index in range(chosen.references):
                yield Job(setting, policy, amount, index, chosen.prompts, chosen.steps)


def share_objects(demo: Demo, profile: SensitivityProfile) -> None:
    global DEMO, PROFILED
    DEMO, PROFILED = demo, profile
    torch.set_grad_enabled(False)


def run(job: Job) -> torch.Tensor:
    """Measures [prompts, 5] of one reference under one gate."""
    reference, scenes = pair(job)
    picture = draw(reference)
    prompt = DEMO.conditioning(world.captions(reference, job.setting.named))
    model = styled(job, StyleReference(DEMO.encode(picture), prompt))
    prompts = world.captions(scenes, job.setting.named)
    seen = DEMO.verdict(DEMO.decode(DEMO.sample(model, prompts, job.index, job.steps)))
    columns = (
        style_distance(seen.style, DEMO.verdict(DEMO.autoencoded(picture)).style),
        seen.subject == scenes.subject,
        seen.background == scenes.background,
        seen.subject == reference.subject,
        seen.background == reference.background,
    )
    return torch.stack([column.float() for column in columns], 1)


def pair(job: Job) -> tuple[world.Specs, world.Specs]:
    """A reference and scenes that share neither its subject nor its background."""
    dice = torch.Generator().manual_seed(1000 + job.index)
    reference = world.random_specs(1, dice, job.setting.families)
    scenes = world.random_specs(16 * job.prompts, dice, job.setting.families)
    other = (scenes.subject != reference.subject) & (scenes.background != reference.background)
    scenes = scenes[other.nonzero()[: job.prompts, 0]]
    return reference, scenes.in_style_of(reference[torch.zeros(len(scenes), dtype=torch.long)])


def styled(job: Job, reference: StyleReference) -> Any:
    if job.policy == "none":
        return DEMO.model
    if job.policy == "all layers":
        gate = WrittenGate(parse("i, m, o"))
    else:
        gate = RankedGate(PROFILED, job.amount, policy_of(job.policy, {"random_seed": job.index}))
    return inject_style(DEMO.model, StyleInjection(gate, reference, StyleSettings(1.0)))


def summarised(jobs: list[Job], outcomes: list[torch.Tensor], chosen: Any) -> dict[str, Any]:
    """Means with 95 % intervals over references, by setting and gate."""
    rows: dict[str, dict[str, Any]] = {}
    for start in range(0, len(jobs), chosen.references):
        job = jobs[start]
        values = torch.cat(outcomes[start : start + chosen.references])
        groups = torch.arange(chosen.references).repeat_interleave(chosen.prompts)
        measured = {name: described(values[:, i], groups) for i, name in enumerate(MEASURES)}
        measured["content"] = described(values[:, 1] * values[:, 2], groups)
        rows.setdefault(job.setting.name, {})[f"{job.policy} {job.amount:g}"] = measured
    return {"pairs": chosen.references * chosen.prompts, "steps": chosen.steps, "settings": rows}


def plot(results: dict[str, Any], path: Path) -> None:
    """One line a policy: style distance over lambda, and content kept over style distance (up and left is better)."""
    from matplotlib import pyplot

    setting = SETTINGS[0]
    rows = results["settings"][setting.name]
    figure, (reach, price) = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    shares = (0.0, *setting.sweep, 1.0)
    for policy in setting.policies:
        names = ("none 0", *(f"{policy} {share:g}" for share in setting.sweep), "all layers 1")
        distance, content = (
            [rows[name][measure]["mean"] for name in names] for measure in ("style distance", "content")
        )
        style = {"marker": "o", "label": policy, "linewidth": 2 if policy == "per-step" else 1}
        reach.plot(shares, distance, **style)
        price.plot(distance, content, **style)
    reach.set(xlabel="lambda: share of the layers", ylabel="style distance to the reference", title=setting.name)
    price.set(xlabel="style distance to the reference", ylabel="subject and background as prompted")
    price.set_ylim(min(0.8, price.get_ylim()[0]), 1.01)  # or a picture or two would fill the panel
    reach.legend(title="layers chosen")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def described(values: torch.Tensor, groups: torch.Tensor) -> dict[str, Any]:
    low, high = interval(values, groups)
    return {"mean": round(float(values.mean()), 4), "low": round(low, 4), "high": round(high, 4)}


if __name__ == "__main__":
    main()
