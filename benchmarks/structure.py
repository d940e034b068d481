"""Does gated structure leave more room for style than a weaker ControlNet? Edges, subject and style on the demo model.

Every triple is an edge map, a prompt for the scene it shows, and a style reference of another scene whose style the
prompt names. All settings paint the same triples with the same noise and the same style injection; they differ in how
much of the ControlNet acts. `--chart FILE` plots what comes out. `--grid FILE` only paints lambda against kept, for the
README.
"""

from __future__ import annotations

import functools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.sample
import numpy as np
import torch
from einops import rearrange, repeat
from kornia.filters import canny
from nodes import ControlNetApplyAdvanced
from torch import Tensor
from torch.nn import functional

from benchmarks import harness
from benchmarks.balance import described
from benchmarks.harness import CFG, Demo, draw
from benchmarks.style import in_turns, ratio
from conditional_balance.engine.ablation import agreement
from conditional_balance.engine.gates import RankedGate
from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.engine.profile_file import load
from conditional_balance.engine.structure import PaperSchedule, RankedSlots, parse_weights
from conditional_balance.runtime.arch.unet import unet_of
from conditional_balance.runtime.inject.control import gate_control, layout_of
from conditional_balance.runtime.inject.reference import StyleReference
from conditional_balance.runtime.inject.style import StyleInjection, inject_style
from conditional_balance.runtime.profile.ablation import ablate_slots
from conditional_balance.runtime.profile.profiling import noise_levels
from demo import models, world
from demo.judge import style_distance
from demo.world.sets import HANDS
from devtools.bootstrap import ROOT

PROFILES = ROOT / "sensitivity_profiles"
RANKED = (0.2, 0.5, 0.8)  # one, three and four of the demo model's six slots
POLICIES = {"paper": (0.0, 0.15, 0.5), "ranked": RANKED, "reversed": RANKED, "strength": (0.25, 0.5, 0.75)}
GATES = ("paper", "ranked", "reversed")
MEASURES = ("edge F1", "subject", "background", "style distance", "style recognised")
EDGES, SUBJECT, _, DISTANCE, RECOGNISED = range(len(MEASURES))
LAMBDAS, KEPT = (0.0, 0.2, 0.43, 0.7, 1.0), (0.0, 0.15, 0.3, 0.5, 1.0)  # of the grid
LAMBDA = 0.43
TOLERANCE = 2  # pixels an edge may stray
CANNY = (0.1, 0.25)


@dataclass(frozen=True)
class Job:
    policy: str
    amount: float  # kept, or the strength
    index: int  # which reference; also the seed
    prompts: int
    steps: int
    hand: str

    @property
    def name(self) -> str:
        return self.policy if self.policy in ("no control", "plain") else f"{self.policy} {self.amount:g}"


class Scenes:
    """What one reference meets: scenes of other subjects and backgrounds in its style, and their edge maps."""

    def __init__(self, index: int, prompts: int, hand: str) -> None:
        dice = torch.Generator().manual_seed(3000 + index)
        self.reference = world.random_specs(1, dice)
        drawn = world.random_specs(16 * prompts, dice)
        other = (drawn.subject != self.reference.subject) & (drawn.background != self.reference.background)
        drawn = drawn[other.nonzero()[:prompts, 0]]
        self.specs = drawn.in_style_of(self.reference[torch.zeros(len(drawn), dtype=torch.long)])
        self.edges = world.contours(world.draw_scene(self.specs, world.SIZE, HANDS[hand]))
        self.picture = draw(self.reference)


def main() -> None:
    chosen = harness.options(
        __doc__, references=25, prompts=12, steps=10, workers=2, rounds=15, hand="plain", chart="", grid=""
    )
    torch.set_num_threads(1)
    studio = Studio()
    if chosen.grid:
        grid(studio, chosen, Path(chosen.grid))
        return
    begun = time.monotonic()
    results = {
        "triples": chosen.references * chosen.prompts, "steps": chosen.steps, "lambda": LAMBDA, "hand": chosen.hand,
        "anchors": anchors(studio, chosen), **compared(studio, chosen),
        "slots": slots(studio, chosen), "step time over plain ControlNet": step_times(studio, chosen),
        "minutes": round((time.monotonic() - begun) / 60, 1),
    }  # fmt: skip
    harness.report(results, chosen)
    if chosen.chart:
        plot(results, Path(chosen.chart))


