"""Does gated structure leave more of a style's geometry than a weaker ControlNet? On the demo model's edges.

Every triple is an edge map of a drawing by hand A, a prompt that names its subject and place and no style, and a style
reference: a drawing of another scene by hand B, let in through the style profile's layers. All settings paint the same
triples with the same noise and the same style; they differ in how much of the ControlNet acts. The world draws the
scene by both hands, so it is known what it looks like with A's lines and with B's: `B rather than A` says whether the
judge, which sees lightness alone, finds the picture nearer to the drawing by B. `edge F1` is against A's edges, as
asked, `edge F1, B` against those of the same scene by B. `--chart FILE` plots what comes out.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import comfy.sample
import numpy as np
import torch
from einops import repeat
from kornia.filters import canny
from nodes import ControlNetApplyAdvanced
from torch import Tensor
from torch.nn import functional

from benchmarks import harness
from benchmarks._workers import forked, gathered
from benchmarks.harness import CFG, PROFILES, Demo, Painted, Paintings, Truth, described
from benchmarks.style import in_turns, ratio
from conditional_balance.engine.ablation import agreement
from conditional_balance.engine.gates import LayerGate, RankedGate, WrittenGate
from conditional_balance.engine.grammar import parse
from conditional_balance.engine.profile_file import load
from conditional_balance.engine.structure import PaperSchedule, RankedSlots, StructureGate, parse_weights
from conditional_balance.runtime.arch.unet import unet_of
from conditional_balance.runtime.inject.control import gate_control, layout_of
from conditional_balance.runtime.inject.style import StyleInjection, inject_style
from conditional_balance.runtime.profile.ablation import ablate_slots
from conditional_balance.runtime.profile.profiling import noise_levels
from demo import models
from demo.autoencoder import CHANNELS
from demo.judge import style_distance
from demo.nets import CELLS
from demo.world import scenes
from demo.world.media import PLAIN
from demo.world.scenes import NOTHING, Specs
from demo.world.sets import KNOWN_HANDS

STYLE, GEOMETRY = PROFILES / "demo.style.safetensors", PROFILES / "demo.geometry.safetensors"
NONE, PLAIN_CONTROL = "no control", "plain"
POLICIES = {
    "paper": (0.0, 0.15, 0.5),
    "ranked": (0.34, 0.67),  # two and four of the demo model's six slots
    "reversed": (0.34, 0.67),
    "weights": (0.0, 0.5),  # of the finest residuals, rising to 1 for the coarsest
    "strength": (0.25, 0.5, 0.75),
}
GATES = ("paper", "ranked", "reversed", "weights")
MEASURES = ("edge F1", "edge F1, B", "subject", "to A", "to B", "B rather than A", "style distance")
EDGES, SUBJECT, TO_B, RATHER = (MEASURES.index(name) for name in ("edge F1", "subject", "to B", "B rather than A"))
GAINED = ("nearer to B's geometry", "B rather than A")
TOLERANCE = 2  # pixels an edge may stray
CANNY = (0.1, 0.25)


class Job(NamedTuple):
    policy: str
    amount: float  # kept, the finest slots' weight, or the strength
    index: int  # which triple; also the seed

    @property
    def name(self) -> str:
        return self.policy if self.policy in (NONE, PLAIN_CONTROL) else f"{self.policy} {self.amount:g}"


class Triple(NamedTuple):
    """A style reference by hand B, the scene by hand A, the same by B, and the edges [1, 192, 192] of both drawings."""

    reference: Painted
    specs: Specs
    by_a: Tensor  # [1, 3, 192, 192], autoencoded
    by_b: Tensor
    edges: Tensor
    edges_b: Tensor


def main() -> None:
    chosen = harness.options(
        __doc__, references=12, steps=10, amount=0.43, workers=2, rounds=5, chart="", prepared=harness.PREPARED,
        weights=models.WEIGHTS, content=harness.WELL,
    )  # fmt: skip
    torch.set_num_threads(1)
    studio = Studio(chosen)
    jobs = list(planned(chosen))
    with forked(chosen.workers, share_objects, studio) as pool:
        rows = gathered(pool, run, jobs, lambda job: job.name, every=16)
        anchors = torch.stack(pool.map(anchored, range(chosen.references)))
        if chosen.pictures:
            show(pool, chosen)
    measured = {name: torch.stack(parts) for name, parts in rows.items()}
    results = {
        "triples": chosen.references, "subjects painted": studio.subjects,
        "steps": chosen.steps, "lambda": chosen.amount,
        "anchors": {name: row(anchors[:, place]) for place, name in enumerate(ANCHORS)},
        "settings": {name: row(values) for name, values in measured.items()},
        "geometry gained over a weaker ControlNet": {
            "at equal subject recognition": gains(measured, SUBJECT), "at equal edge agreement": gains(measured, EDGES),
        },
        "slots": slots(studio), "step time over plain ControlNet": step_times(studio),
    }  # fmt: skip
    harness.report(results, chosen)
    if chosen.chart:
        plot(results, Path(chosen.chart))


class Studio:
    """The demo model with its ControlNet and profiles, and the drawings."""

    def __init__(self, chosen: Any) -> None:
        self.demo, self.truth, self.chosen = Demo(weights=chosen.weights), Truth(chosen.prepared), chosen
        dtype = self.demo.model.model.get_dtype()
        self.control = models.load_control_net(chosen.weights / "controlnet.safetensors", dtype)
        self.style, self.geometry = load(STYLE), load(GEOMETRY)
        files = (chosen.weights / f"{name}.safetensors" for name in ("unet", "text_encoder", "controlnet"))
        self.subjects = harness.content(chosen.content).subjects
        told = f"{self.subjects} {chosen.amount} {chosen.steps} {chosen.seed}"
        self.kept = Paintings("structure", *files, STYLE, GEOMETRY, told)

    def triple(self, index: int) -> Triple:
        """Two plain scenes of one subject each that share neither subject nor place, by two hands."""
        dice = torch.Generator().manual_seed(3000 + 1000 * self.chosen.seed + index)
        a, b = (KNOWN_HANDS[place] for place in torch.randperm(len(KNOWN_HANDS), generator=dice)[:2])
        reference = scenes.random_specs(1, dice, (b,), self.subjects, (PLAIN,), alone=1.0)
        drawn = scenes.random_specs(64, dice, (a,), self.subjects, (PLAIN,), alone=1.0)
        apart = (drawn.subject != reference.subject)[:, 0] & (drawn.place != reference.place) & (drawn.place != NOTHING)
        specs = drawn[apart.nonzero()[:1, 0]]
        both = specs, replace(specs, hand=reference.hand, colour=reference.colour)
        edges = [scenes.contours(scenes.composed(each, self.truth.atlas, self.truth.small)) for each in both]
        pictures = [self.demo.autoencoded(self.truth.draw(each)) for each in both]
        return Triple(harness.drawn_reference(self.demo, self.truth, reference), specs, *pictures, *edges)

    def sample(self, model: Any, job: Job, triple: Triple) -> Tensor:
        """Latents [1, 8, 24, 24] under the job's ControlNet."""
        told = harness.captions_without_style(triple.specs)
        positive, negative = (self.demo.conditioning(text) for text in (told, [""]))
        if job.policy != NONE:
            strength = job.amount if job.policy == "strength" else 1.0
            positive, negative = ControlNetApplyAdvanced().apply_controlnet(
                positive, negative, self.gated(job), hint_of(triple), strength, 0.0, 1.0
            )
        latent = torch.zeros(1, CHANNELS, CELLS, CELLS)
        noise = comfy.sample.prepare_noise(latent, job.index)
        return comfy.sample.sample(
            model, noise, self.chosen.steps, CFG, "euler", "normal", positive, negative, latent, disable_pbar=True,
            seed=job.index,
        )  # fmt: skip

    def gated(self, job: Job) -> Any:
        """The ControlNet under the job's policy."""
        if job.policy in (PLAIN_CONTROL, "strength"):
            return self.control
        return gate_control(self.control, self.gate(job))[0]

    def gate(self, job: Job) -> StructureGate:
        if job.policy == "paper":
            return PaperSchedule(job.amount)
        if job.policy == "weights":
            return rising(job.amount, layout_of(unet_of(self.demo.model)).slots)
        sign = -1 if job.policy == "reversed" else 1
        return RankedSlots(replace(self.geometry, scores=sign * self.geometry.scores), job.amount)

    def styled(self, triple: Triple) -> Any:
        amount = self.chosen.amount
        gate: LayerGate = WrittenGate(parse("all")) if amount == 1 else RankedGate(self.style, amount)
        return inject_style(self.demo.model, StyleInjection(gate, triple.reference.source))

    def measured(self, picture: Tensor, triple: Triple) -> Tensor:
        """MEASURES of a picture [1, 3, 192, 192] that should show the triple's scene."""
        judge, edges = self.demo.judge, edges_of(picture)
        found = harness.subjects_seen(judge, picture, triple.specs)
        lines, line_a, line_b = (judge.geometry(each) for each in (picture, triple.by_a, triple.by_b))
        to_a, to_b = style_distance(lines, line_a), style_distance(lines, line_b)
        columns = (
            edge_f1(edges, triple.edges > 0.5), edge_f1(edges, triple.edges_b > 0.5),
            harness.as_prompted(found, triple.specs)[0], to_a, to_b, to_b < to_a,
            style_distance(judge.style(picture), judge.style(triple.reference.picture)),
        )  # fmt: skip
        return torch.stack([column.float()[0] for column in columns])


