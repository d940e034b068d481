"""References: what each way to take style from one brings, what of its content leaks along, and what it costs.

References show one subject and are painted by the model under their own captions. Prompts name another subject before
another place, and no style. *style distance* is the judge's, to the reference. *leak* is the log-probability with which
the judge sees the reference's subject, less that of the same prompt and seed without sharing; *leaked* is how often it
names that subject. *content*: the prompt's subject is seen. `--part` measures one of style, trip and cost, and adds it
to what `--json` holds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks import style as costs
from benchmarks.harness import PROFILES, Demo, Paintings, described
from conditional_balance.engine import brought
from conditional_balance.engine.gates import LayerGate, RankedGate, WrittenGate
from conditional_balance.engine.grammar import parse
from conditional_balance.engine.profile_file import load
from conditional_balance.runtime.attribution.subject import Subject, read_subject
from conditional_balance.runtime.inject import style
from conditional_balance.runtime.inject.inversion import Inversion, invert_latent
from conditional_balance.runtime.inject.reference import StyleReference
from conditional_balance.runtime.inject.remembered import STORE
from conditional_balance.runtime.inject.style import StyleInjection, inject_style
from conditional_balance.runtime.inject.trajectory import Trajectories, record_trajectory
from demo import models
from demo.judge import style_distance
from demo.world import scenes
from demo.world.sets import KNOWN_HANDS
from demo.world.subjects import WELL_DRAWN, WORDS

PROFILE = PROFILES / "demo.style.safetensors"
LAMBDA = 0.43
NONE = "no sharing"
UNDAMPED, DAMPED = "ranked 0.43", "ranked 0.43, without its subject"
ALL, ALL_DAMPED = "StyleAligned: all layers", "all layers, without its subject"
ONLY_STYLE = "Only-Style's rule: all layers, its subject's keys times 0"
MEASURES = ("style distance", "leak", "leaked", "content")


class Way(NamedTuple):
    """How style is taken: which layers, from which kind of reference, and what becomes of the reference's subject."""

    ranked: bool
    source: str = "renoised"
    subject: bool = False
    scaled: bool = False


WAYS = {
    ALL: Way(False),
    ONLY_STYLE: Way(False, subject=True, scaled=True),
    ALL_DAMPED: Way(False, subject=True),
    UNDAMPED: Way(True),
    DAMPED: Way(True, subject=True),
    "ranked 0.43, recorded": Way(True, "recorded"),
    "ranked 0.43, inverted": Way(True, "inverted"),
}


def main() -> None:
    chosen = harness.options(
        __doc__, references=8, prompts=4, steps=10, part="", size=32, rounds=7, weights=models.WEIGHTS
    )
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, part in PARTS.items():
        if chosen.part in ("", name):
            found |= part(chosen)
    if chosen.part and chosen.json and chosen.json.exists():
        found = json.loads(chosen.json.read_text(encoding="utf-8")) | found
    harness.report(found, chosen)


# What it brings ------------------------------------------------------------------------------------------------------


class Case:
    """One reference, as every way wants it, and the scenes that take its style."""

    def __init__(self, demo: Demo, index: int, chosen: argparse.Namespace) -> None:
        dice = torch.Generator().manual_seed(1000 * (chosen.seed + 1) + index)
        hand = (KNOWN_HANDS[index % len(KNOWN_HANDS)],)
        self.demo, self.index, self.steps = demo, index, chosen.steps
        self.specs = scenes.random_specs(1, dice, hand, WELL_DRAWN, alone=1.0)
        self.wanted = harness.scenes_beside(self.specs, chosen.prompts, dice, alone=(1.0,))
        self.told = scenes.captions(self.specs)
        self.prompts = harness.captions_without_style(self.wanted)

    @cached_property
    def trajectories(self) -> Trajectories:
        return Trajectories()

    @cached_property
    def latent(self) -> Tensor:
        recording = record_trajectory(self.demo.model, self.trajectories)
        return self.demo.sample(recording, self.told, self.index, self.steps)

    @cached_property
    def subject(self) -> Subject:
        return subject_in(self.demo, self.told[0], int(self.specs.subject[0, 0]))

    def reference(self, way: Way) -> StyleReference:
        prompt = self.demo.conditioning(self.told)
        subject = self.subject if way.subject else None
        if way.source == "renoised":
            return StyleReference(self.latent, prompt, subject=subject)
        latent = self.latent
        trajectory = self.trajectories.of(latent)
        if way.source == "inverted":
            how = Inversion(self.steps, exact=False)
            trajectory = invert_latent(self.demo.model, latent, prompt, how).trajectory
        return StyleReference(None, prompt, trajectory, subject=subject)

    def paint(self, model: Any) -> Tensor:
        return self.demo.sample(model, self.prompts, self.index, self.steps)