class Studio:
    """The demo model with its ControlNet and profiles."""

    def __init__(self) -> None:
        self.demo = Demo()
        dtype = self.demo.model.model.get_dtype()
        self.control = models.load_control_net(dtype=dtype)
        self.style, self.geometry = load(PROFILES / "demo.style.safetensors"), load_geometry()

    @functools.cached_property
    def scenes(self) -> Callable[[int, int, str], Scenes]:
        return functools.cache(Scenes)

    def paint(self, job: Job, scenes: Scenes, share: float = LAMBDA) -> Tensor:
        """Pictures [prompts, 3, 128, 128] of one job."""
        model = self.demo.model
        if share > 0:
            prompt = self.demo.conditioning(world.captions(scenes.reference))
            source = StyleReference(self.demo.encode(scenes.picture), prompt)
            model = inject_style(model, StyleInjection(RankedGate(self.style, share), source))
        return self.demo.decode(self.sample(model, job, scenes))

    def sample(self, model: Any, job: Job, scenes: Scenes) -> Tensor:
        positive, negative = (self.demo.conditioning(text) for text in (world.captions(scenes.specs), [""]))
        if job.policy != "no control":
            hint = repeat(scenes.edges, "b h w -> b h w 3")
            strength = job.amount if job.policy == "strength" else 1.0
            positive, negative = ControlNetApplyAdvanced().apply_controlnet(
                positive, negative, self.gated(job), hint, strength, 0.0, 1.0
            )
        latent = torch.zeros(len(scenes.specs), 8, 16, 16)
        noise = comfy.sample.prepare_noise(latent, job.index)
        return comfy.sample.sample(
            model, noise, job.steps, CFG, "euler", "normal", positive, negative, latent, disable_pbar=True,
            seed=job.index,
        )  # fmt: skip

    def gated(self, job: Job) -> Any:
        """The ControlNet under the job's policy."""
        backwards = replace(self.geometry, scores=-self.geometry.scores)
        gates = {
            "paper": lambda: PaperSchedule(job.amount),
            "ranked": lambda: RankedSlots(self.geometry, job.amount),
            "reversed": lambda: RankedSlots(backwards, job.amount),
            "weights": lambda: parse_weights(f"1x{layout_of(unet_of(self.demo.model)).slots} m1"),
        }
        return gate_control(self.control, gates[job.policy]())[0] if job.policy in gates else self.control

    def measured(self, pictures: Tensor, scenes: Scenes) -> Tensor:
        """Measures [prompts, 5] of pictures that should show `scenes`."""
        seen = self.demo.verdict(pictures)
        target = self.demo.verdict(self.demo.autoencoded(scenes.picture)).style
        columns = (
            edge_f1(edges_of(pictures), scenes.edges > 0.5),
            seen.subject == scenes.specs.subject,
            seen.background == scenes.specs.background,
            style_distance(seen.style, target),
            seen.family == scenes.reference.family[:, 0],
        )
        return torch.stack([column.float() for column in columns], 1)


def load_geometry() -> SensitivityProfile:
    path = PROFILES / "demo.geometry.safetensors"
    if not path.exists():
        raise SystemExit(f"There is no {path.name} in sensitivity_profiles: run `python dev.py train geometry` first.")
    return load(path)


def edges_of(pictures: Tensor) -> Tensor:
    """Edges [B, H, W] that the core Canny node finds in pictures [B, 3, H, W]."""
    return canny(pictures.float().clamp(0, 1), *CANNY)[1][:, 0] > 0.5