def hint_of(triple: Triple) -> Tensor:
    return repeat(triple.edges, "b h w -> b h w 3")


def rising(finest: float, slots: int) -> StructureGate:
    """Weights by hand from the finest slots' to 1 for the coarsest and the middle, in three equal parts."""
    third = slots // 3
    return parse_weights(f"{finest}x{third} {(1 + finest) / 2}x{third} 1x{slots - 2 * third} m1")


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


def planned(chosen: Any) -> Iterator[Job]:
    """Triple by triple, so that a run that is stopped has the whole story of some."""
    points = [(NONE, 0.0), (PLAIN_CONTROL, 1.0)]
    points += [(policy, amount) for policy, sweep in POLICIES.items() for amount in sweep]
    for index, (policy, amount) in itertools.product(range(chosen.references), points):
        yield Job(policy, amount, index)


def share_objects(studio: Studio) -> None:
    global STUDIO
    STUDIO = studio


@lru_cache(2)
def triple_of(index: int) -> Triple:
    return STUDIO.triple(index)


def painted(job: Job) -> Tensor:
    """The picture [1, 3, 192, 192] of one job."""

    def paint() -> Tensor:
        triple = triple_of(job.index)
        return STUDIO.sample(STUDIO.styled(triple), job, triple)

    return STUDIO.demo.decode(STUDIO.kept.of(f"{job.index:03} {job.name}", paint))