def subject_in(demo: Demo, caption: str, subject: int) -> Subject:
    """The words of a caption that name its subject."""
    return read_subject(demo.clip, caption, WORDS[subject])


def styles(chosen: argparse.Namespace) -> dict[str, Any]:
    """Style, leak and content of every way, with intervals over references."""
    demo = Demo(weights=chosen.weights)
    files = (*harness.weights_of(chosen.weights), PROFILE)
    kept = Paintings("references", *files, f"{chosen.prompts} {chosen.steps} {chosen.seed}")
    ranked = RankedGate(load(PROFILE), LAMBDA)
    measured: dict[str, list[Tensor]] = {name: [] for name in (NONE, *WAYS)}
    for index in range(chosen.references):
        case = Case(demo, index, chosen)
        reference = demo.decode(kept.of(file_of(index, "reference"), lambda case=case: case.latent))
        plain_latents = kept.of(file_of(index, NONE), lambda case=case: case.paint(demo.model))
        plain = judged(case, demo.decode(plain_latents), reference)
        measured[NONE].append(against(plain, plain))
        for name, way in WAYS.items():
            latents = kept.of(file_of(index, name), lambda case=case, way=way: styled(case, way, ranked))
            measured[name].append(against(judged(case, demo.decode(latents), reference), plain))
        print(f"{index + 1} of {chosen.references} references", flush=True)
        if chosen.pictures and index < 6:
            show(kept, demo, index, chosen.pictures)
    return summarised({name: torch.stack(parts) for name, parts in measured.items()}, chosen)


def file_of(index: int, way: str) -> str:
    return f"{index:03} {way}".replace(":", "")


def styled(case: Case, way: Way, ranked: LayerGate) -> Tensor:
    gate = ranked if way.ranked else WrittenGate(parse("all"))
    model = inject_style(case.demo.model, StyleInjection(gate, case.reference(way)))
    operator = keys_times_nothing if way.scaled else brought.inject_brought
    with patch.object(style, "inject_brought", operator):
        return case.paint(model)


def keys_times_nothing(
    q: Tensor, k: Tensor, v: Tensor, how: Any, given: brought.Brought, attend: Any, places: Any, damping: Any
) -> Tensor:
    """Only-Style (arXiv 2506.09916) at the end of its range: the keys of the reference's subject are scaled to 0.

    Its search for the scale that just ends the leak paints a picture several times, and is not made here. The subject
    is where our attribution finds it.
    """
    inside = (damping < -0.69)[:, None]  # more than half of a token is the subject's
    return brought.inject_brought(
        q, k, v, how, given._replace(keys=given.keys.masked_fill(inside, 0.0)), attend, places
    )


def judged(case: Case, pictures: Tensor, reference: Tensor) -> Tensor:
    """[prompts, MEASURES], with the log-probability of the reference's subject in the place of its leak."""
    judge, theirs = case.demo.judge, case.specs.subject[0, 0]
    seen = judge.subjects(pictures)
    columns = (
        style_distance(judge.style(pictures), judge.style(reference)),
        seen[:, theirs],
        (seen.argmax(1) == theirs).float(),
        (seen.argmax(1) == case.wanted.subject[:, 0]).float(),
    )
    return torch.stack(columns, 1)


def against(found: Tensor, plain: Tensor) -> Tensor:
    """With the leak as what sharing adds to it."""
    leak = MEASURES.index("leak")
    found = found.clone()
    found[:, leak] -= plain[:, leak]
    return found