def edge_f1(found: Tensor, asked: Tensor) -> Tensor:
    """F1 [B] of edge maps [B, H, W]: an edge counts when the other map has one within TOLERANCE pixels."""
    near_found, near_asked = (grown(edges) for edges in (found, asked))
    precision = share(found & near_asked, found)
    recall = share(asked & near_found, asked)
    return 2 * precision * recall / (precision + recall).clamp_min(1e-9)


def grown(edges: Tensor) -> Tensor:
    return functional.max_pool2d(edges.float()[:, None], 2 * TOLERANCE + 1, 1, TOLERANCE)[:, 0] > 0


def share(part: Tensor, whole: Tensor) -> Tensor:
    return part.flatten(1).sum(1) / whole.flatten(1).sum(1).clamp_min(1)


def anchors(studio: Studio, chosen: Any) -> dict[str, Any]:
    """What no setting can beat, and chance: the scenes drawn by the world itself, and drawings of other scenes."""
    best, chance = [], []
    for index in range(chosen.references):
        scenes = Scenes(index, chosen.prompts, chosen.hand)
        drawn = studio.demo.autoencoded(world.render(scenes.specs, hand=HANDS[chosen.hand])[0])
        best.append(studio.measured(drawn, scenes))
        chance.append(studio.measured(drawn.roll(1, 0), scenes))
    groups = groups_of(chosen)
    return {"drawn": row(torch.cat(best), groups), "drawn, another scene": row(torch.cat(chance), groups)}


def compared(studio: Studio, chosen: Any) -> dict[str, Any]:
    """Every setting on every triple, and what the gates give over a weaker control that keeps as much content."""
    jobs = list(planned(chosen))
    outcomes: dict[str, list[Tensor]] = {}
    with multiprocessing.get_context("fork").Pool(chosen.workers, share_objects, (studio,)) as pool:
        for number, (job, outcome) in enumerate(zip(jobs, pool.imap(run, jobs), strict=True), 1):
            outcomes.setdefault(job.name, []).append(outcome)
            if number % chosen.references == 0:
                print(f"{job.name} done, {number} of {len(jobs)}", flush=True)
    if chosen.pictures:
        for name in ("plain", "paper 0.15", "ranked 0.5", "strength 0.5"):
            show(studio, next(job for job in jobs if job.name == name), chosen.pictures)
    measured = {name: torch.stack(parts) for name, parts in outcomes.items()}
    groups = groups_of(chosen)
    return {
        "settings": {name: row(values.flatten(0, 1), groups) for name, values in measured.items()},
        "style gained over a weaker ControlNet": {
            "at equal subject recognition": gains(measured, SUBJECT),
            "at equal edge agreement": gains(measured, EDGES),
        },
    }


def planned(chosen: Any) -> Iterator[Job]:
    points = [("no control", 0.0), ("plain", 1.0), *((p, amount) for p, sweep in POLICIES.items() for amount in sweep)]
    for policy, amount in points:
        for index in range(chosen.references):
            yield Job(policy, amount, index, chosen.prompts, chosen.steps, chosen.hand)


def share_objects(studio: Studio) -> None:
    global STUDIO
    STUDIO = studio
    torch.set_grad_enabled(False)


def run(job: Job) -> Tensor:
    scenes = STUDIO.scenes(job.index, job.prompts, job.hand)
    return STUDIO.measured(STUDIO.paint(job, scenes), scenes)


def show(studio: Studio, job: Job, folder: Path) -> None:
    scenes = Scenes(job.index, job.prompts, job.hand)
    harness.sheet(studio.paint(job, scenes), min(6, job.prompts), folder / f"{job.name}.png")


def groups_of(chosen: Any) -> Tensor:
    return torch.arange(chosen.references).repeat_interleave(chosen.prompts)


def row(values: Tensor, groups: Tensor) -> dict[str, Any]:
    return {name: described(values[:, column], groups) for column, name in enumerate(MEASURES)}


def curve(policy: str) -> list[str]:
    """Names of a policy's settings up to the plain control; only strength begins at none, gates keep the middle."""
    begin = ["no control"] if policy == "strength" else []
    return [*begin, *(f"{policy} {amount:g}" for amount in POLICIES[policy]), "plain"]