def run(job: Job) -> Tensor:
    return STUDIO.measured(painted(job), triple_of(job.index))


ANCHORS = ("drawn by A", "drawn by B")


def anchored(index: int) -> Tensor:
    """What no setting can beat: the scene drawn by the world itself, by either hand."""
    triple = triple_of(index)
    return torch.stack([STUDIO.measured(picture, triple) for picture in (triple.by_a, triple.by_b)])


SHOWN = (NONE, PLAIN_CONTROL, "paper 0.15", "ranked 0.34", "reversed 0.34", "weights 0", "strength 0.25")


def show(pool: Any, chosen: Any, triples: int = 12) -> None:
    """A sheet, a column a triple: A's drawing, the reference, B's drawing of A's scene, and what SHOWN make of them."""
    columns = torch.stack(pool.map(column, range(min(triples, chosen.references))))
    harness.sheet(columns.transpose(0, 1).flatten(0, 1), len(columns), chosen.pictures / "structure.png")


def column(index: int) -> Tensor:
    triple, jobs = triple_of(index), {job.name: job for job in planned(STUDIO.chosen) if job.index == index}
    return torch.cat([triple.by_a, triple.reference.picture, triple.by_b, *(painted(jobs[name]) for name in SHOWN)])


def row(values: Tensor) -> dict[str, Any]:
    return {name: described(values[:, place], torch.arange(len(values))) for place, name in enumerate(MEASURES)}


def curve(policy: str) -> list[str]:
    """Names of a policy's settings up to the plain control; only strength begins at none, gates keep the middle."""
    begin = [NONE] if policy == "strength" else []
    return [*begin, *(f"{policy} {amount:g}" for amount in POLICIES[policy]), PLAIN_CONTROL]


def gains(measured: dict[str, Tensor], at_equal: int) -> dict[str, Any]:
    """B's geometry that each gate gains over turning the strength down, with 95 % intervals: 1000 draws of triples.

    `measured` [triples, measures] by setting. Beside each setting, and the mean over each policy's, stands the control
    of a strength that scores the same in the measure `at_equal`. Positive: the gate is nearer to the scene as B draws
    it, and shows B rather than A more often.
    """
    own = [name for policy in GATES for name in curve(policy)[:-1]]
    gates, strengths = (np.stack([measured[name].numpy() for name in names]) for names in (own, curve("strength")))
    count = gates.shape[1]
    draws = [np.arange(count), *np.random.default_rng(0).integers(count, size=(1000, count))]
    found = np.stack([gained(gates[:, rows].mean(1), strengths[:, rows].mean(1), at_equal) for rows in draws])
    groups = {name: [place] for place, name in enumerate(own)}
    groups |= {f"{policy}, mean": [own.index(name) for name in curve(policy)[:-1]] for policy in GATES}
    return {name: estimates(found[:, places].mean(1)) for name, places in groups.items()}


