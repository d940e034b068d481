"""Does the mask find the subject? Five methods against the drawn world's true masks, beside DAAM's rule; their cost.

Scenes show one subject, two, or two look-alikes side by side; of two the first and the second are looked for in turns.
Drawn pictures have known masks. Generated ones are drawn scenes that the model has redrawn from half of the schedule
on, under their own caption: the subject keeps its place, so the drawn mask stays (nearly) true; `kept` says how often
the judge still sees it there. "own" is IoU under the nodes' default mask settings, "best" under the one threshold of
the map, scaled to [0, 1], that is best over all pictures. Rows "against the rest" know the caption's words for the
place and for the other subject, as the Subject node's `surroundings`; the others know the subject's word alone. All in
fp32: in bfloat16 the finite difference of `jvp` drowns in rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import attribution_cost, harness
from benchmarks._workers import forked, outcomes
from benchmarks.harness import CFG, Content, Demo, Paintings, Truth, described
from conditional_balance.engine.attribution import contrasted, normalised
from conditional_balance.engine.masks import MaskSettings, mask_of
from conditional_balance.engine.subject import Phrase
from conditional_balance.runtime.attribution.find import ProbeSettings, ask_at_levels
from conditional_balance.runtime.attribution.layers import chosen_layers
from conditional_balance.runtime.attribution.prediction import Prediction
from conditional_balance.runtime.attribution.propagation import Propagation
from conditional_balance.runtime.attribution.question import Question
from conditional_balance.runtime.attribution.settings import AttributionSettings
from conditional_balance.runtime.attribution.subject import Subject, read_subject
from demo import models
from demo.nets import CELLS
from demo.world import scenes
from demo.world.places import PHRASES
from demo.world.scenes import NOTHING, PLACE_NAMES, SIZE, Specs
from demo.world.subjects import LOOK_ALIKES, SUBJECTS, WORDS

LEVELS = (0.65,)
START = 0.5  # where redrawing begins
KINDS = ("drawn", "generated")
SITUATIONS = ("one subject", "two subjects", "look-alikes")
SPREADS = (0, 1, 2, 3, 4)  # how often a map is spread along self-attention before it is multiplied with that
ITSELF = len(SPREADS)  # the place of the map that is spread twice and not multiplied
VARIANTS = ((False, 0), (False, 2), (True, 2))  # against the rest, times spread
RULES = {f"mean + {c} std": MaskSettings(rule="mean + c std", amount=c) for c in (0.4, 0.6, 0.8, 1.0, 1.2)}
RULES["otsu"] = MaskSettings(rule="otsu")
THRESHOLDS = torch.linspace(0.05, 0.95, 37)
MEASURES = ("IoU own", "AP", "pointing", "on the other")
DAAM = "DAAM's rule"
SPREAD, AGAINST = ", propagated", ", against the rest"
GOALS = {"IoU own": 0.87, "IoU own beside a look-alike": 0.75}


class Read(NamedTuple):
    """Layers of a network whose attention to text is read."""

    auto: str  # what the nodes take unless others are named
    first: str  # of a UNet, those half as fine as the latents
    second: str  # and those as fine
    beside: tuple[str, ...]  # tried with the default method too
    outputs: bool  # whether the paper's own map can be made: not where every place reaches every output

    @property
    def default(self) -> str:
        return f"value_norm, layers {self.auto}"


READ = {
    "unet": Read("o2-5", "o2-3", "o4-5", ("o2-3",), True),
    "transformer": Read("s0-3", "s0-3", "s4-7", ("j0-1", "s4-7", "j0-1, s0-3", "all"), False),
}


class Way(NamedTuple):
    """One way to find the subject; `shift` moves its token positions."""

    name: str
    settings: AttributionSettings
    shift: int = 0


def ways(read: Read, job: Job | None = None) -> Iterator[Way]:
    """All, or those that are tried on one picture: the slower ones on drawn pictures only, the slowest on few."""
    return iter({way.name: way for way in _planned(read, job)}.values())


def _planned(read: Read, job: Job | None) -> Iterator[Way]:
    yield Way(DAAM, AttributionSettings("attention", "all"))
    for method, layers in (
        ("attention", read.auto), ("value_norm", read.auto), ("grad_sam", read.first), ("grad_sam", read.auto),
    ):  # fmt: skip
        yield Way(f"{method}, layers {layers}", AttributionSettings(method, layers))
    if job is None or job.kind == "drawn":
        beside = [("value_norm", layers) for layers in read.beside]
        for method, layers in (*beside, ("jvp", read.auto), ("grad_sam", read.second)):
            yield Way(f"{method}, layers {layers}", AttributionSettings(method, layers))
        for probes in (8, 16):
            settings = AttributionSettings("grad_sam", read.first, probes=probes)
            yield Way(f"grad_sam, {probes} probes, layers {read.first}", settings)
        early = AttributionSettings("grad_sam", read.first)
        yield Way(f"grad_sam, layers {read.first}, one token early (the official code's offset)", early, -1)
        if read.outputs and (job is None or job.index % 3 == 0):
            yield Way(f"grad_sam_output, layers {read.second}", AttributionSettings("grad_sam_output", read.second))


class Job(NamedTuple):
    kind: str
    situation: str
    index: int  # which scene; also the seed

    @property
    def name(self) -> str:
        return f"{self.kind} {self.situation} {self.index:03}"

    @property
    def target(self) -> int:
        """Which of two subjects is looked for."""
        return 0 if self.situation == "one subject" else self.index % 2


class Case(NamedTuple):
    """A picture [1, 3, 192, 192] and, by noise level, the latent [1, 8, 24, 24] to look at; with what is true of it."""

    subject: Subject
    masks: Tensor  # of the subject and of the other one, [2, 192, 192], bool
    picture: Tensor
    latents: dict[float, Tensor]
    kept: bool


def main() -> None:
    chosen = harness.options(
        __doc__, count=8, steps=12, workers=2, prepared=harness.PREPARED, weights=models.WEIGHTS, model="unet",
        content="all subjects",
    )  # fmt: skip
    torch.set_num_threads(1)
    jobs = [Job(kind, situation, index) for index, situation, kind in planned(chosen.count)]
    demo = Demo(torch.float32, weights=chosen.weights, paints=chosen.model)
    shared = demo, Truth(chosen.prepared), chosen, paintings(chosen)
    with forked(chosen.workers, share_objects, *shared) as pool:
        found = list(outcomes(pool, run, jobs, every=10))
        if chosen.pictures:
            show(pool, jobs, chosen.pictures)
    about = {"pictures": len(jobs), "content": chosen.content, "steps": chosen.steps, "levels": LEVELS, "goals": GOALS}
    results = about | summarised(READ[chosen.model], jobs, found)
    if chosen.model == "unet":
        results["cost"] = attribution_cost.costs(demo, read_subject(demo.clip, "a fox in the hills", "fox", "hills"))
    harness.report(results, chosen)


def planned(count: int) -> Iterator[tuple[int, str, str]]:
    """Scene by scene, so that a run that is stopped has some of each."""
    return itertools.product(range(count), SITUATIONS, KINDS)


def paintings(chosen: Any) -> Paintings:
    """They depend on the weights and on the scenes."""
    told = harness.content(chosen.content)
    return Paintings(
        "attribution",
        *harness.weights_of(chosen.weights, chosen.model),
        f"{told} {alike(told)} {LEVELS} {START} {SPREADS} {chosen.steps} {chosen.seed}",
    )


def share_objects(demo: Demo, truth: Truth, chosen: Any, kept: Paintings) -> None:
    global DEMO, TRUTH, CHOSEN, KEPT
    DEMO, TRUTH, CHOSEN, KEPT = demo, truth, chosen, kept


# pictures and what is true of them -----------------------------------------------------------------------------------


def alike(told: Content) -> list[tuple[str, str]]:
    """Pairs of look-alikes that scenes can be of."""
    return [pair for pair in LOOK_ALIKES if set(pair) <= set(told.subjects)]


def scene(situation: str, index: int) -> Specs:
    """One scene [1] before a place that its caption names."""
    told = harness.content(CHOSEN.content)
    dice = torch.Generator().manual_seed(1000 * CHOSEN.seed + 100 * SITUATIONS.index(situation) + 7919 * index)
    alone = float(situation == "one subject")
    many = scenes.random_specs(32, dice, subjects=told.subjects, media=told.media, alone=alone)
    specs = many[(many.place != NOTHING).nonzero()[0]]
    if situation == "look-alikes":
        pairs = alike(told)
        specs.subject[0] = torch.tensor([SUBJECTS.index(name) for name in pairs[index // 2 % len(pairs)]])
    return specs


def case_of(job: Job) -> Case:
    specs = scene(job.situation, job.index)
    caption = scenes.captions(specs)[0]
    picture, masks = TRUTH.rendered(specs)
    order = [job.target, 1 - job.target]
    latent = DEMO.encode(picture)
    latents, kept = dict.fromkeys(LEVELS, latent), True
    if job.kind == "generated":
        *noisy, last = KEPT.of(f"{job.name} redrawn", lambda: redrawn(latent, caption, job.index)).split(1)
        latents, picture = dict(zip(LEVELS, noisy, strict=True)), DEMO.decode(last)
        seen = harness.subjects_seen(DEMO.judge, picture, specs)[0, job.target].argmax()
        kept = bool(seen == specs.subject[0, job.target])
    return Case(subject_of(specs, job.target, caption), masks[0, order] > 0.5, picture, latents, kept)


def subject_of(specs: Specs, target: int, caption: str) -> Subject:
    """The subject against its place's noun and against the other subject, if there is one."""
    words = [WORDS[row] for row in specs.subject[0].tolist() if row != NOTHING]
    rest = [word for row, word in enumerate(words) if row != target]
    rest.append(PHRASES[PLACE_NAMES[int(specs.place)]].split()[-1])
    return read_subject(DEMO.clip, caption, words[target], ", ".join(rest))


