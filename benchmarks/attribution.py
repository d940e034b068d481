"""Does the mask find the subject? Five methods against the demo world's true masks, beside DAAM's rule; and their cost.

Real pictures are drawn, so their masks are known exactly. Generated ones are drawn scenes that the model has redrawn
from half of the schedule on, under their own caption: the subject keeps its place, so the drawn mask stays (nearly)
true; `subject kept` says how often the judge still sees it. "own" is IoU under the node's default mask settings, "best"
under the one threshold of the map, scaled to [0, 1], that is best over all pictures. Rows "against the place" know
the caption's word for the background, as the Subject node's `surroundings`; the others know the subject's word alone.
All in fp32: in bfloat16 the finite difference of `jvp` drowns in rounding.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.harness import BATCH, CFG, Demo, interval
from conditional_balance.engine.masks import MaskSettings, mask_of
from conditional_balance.engine.subject import Phrase
from conditional_balance.runtime.arch.registry import architecture_of
from conditional_balance.runtime.attribution.attribute import Result, attribute
from conditional_balance.runtime.attribution.find import ProbeSettings, find_subject
from conditional_balance.runtime.attribution.layers import Layers, chosen_layers
from conditional_balance.runtime.attribution.methods.grad_sam import GradSAM
from conditional_balance.runtime.attribution.prediction import Prediction
from conditional_balance.runtime.attribution.propagation import Propagation
from conditional_balance.runtime.attribution.question import Question
from conditional_balance.runtime.attribution.settings import AttributionSettings
from conditional_balance.runtime.attribution.subject import Subject, read_subject
from demo import world

LEVELS = (0.55, 0.7, 0.85)
START = 0.5  # where redrawing begins
DAAM = "DAAM's rule"
EQUAL = f"{DAAM}, propagated, against the place"  # what it finds with all that the best rows know
METHODS = ("grad_sam", "jvp", "value_norm", "attention")
OUTPUT = "grad_sam_output"  # dozens of passes: fewer rows
NODE = AttributionSettings("value_norm", propagation=2)  # the nodes' defaults
GROUP = 48  # pictures in one call
NAIVE = 64  # outputs of which the naive Jacobian is timed
GOALS = {"over DAAM": 0.05, "best IoU on generated": 0.75, "jvp forwards": 1.2, "grad_sam forwards": 4, "memory": 2.5}


class Row(NamedTuple):
    """One way to find the subject; `shift` moves its token positions, `against` sets it against the place's word."""

    name: str
    settings: AttributionSettings
    shift: int = 0
    against: bool = False


def rows() -> Iterator[Row]:
    yield Row(DAAM, AttributionSettings("attention", "all"))
    yield Row(f"{DAAM}, against the place", AttributionSettings("attention", "all"), against=True)
    yield Row(EQUAL, AttributionSettings("attention", "all", propagation=2), against=True)
    yield Row("value_norm, layers auto, propagated", NODE)
    for method in METHODS:
        yield Row(f"{method}, layers auto", AttributionSettings(method))
        yield Row(f"{method}, layers o2-3", AttributionSettings(method, "o2-3"))
        yield Row(f"{method}, layers o2-3, propagated", AttributionSettings(method, "o2-3", propagation=2))
        for layers in ("auto", "o2-3", "o"):
            settings = AttributionSettings(method, layers, propagation=2)
            yield Row(f"{method}, layers {layers}, propagated, against the place", settings, against=True)
    for layers, probes in itertools.product(("auto", "o2-3"), (8, 16)):
        settings = AttributionSettings("grad_sam", layers, propagation=2, probes=probes)
        yield Row(f"grad_sam, {probes} probes, layers {layers}, propagated, against the place", settings, against=True)
    yield Row(f"{OUTPUT}, layers auto", AttributionSettings(OUTPUT))
    settings = AttributionSettings(OUTPUT, propagation=2)
    yield Row(f"{OUTPUT}, layers auto, propagated, against the place", settings, against=True)
    yield Row("attention, layers o2-3, against the place", AttributionSettings("attention", "o2-3"), against=True)
    yield Row("attention, layers o, weighted by layer", AttributionSettings("attention", "o", "by layer"))
    for method in ("grad_sam", "attention"):
        settings = AttributionSettings(method, "o2-3", propagation=2)
        yield Row(f"{method}, layers o2-3, propagated, one token early (the official code's offset)", settings, -1)