def gains(measured: dict[str, Tensor], at_equal: int) -> dict[str, Any]:
    """Style that each gate gains over turning the strength down, with 95 % intervals: 1000 draws of references.

    `measured` [references, prompts, measures] by setting. Beside each setting, and the mean over each policy's, stands
    the control of a strength that scores the same in the measure `at_equal`. Positive: the gate is nearer to the
    reference's style, and shows it more often.
    """
    own = [name for policy in GATES for name in curve(policy)[:-1]]
    gates, strengths = (
        np.stack([measured[name].mean(1).numpy() for name in names]) for names in (own, curve("strength"))
    )
    count = gates.shape[1]
    draws = [np.arange(count), *np.random.default_rng(0).integers(count, size=(1000, count))]
    found = np.stack([gained(gates[:, rows].mean(1), strengths[:, rows].mean(1), at_equal) for rows in draws])
    groups = {name: [place] for place, name in enumerate(own)}
    groups |= {f"{policy}, mean": [own.index(name) for name in curve(policy)[:-1]] for policy in GATES}
    return {name: estimates(found[:, places].mean(1)) for name, places in groups.items()}


def gained(gates: np.ndarray, strengths: np.ndarray, at_equal: int) -> np.ndarray:
    """Nearness and recognition of style [gates, 2] over the curve of strengths, both [settings, measures].

    The curve runs in straight lines between its settings and stays level beyond its ends.
    """
    order = np.argsort(strengths[:, at_equal], kind="stable")
    curve_at = strengths[order]

    def read(measure: int) -> np.ndarray:
        return np.interp(gates[:, at_equal], curve_at[:, at_equal], curve_at[:, measure])

    return np.stack([read(DISTANCE) - gates[:, DISTANCE], gates[:, RECOGNISED] - read(RECOGNISED)], 1)


def estimates(draws: np.ndarray) -> dict[str, Any]:
    """Of draws [1 + N, 2] whose first is the sample itself."""
    rows = np.stack([draws[0], *np.quantile(draws[1:], (0.025, 0.975), axis=0)]).round(4).T.tolist()
    columns = ("style distance", "style recognised")
    return {
        name: dict(zip(("mean", "low", "high"), each, strict=True)) for name, each in zip(columns, rows, strict=True)
    }


def slots(studio: Studio, chosen: Any) -> dict[str, Any]:
    """What leaving out each residual changes, and whether the geometry profile's ranking foresees it."""
    scenes = Scenes(0, chosen.prompts, chosen.hand)
    positive, negative = (studio.demo.conditioning(text) for text in (world.captions(scenes.specs), [""]))
    hint = repeat(scenes.edges, "b h w -> b h w 3")
    positive, _ = ControlNetApplyAdvanced().apply_controlnet(positive, negative, studio.control, hint, 1.0, 0.0, 1.0)
    latents = studio.demo.encode(draw(scenes.specs))
    found = ablate_slots(studio.demo.model, latents, positive, noise_levels(studio.demo.model, 8).float(), chosen.seed)
    agreed = agreement(found, studio.geometry, layout_of(unet_of(studio.demo.model)))
    return {
        "sigmas": [round(sigma, 3) for sigma in found.sigmas.tolist()],
        "change without slot 0.. and middle": [[round(c, 4) for c in level] for level in found.change.tolist()],
        "agreement with the geometry profile (Spearman)": [round(value, 3) for value in agreed.tolist()],
        "mean agreement": round(float(agreed.mean()), 3),
    }