def redrawn(latent: Tensor, caption: str, seed: int) -> Tensor:
    """A drawn picture redrawn from START on: its noisy latents on their way at each of LEVELS, then the result."""
    sampling = DEMO.model.get_model_object("model_sampling")
    percents = sorted({*torch.linspace(START, 1, CHOSEN.steps + 1).tolist()[:-1], *LEVELS})
    sigmas = torch.tensor([sampling.percent_to_sigma(percent) for percent in percents] + [0.0])
    seen: dict[float, Tensor] = {}

    def watch(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        seen[percents[step]] = x.clone()

    last = comfy.sample.sample_custom(
        DEMO.model, comfy.sample.prepare_noise(latent, seed), CFG, comfy.samplers.ksampler("euler"), sigmas,
        DEMO.conditioning([caption]), DEMO.conditioning([""]), latent, callback=watch, disable_pbar=True, seed=seed,
    )  # fmt: skip
    return torch.cat([*(seen[level] for level in LEVELS), last])


# maps ----------------------------------------------------------------------------------------------------------------


def maps_of(job: Job, case: Case, way: Way) -> Tensor:
    """Maps [alone or against the rest, SPREADS and ITSELF, 24, 24] of one way, means over the noise levels."""

    def look() -> Tensor:
        levels = [at_level(case, way, level, job) for level in LEVELS]
        return torch.stack(levels).half()

    return normalised(KEPT.of(f"{job.name} {way.name}", look).float()).mean(0)


def at_level(case: Case, way: Way, level: float, job: Job) -> Tensor:
    """What `attribute` makes of one noise level, [alone or against, SPREADS and ITSELF, 24, 24], from one set of
    passes."""
    settings, found = way.settings, list[Tensor]()
    layers = chosen_layers(DEMO.model, AttributionSettings(settings.method, settings.layers, propagation=1))
    own = tuple(Phrase(each.text, tuple(p + way.shift for p in each.positions)) for each in case.subject.phrases)

    def ask(prediction: Prediction) -> None:
        spread = Propagation(prediction, layers, 2)
        maps = settings.way.maps(Question(prediction, own + case.subject.surroundings, layers, settings, spread))
        for each in (maps[:1], contrasted(maps[:1], maps[1:])):
            found.append(spread.spread(each))
            for times in reversed(SPREADS):
                spread.times = times
                found.append(spread.over(each))
            spread.times = 2

    probe = ProbeSettings((level,), job.kind == "generated", job.index)
    ask_at_levels(DEMO.model, case.latents[level], case.subject, probe, settings.way, ask)
    planes = torch.cat(found).reshape(2, ITSELF + 1, *found[0].shape[-2:]).flip(1)
    return planes / planes.amax((-2, -1), keepdim=True).clamp_min(1e-30)  # so that half precision holds them


def enlarged(maps: Tensor) -> Tensor:
    """Maps [..., 24, 24] at the size of pictures."""
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    return functional.interpolate(flat, size=(SIZE, SIZE), mode="bicubic")[0].reshape(*maps.shape[:-2], SIZE, SIZE)


# measures ------------------------------------------------------------------------------------------------------------

Measured = dict[str, Tensor]


def run(job: Job) -> Measured:
    """Of one picture, by row: MEASURES and IoU at each of THRESHOLDS."""
    case = case_of(job)
    found: Measured = {"kept": torch.tensor(float(case.kept)), "ceiling": ceiling(case.masks[0])}
    read = READ[CHOSEN.model]
    for way in ways(read, job):
        maps = enlarged(maps_of(job, case, way))
        for against, spread in VARIANTS:
            found[row_name(way.name, spread, against)] = measures(maps[int(against), spread], case.masks)
        if way.name == read.default:
            found |= {f"rule {name}": by_rule(maps[0, 2], case.masks[0], rule) for name, rule in RULES.items()}
            found |= {f"itself {name}": by_rule(maps[0, ITSELF], case.masks[0], rule) for name, rule in RULES.items()}
            found |= {f"spread {times}": by_rule(maps[0, times], case.masks[0], MaskSettings()) for times in SPREADS}
    return found


def row_name(way: str, spread: int, against: bool) -> str:
    return f"{way}{SPREAD if spread else ''}{AGAINST if against else ''}"


def measures(found: Tensor, masks: Tensor) -> Tensor:
    """Of a map [192, 192] against the masks of its subject and of the other one."""
    truth, other = masks
    inside = mask_of(found[None, None], MaskSettings(), scale=8.0)[0] > 0.5
    low, high = found.amin(), found.amax()
    at = iou((found - low) / (high - low).clamp_min(1e-12) > THRESHOLDS[:, None, None], truth)
    pointing = truth.flatten()[found.argmax()].float()
    wrong = (inside & other).sum() / inside.sum().clamp_min(1)
    return torch.cat([torch.stack([iou(inside, truth), average_precision(found, truth), pointing, wrong]), at])


def by_rule(found: Tensor, truth: Tensor, rule: MaskSettings) -> Tensor:
    return iou(mask_of(found[None, None], rule, scale=8.0)[0] > 0.5, truth)


def ceiling(truth: Tensor) -> Tensor:
    """What a perfect map on the latent's own cells would score."""
    cells = functional.adaptive_avg_pool2d(truth.float()[None], CELLS)
    return iou(enlarged(cells)[0] > 0.5, truth)


def iou(found: Tensor, truth: Tensor) -> Tensor:
    """Of masks [..., H, W]."""
    return (found & truth).sum((-2, -1)) / (found | truth).sum((-2, -1)).clamp_min(1)


def average_precision(scores: Tensor, truth: Tensor) -> Tensor:
    """Area under the precision-recall curve of one picture's pixels."""
    hits = truth.flatten()[scores.flatten().argsort(descending=True)].double()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    return ((precision * hits).sum() / hits.sum().clamp_min(1)).float()


# results -------------------------------------------------------------------------------------------------------------


def summarised(read: Read, jobs: list[Job], found: list[Measured]) -> dict[str, Any]:
    """Rows by kind and situation, what other settings of the default row give, and each row against the default."""
    parts = {
        kind: {
            situation: [
                each for job, each in zip(jobs, found, strict=True) if (job.kind, job.situation) == (kind, situation)
            ]
            for situation in SITUATIONS
        }
        for kind in KINDS
    }
    return {
        "kept": {situation: mean_of(parts["generated"][situation], "kept") for situation in SITUATIONS},
        "ceiling": {situation: mean_of(parts["drawn"][situation], "ceiling") for situation in SITUATIONS},
        **{kind: table(read, rows) for kind, rows in parts.items()},
        "against the default": {kind: beside(read, together(rows), read.default) for kind, rows in parts.items()},
        "against two probes": beside(read, together(parts["drawn"]), f"grad_sam, layers {read.first}"),
        "settings": {kind: settings_of(rows) for kind, rows in parts.items()},
    }  # fmt: skip


Parts = dict[str, list[Measured]]


def together(rows: Parts) -> list[Measured]:
    return [each for part in rows.values() for each in part]


def names(read: Read) -> Iterator[str]:
    """The rows of the tables."""
    for way, (against, spread) in itertools.product(ways(read), VARIANTS):
        yield row_name(way.name, spread, against)


def table(read: Read, rows: Parts) -> dict[str, Any]:
    """By row: IoU own in every situation, and all measures over all pictures."""
    return {
        name: {situation: mean_of(rows[situation], name) for situation in SITUATIONS} | everything(together(rows), name)
        for name in names(read)
        if any(name in each for each in together(rows))
    }


def everything(rows: list[Measured], name: str) -> dict[str, Any]:
    values = torch.stack([each[name] for each in rows if name in each])
    at = values[:, len(MEASURES) :]
    best = int(at.mean(0).argmax())
    columns = {measure: values[:, column] for column, measure in enumerate(MEASURES)} | {"IoU best": at[:, best]}
    told = {measure: described(column, torch.arange(len(column))) for measure, column in columns.items()}
    return told | {"threshold": round(float(THRESHOLDS[best]), 3)}


def mean_of(rows: list[Measured], name: str) -> dict[str, float]:
    """The first measure of a row, which is IoU own where it has several."""
    values = torch.stack([each[name].flatten()[0] for each in rows if name in each])
    return described(values, torch.arange(len(values)))


def beside(read: Read, rows: list[Measured], default: str) -> dict[str, Any]:
    """How much more IoU own each way finds than one way does with as much told and spread, pairwise."""

    def gained(way: str, against: bool) -> dict[str, float]:
        names = [row_name(each, 2, against) for each in (way, default)]
        gains = [each[names[0]][0] - each[names[1]][0] for each in rows if all(name in each for name in names)]
        return described(torch.stack(gains), torch.arange(len(gains)))

    return {
        way.name: {"alone": gained(way.name, False), "against the rest": gained(way.name, True)}
        for way in ways(read)
        if way.name != default and any(row_name(way.name, 2, False) in each for each in rows)
    }


def settings_of(rows: Parts) -> dict[str, Any]:
    """IoU of the default way alone by how often its map is spread, by the rule for its threshold, and by that rule
    where the spread map is not multiplied with the map itself."""
    tried = [f"spread {times}" for times in SPREADS]
    tried += [f"{kind} {name}" for kind in ("rule", "itself") for name in RULES]
    return {name: {situation: mean_of(rows[situation], name) for situation in SITUATIONS} for name in tried}


# pictures ------------------------------------------------------------------------------------------------------------


def show(pool: Any, jobs: list[Job], folder: Path, scenes_shown: int = 8) -> None:
    """A sheet a kind and situation: the picture, its true mask, and masks of three ways, a column a scene."""
    for kind, situation in itertools.product(KINDS, SITUATIONS):
        mine = [job for job in jobs if (job.kind, job.situation) == (kind, situation)][:scenes_shown]
        columns = torch.stack(pool.map(overlays, mine))
        harness.sheet(columns.transpose(0, 1).flatten(0, 1), len(mine), folder / f"attribution {kind}, {situation}.png")


def overlays(job: Job) -> Tensor:
    """The picture, and the same with all but a mask darkened: [5, 3, 192, 192]."""
    case, read = case_of(job), READ[CHOSEN.model]
    shown = ((DAAM, 0, 0), (read.default, 2, 1), (f"grad_sam, layers {read.first}", 2, 1))
    masks = [torch.ones(SIZE, SIZE), case.masks[0].float()]
    for way, spread, against in shown:  # how often it is spread; whether it knows the rest
        maps = maps_of(job, case, next(each for each in ways(read) if each.name == way))
        masks.append(mask_of(enlarged(maps[against, spread])[None, None], MaskSettings(), scale=8.0)[0])
    return case.picture * (0.15 + 0.85 * torch.stack(masks)[:, None])


if __name__ == "__main__":
    main()