def summarised(measured: dict[str, Tensor], chosen: argparse.Namespace) -> dict[str, Any]:
    """Of [references, prompts, MEASURES]: means of every way, and what damping takes of the leak and of the style."""
    groups = torch.arange(chosen.references).repeat_interleave(chosen.prompts)
    rows = {name: values.flatten(0, 1) for name, values in measured.items()}
    return {
        "pairs": len(groups),
        "references": chosen.references,
        "steps": chosen.steps,
        "ways": {
            name: {measure: described(values[:, at], groups) for at, measure in enumerate(MEASURES)}
            for name, values in rows.items()
        },
        "damping": {
            name: {
                measure: described(rows[with_it][:, at] - rows[without][:, at], groups)
                for at, measure in enumerate(MEASURES)
            }
            for name, (with_it, without) in DAMPINGS.items()
        },
    }


DAMPINGS = {"ranked 0.43": (DAMPED, UNDAMPED), "all layers": (ALL_DAMPED, ALL), "Only-Style's rule": (ONLY_STYLE, ALL)}


def show(kept: Paintings, demo: Demo, index: int, folder: Path) -> None:
    """A contact sheet of one reference: the reference and a row for every way."""
    rows = []
    for name in (NONE, *WAYS):
        rows.append(torch.cat([kept.of(file_of(index, each), _painted) for each in ("reference", name)]))
    harness.sheet(demo.decode(torch.cat(rows)), len(rows[0]), folder / f"references {index}.png")


def _painted() -> Tensor:
    raise RuntimeError("This picture was not painted.")


# What inversion loses ------------------------------------------------------------------------------------------------

REFINEMENTS = (0, 1, 2, 3)


def round_trips(chosen: argparse.Namespace) -> dict[str, Any]:
    """How near pictures come back from their noise in 50 steps, in dB of their latents' range, in single precision."""
    demo = Demo(torch.float32, weights=chosen.weights)
    dice = torch.Generator().manual_seed(chosen.seed)
    specs = scenes.random_specs(2, dice, KNOWN_HANDS, WELL_DRAWN, alone=1.0)
    told = scenes.captions(specs)
    latents = demo.sample(demo.model, told, chosen.seed, 12)
    prompt = demo.conditioning(told)
    trips = {f"{count} refinements": round_trip(demo, latents, prompt, Inversion(50, "normal", count, exact=False))
             for count in REFINEMENTS}  # fmt: skip
    trips["direct"] = round_trip(demo, latents, prompt, Inversion(50, "normal", exact=True))
    return {"round trip, dB": trips}


def round_trip(demo: Demo, latents: Tensor, prompt: Any, how: Inversion) -> float:
    """What Invert Latent says under itself: it walks the way back."""
    error = invert_latent(demo.model, latents, prompt, how).error
    print(how.refinements, how.exact, error, flush=True)
    return round(min(error, 999.0), 1)


# What it costs -------------------------------------------------------------------------------------------------------


def prices(chosen: argparse.Namespace) -> dict[str, Any]:
    """A run with a renoised reference over a plain one at batch 1, on a UNet with SDXL's 70 layers, one thread."""
    bench = costs.Bench(costs.Setting(size=chosen.size), torch.device("cpu"))
    with torch.inference_mode():
        reference = StyleReference(torch.randn(1, 4, chosen.size, chosen.size), costs.cond(3))

        def run(remember: bool) -> None:
            gate = RankedGate(bench.profile, LAMBDA)
            bench.run(inject_style(bench.model, StyleInjection(gate, reference, remember=remember)), 1)

        def first() -> None:
            STORE.kept.clear()
            run(True)

        runs: dict[str, Callable[[], Any]] = {
            "plain": lambda: bench.run(bench.model, 1),
            "riding along": lambda: run(False),
            "first seed": first,
            "second seed": lambda: run(True),
        }
        times = costs.in_turns(runs, bench.clock, chosen.rounds)
        held = sum(call.on(torch.device("cpu")) for calls in STORE.kept.values() for call in calls)
    return {
        "cost over a plain run": {name: round(costs.ratio(times[name], times["plain"]), 3) for name in runs},
        "seconds": {name: round(statistics.median(each), 3) for name, each in times.items()},
        "held, MiB": round(held / 2**20, 1),
        "latent": chosen.size,
    }


PARTS = {"cost": prices, "trip": round_trips, "style": styles}


if __name__ == "__main__":
    main()