def step_times(studio: Studio, chosen: Any) -> dict[str, float]:
    """Time of a run over the plain ControlNet's, runs in turns; on a CPU this process's own time."""
    scenes = Scenes(0, 2, "plain")
    policies = {"plain": 1.0, "weights": 1.0, "paper": 0.15, "ranked": 0.5}
    jobs = {policy: Job(policy, amount, 0, 2, 4, "plain") for policy, amount in policies.items()}
    runs = {policy: lambda job=job: studio.sample(studio.demo.model, job, scenes) for policy, job in jobs.items()}
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    times = in_turns(runs, clock, chosen.rounds)
    ratios = {policy: round(ratio(times[policy], times["plain"]), 4) for policy in runs if policy != "plain"}
    return {"seconds of a plain run": round(statistics.median(times["plain"]), 4), **ratios}


def plot(results: dict[str, Any], path: Path) -> None:
    """Subjects and edges kept against distance to the reference's style, a line a policy; up and left is better.

    Axes begin at zero, and the star is the world's own drawing: a hair's breadth should look like one.
    """
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    labels = {"subject": "subject recognised", "edge F1": "edge agreement (F1)"}
    for axes, (measure, label) in zip(panels, labels.items(), strict=True):
        for policy in POLICIES:
            points = [results["settings"][name] for name in curve(policy)]
            x, y = ([point[key]["mean"] for point in points] for key in ("style distance", measure))
            axes.plot(x, y, marker="o", label=policy, linewidth=1 if policy == "reversed" else 2)
        drawn = results["anchors"]["drawn"]
        axes.plot(drawn["style distance"]["mean"], drawn[measure]["mean"], "k*")
        marked = {name: results["settings"][name] for name in ("no control", "plain")} | {"drawn by the world": drawn}
        for name, point in marked.items():
            place = point["style distance"]["mean"], point[measure]["mean"]
            below = name == "no control"
            axes.annotate(name, place, (8, -14 if below else 4), textcoords="offset points")
        axes.set(xlabel="style distance to the reference", ylabel=label, xlim=(0, 0.5), ylim=(0, 1.08))
    panels[0].legend(title="how structure is reduced", loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def grid(studio: Studio, chosen: Any, path: Path) -> None:
    """Two dials on one scene: lambda (style) down, kept (structure) across, beside what both come from."""
    scenes = Scenes(chosen.seed, 1, chosen.hand)
    jobs: Sequence[Job] = [Job("paper", kept, chosen.seed, 1, chosen.steps, chosen.hand) for kept in KEPT]
    table = torch.stack([torch.cat([studio.paint(job, scenes, share) for job in jobs]) for share in LAMBDAS])
    given = {"style reference": scenes.picture[0], "edge map": repeat(scenes.edges[0], "h w -> 3 h w")}
    path.parent.mkdir(parents=True, exist_ok=True)
    dials(table, given, world.captions(scenes.specs)[0], path)
    print(path)


def dials(table: Tensor, given: dict[str, Tensor], prompt: str, path: Path) -> None:
    """A figure of pictures [LAMBDAS, KEPT, 3, H, W] with their two dials, and of the pictures `given` [3, H, W]."""
    from matplotlib import pyplot

    pyplot.rcParams["font.size"] = 13
    figure = pyplot.figure(figsize=(11, 8.8), layout="constrained")
    places = figure.add_gridspec(2, 2, width_ratios=(1, 3.6))
    for place, (name, picture) in enumerate(given.items()):
        axes = figure.add_subplot(places[place, 0])
        axes.imshow(picture.movedim(0, -1).clamp(0, 1).numpy())
        axes.set(title=name, xticks=(), yticks=())
    axes = figure.add_subplot(places[:, 1])
    gap = functional.pad(table.clamp(0, 1), (2, 2, 2, 2), value=1.0)
    axes.imshow(rearrange(gap, "row column c h w -> (row h) (column w) c").numpy())
    side = gap.shape[-1]
    axes.set_xticks([(at + 0.5) * side for at in range(len(KEPT))], [f"{kept:g}" for kept in KEPT])
    axes.set_yticks([(at + 0.5) * side for at in range(len(LAMBDAS))], [f"{share:g}" for share in LAMBDAS])
    axes.set(
        title=prompt, xlabel="kept: share of the schedule under all edges", ylabel="lambda: share of styled layers"
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=75)


if __name__ == "__main__":
    main()