def gained(gates: np.ndarray, strengths: np.ndarray, at_equal: int) -> np.ndarray:
    """Nearness and recognition of B [gates, 2] over the curve of strengths, both [settings, measures].

    The curve runs in straight lines between its settings and stays level beyond its ends.
    """
    order = np.argsort(strengths[:, at_equal], kind="stable")
    curve_at = strengths[order]

    def read(measure: int) -> np.ndarray:
        return np.interp(gates[:, at_equal], curve_at[:, at_equal], curve_at[:, measure])

    return np.stack([read(TO_B) - gates[:, TO_B], gates[:, RATHER] - read(RATHER)], 1)


def estimates(draws: np.ndarray) -> dict[str, Any]:
    """Of draws [1 + N, 2] whose first is the sample itself."""
    rows = np.stack([draws[0], *np.quantile(draws[1:], (0.025, 0.975), axis=0)]).round(4).T.tolist()
    return {
        name: dict(zip(("mean", "low", "high"), each, strict=True)) for name, each in zip(GAINED, rows, strict=True)
    }


def slots(studio: Studio) -> dict[str, Any]:
    """Of four triples: what leaving out each residual changes, and whether the geometry profile ranks them alike."""
    layout, found = layout_of(unet_of(studio.demo.model)), []
    for index in range(min(4, studio.chosen.references)):
        triple = studio.triple(index)
        told = harness.captions_without_style(triple.specs)
        positive, negative = (studio.demo.conditioning(text) for text in (told, [""]))
        positive, _ = ControlNetApplyAdvanced().apply_controlnet(
            positive, negative, studio.control, hint_of(triple), 1.0, 0.0, 1.0
        )
        latents, sigmas = studio.demo.encode(triple.by_a), noise_levels(studio.demo.model, 8).float()
        found.append(ablate_slots(studio.demo.model, latents, positive, sigmas, index))
    change = torch.stack([each.change for each in found]).mean(0)
    agreed = agreement(replace(found[0], change=change), studio.geometry, layout)
    return {
        "sigmas": [round(sigma, 3) for sigma in found[0].sigmas.tolist()],
        "change without slot 0.. and middle": [[round(c, 4) for c in level] for level in change.tolist()],
        "agreement with the geometry profile (Spearman)": [round(value, 3) for value in agreed.tolist()],
        "mean agreement": round(float(agreed.mean()), 3),
    }


def step_times(studio: Studio) -> dict[str, float]:
    """Time of a run over the plain ControlNet's, runs in turns; on a CPU this process's own time."""
    triple = studio.triple(0)
    jobs = [Job(PLAIN_CONTROL, 1.0, 0), Job("weights", 1.0, 0), Job("paper", 0.15, 0), Job("ranked", 0.34, 0)]
    runs = {job.policy: lambda job=job: studio.sample(studio.demo.model, job, triple) for job in jobs}
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    times = in_turns(runs, clock, studio.chosen.rounds)
    ratios = {
        policy: round(ratio(times[policy], times[PLAIN_CONTROL]), 4) for policy in runs if policy != PLAIN_CONTROL
    }
    return {"seconds of a plain run": round(statistics.median(times[PLAIN_CONTROL]), 4), **ratios}


def plot(results: dict[str, Any], path: Path) -> None:
    """Subjects and A's edges kept against B's geometry, a line a policy; up and right is better.

    The stars are the world's own drawings of the scenes: a hair's breadth should look like one.
    """
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    labels = {"subject": "subject recognised, %", "edge F1": "agreement with the edges asked for (F1), %"}
    for axes, (measure, label) in zip(panels, labels.items(), strict=True):
        for policy in POLICIES:
            points = [results["settings"][name] for name in curve(policy)]
            x, y = ([100 * point[key]["mean"] for point in points] for key in ("to B", measure))
            axes.plot(x, y, marker="o", label=policy, linewidth=1 if policy == "reversed" else 2)
        marked = {name: results["settings"][name] for name in (NONE, PLAIN_CONTROL)} | results["anchors"]
        for name, point in marked.items():
            place = 100 * point["to B"]["mean"], 100 * point[measure]["mean"]
            if name in ANCHORS:
                axes.plot(*place, "k*")
            axes.annotate(name, place, (6, -12 if name == NONE else 5), textcoords="offset points")
        axes.invert_xaxis()
        axes.set(xlabel="distance to the scene as B draws it, lightness alone, % (nearer: right)", ylabel=label)
        axes.set_ylim(0, 108)
    panels[0].legend(title="how structure is reduced", loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