class Case(NamedTuple):
    """Pictures of one kind: their subjects, true masks [B, 128, 128], and the latent to look at by noise level."""

    subjects: list[tuple[Tensor, Subject]]  # rows of the batch and what they show
    masks: Tensor
    latents: dict[float, Tensor]
    noised: bool


def main() -> None:
    chosen = harness.options(__doc__, count=96, steps=12, only="")  # --only: rows whose name holds this text
    demo, dice = Demo(torch.float32), torch.Generator().manual_seed(chosen.seed)
    specs = world.random_specs(chosen.count, dice)
    real, generated, kept = cases(demo, specs, chosen)
    results: dict[str, Any] = {"pictures": chosen.count, "levels": LEVELS, "subject kept": kept, "goals": GOALS}
    for name, case in (("real", real), ("generated", generated)):
        results[name] = {}
        for row in rows():
            if chosen.only in row.name:
                results[name][row.name] = scored(demo, case, row)
                print(name, row.name, results[name][row.name]["all levels"], flush=True)
        results[name]["gain over DAAM's rule"] = gain(results[name])
    results["cost"] = costs(demo, real)
    harness.report(results, chosen)


def cases(demo: Demo, specs: world.Specs, chosen: Any) -> tuple[Case, Case, float]:
    pictures, masks = (torch.cat(parts) for parts in zip(*map(world.render, _split(specs)), strict=True))
    latents, captions = demo.encode(pictures), world.captions(specs)
    subjects = [
        (part, subject_of(demo, [captions[i] for i in part], specs[part])) for part in alike(demo, captions, specs)
    ]
    redrawn, noisy = redraw(demo, latents, captions, chosen)
    kept = (demo.verdict(demo.decode(redrawn)).subject == specs.subject).float().mean()
    real = Case(subjects, masks, dict.fromkeys(LEVELS, latents), False)
    return real, Case(subjects, masks, noisy, True), round(float(kept), 4)


def _split(specs: world.Specs) -> list[world.Specs]:
    return [specs[part] for part in torch.arange(len(specs)).split(32)]


def alike(demo: Demo, captions: list[str], specs: world.Specs) -> list[Tensor]:
    """Rows that can share a call: those whose subject and place have their tokens at the same places."""
    places: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for index, caption in enumerate(captions):
        subject = read(demo, caption, specs, index)
        spots = tuple(phrase.positions for phrase in subject.phrases + subject.surroundings)
        places.setdefault(spots, []).append(index)
    return [part for group in places.values() for part in torch.tensor(group).split(GROUP)]


def subject_of(demo: Demo, captions: list[str], specs: world.Specs) -> Subject:
    """One subject for pictures that each have their own caption."""
    return replace(read(demo, captions[0], specs, 0), conditioning=demo.conditioning(captions))


def read(demo: Demo, caption: str, specs: world.Specs, index: int) -> Subject:
    """The subject of one caption against its place's noun."""
    place = world.PLACES[world.BACKGROUND_NAMES[int(specs.background[index])]].split()[-1]
    return read_subject(demo.clip, caption, world.SUBJECT_NAMES[int(specs.subject[index])], place)


def redraw(demo: Demo, latents: Tensor, captions: list[str], chosen: Any) -> tuple[Tensor, dict[float, Tensor]]:
    """Drawn pictures redrawn from START on: the results, and the noisy latents on their way at each of LEVELS."""
    sampling = demo.model.get_model_object("model_sampling")
    percents = sorted({*torch.linspace(START, 1, chosen.steps + 1).tolist()[:-1], *LEVELS})
    sigmas = torch.tensor([sampling.percent_to_sigma(percent) for percent in percents] + [0.0])
    places = {percents.index(level): level for level in LEVELS}
    done, seen = [], {level: [] for level in LEVELS}

    def watch(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        if step in places:
            seen[places[step]].append(x.clone())

    for part in torch.arange(len(latents)).split(BATCH):
        noise = comfy.sample.prepare_noise(latents[part], chosen.seed + int(part[0]))
        prompts = demo.conditioning([captions[i] for i in part]), demo.conditioning([""])
        done.append(
            comfy.sample.sample_custom(
                demo.model, noise, CFG, comfy.samplers.ksampler("euler"), sigmas, *prompts, latents[part],
                callback=watch, disable_pbar=True, seed=chosen.seed,
            )
        )  # fmt: skip
    return torch.cat(done), {level: torch.cat(parts) for level, parts in seen.items()}


def scored(demo: Demo, case: Case, row: Row) -> dict[str, Any]:
    """Measures at every level and for the mean of the levels' maps."""
    notes: set[str] = set()
    maps = {level: maps_at(demo, case, row, level, notes) for level in LEVELS}
    found = {f"percent {level:g}": measures(part, case.masks) for level, part in maps.items()}
    found["all levels"] = measures(torch.stack(list(maps.values())).mean(0), case.masks)
    return found | ({"notes": sorted(notes)} if notes else {})


def maps_at(demo: Demo, case: Case, row: Row, level: float, notes: set[str]) -> Tensor:
    """Maps [pictures, 128, 128] of one noise level; `notes` gathers what a method had to say, such as a fallback."""
    maps = torch.zeros_like(case.masks)
    for part, subject in case.subjects:
        phrases = [Phrase(each.text, tuple(p + row.shift for p in each.positions)) for each in subject.phrases]
        subject = Subject(subject.conditioning, tuple(phrases), subject.surroundings if row.against else ())
        found = find_subject(
            demo.model, case.latents[level][part], subject, ProbeSettings((level,), case.noised), row.settings
        )
        enlarged = torch.nn.functional.interpolate(found.maps.float(), size=maps.shape[1:], mode="bicubic")
        maps[part] = enlarged[0]
        notes.update([found.note] if found.note else [])
    return maps


def measures(maps: Tensor, masks: Tensor) -> dict[str, Any]:
    """IoU under the node's own threshold and the best one, pixel AP, pointing accuracy; intervals over pictures."""
    truth = masks > 0.5
    own = iou(mask_of(maps[None], MaskSettings(), scale=8.0) > 0.5, truth)
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    scaled = (maps - low) / (high - low).clamp_min(1e-12)
    thresholds = torch.linspace(0.05, 0.95, 37)
    at = torch.stack([iou(scaled > threshold, truth) for threshold in thresholds])
    best = int(at.mean(1).argmax())
    precision = torch.tensor([average_precision(*pair) for pair in zip(maps, truth, strict=True)])
    pointing = truth.flatten(1).gather(1, maps.flatten(1).argmax(1, keepdim=True))[:, 0].float()
    columns = {"IoU own": own, "IoU best": at[best], "AP": precision, "pointing": pointing}
    told = {name: described(values) for name, values in columns.items()}
    return told | {"threshold": round(float(thresholds[best]), 3)}


def iou(found: Tensor, truth: Tensor) -> Tensor:
    return (found & truth).sum((1, 2)) / (found | truth).sum((1, 2)).clamp_min(1)


def average_precision(scores: Tensor, truth: Tensor) -> float:
    """Area under the precision-recall curve of one picture's pixels."""
    hits = truth.flatten()[scores.flatten().argsort(descending=True)].double()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    return float((precision * hits).sum() / hits.sum().clamp_min(1))


def described(values: Tensor) -> dict[str, float]:
    low, high = interval(values.float(), torch.arange(len(values)))
    return {"mean": round(float(values.float().mean()), 4), "low": round(low, 4), "high": round(high, 4)}


def gain(found: dict[str, Any]) -> dict[str, Any]:
    """The best row against DAAM's, in each one's IoU under its better threshold; the offset rows do not compete."""
    scores = {
        name: max(row["all levels"][kind]["mean"] for kind in ("IoU own", "IoU best"))
        for name, row in found.items()
        if "early" not in name
    }
    if not scores:
        return {}
    best = max(scores, key=scores.get)
    gains = {
        told: round(scores[best] - scores[rival], 4)
        for told, rival in (("gain", DAAM), ("gain on equal terms", EQUAL))
        if rival in scores
    }
    return {"best": best, "IoU": scores[best], **gains}


# cost ----------------------------------------------------------------------------------------------------------------


def costs(demo: Demo, case: Case, rounds: int = 5) -> dict[str, Any]:
    """Time in conditional forwards and peak memory in plain guided steps, one picture; and the naive Jacobian's."""
    against = case.subjects[0][1]
    subject = replace(against, surroundings=())
    prompts = {"c_crossattn": subject.text[:1], "y": torch.zeros(1, demo.model.model.adm_channels)}
    x = torch.randn(1, *case.latents[LEVELS[0]].shape[1:], generator=torch.Generator().manual_seed(0))
    one = prediction_of(demo, x, prompts)
    two = prediction_of(demo, torch.cat((x, x)), {name: torch.cat((value, value)) for name, value in prompts.items()})
    work: dict[str, Callable[[], Any]] = {
        "forward": lambda: one.predict(one.options),
        "step": lambda: two.predict(two.options),
    }
    ways = {method: (subject, AttributionSettings(method)) for method in (*METHODS, OUTPUT)}
    ways["the nodes' defaults, against the place"] = against, NODE
    for name, (who, settings) in ways.items():
        layers = chosen_layers(demo.model, settings)
        work[name] = functools.partial(attributed, demo, x, prompts, one.base, who, layers, settings)
    seconds = {name: [] for name in work}
    for _ in range(rounds):
        for name, do in work.items():
            seconds[name].append(timed(do))
    times = {name: statistics.median(values) for name, values in seconds.items()}
    weights = sum(p.numel() * p.element_size() for p in demo.model.model.diffusion_model.parameters())
    peaks = {name: peak(do) for name, do in work.items()}
    return {
        "forwards": {name: round(times[name] / times["forward"], 3) for name in ways},
        "memory against a guided step": {
            name: round((weights + peaks[name]) / (weights + peaks["step"]), 3) for name in ways
        },
        "the same without weights": {name: round(peaks[name] / peaks["step"], 3) for name in ways},
        "naive Jacobian": naive(demo, one, subject, times),
    }


def attributed(
    demo: Demo,
    x: Tensor,
    prompts: dict[str, Tensor],
    known: Tensor,
    subject: Subject,
    layers: Layers,
    settings: AttributionSettings,
) -> Result:
    """What one window of a run asks for besides the step that the sampler makes anyway."""
    return attribute(prediction_of(demo, x, prompts, known), subject, layers, settings)


def prediction_of(demo: Demo, x: Tensor, prompts: dict[str, Tensor], known: Tensor | None = None) -> Prediction:
    """The demo UNet at sigma 2, outside any sampler."""
    base = demo.model.model
    base.current_patcher = demo.model
    sigma = torch.full((len(x),), 2.0)
    options = {"cond_or_uncond": [0], "uuids": ["it"], "sigmas": sigma}

    def predict(options: dict[str, Any]) -> Tensor:
        return base.apply_model(2 * x, sigma, transformer_options=options, **prompts)

    tokens = prompts["c_crossattn"].shape[1]
    return Prediction(
        predict, options, known, 2 * x, sigma, {"it": tokens}, base.get_dtype(), architecture_of(demo.model)
    )


def naive(demo: Demo, prediction: Prediction, subject: Subject, times: dict[str, float]) -> dict[str, Any]:
    """One backward pass for every output element, as the official code does: timed on some, told for all."""
    settings = AttributionSettings("grad_sam")
    layers = chosen_layers(demo.model, settings)
    outputs = prediction.x.numel()
    unit = torch.eye(outputs)[:NAIVE].reshape(-1, *prediction.x.shape)
    question = Question(prediction, subject.phrases, layers, settings, Propagation(prediction, layers, 0))
    seconds = timed(lambda: GradSAM().over(question, unit))
    return {
        "backward passes": outputs,
        "timed": NAIVE,
        "times grad_sam's time": round(seconds * outputs / NAIVE / times["grad_sam"], 1),
    }


def timed(do: Callable[[], Any]) -> float:
    """Seconds of processor time, so that other work on the machine does not count; of the clock on an accelerator."""
    on_gpu = torch.cuda.is_available()
    clock = time.perf_counter if on_gpu else time.process_time
    start = clock()
    do()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start


def peak(do: Callable[[], Any]) -> int:
    """The most bytes that were allocated at once while it ran, beyond what was there before."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        do()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        do()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(changes.cumsum(0).amax())


if __name__ == "__main__":
    main()
