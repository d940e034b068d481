"""What does each layer do? One call a layer against full runs with that layer alone, and against the JSD ranking.

Truth: for every layer a full run of the sampler with style let in there alone, without cfg and without words for the
style: how much nearer the pictures come to the reference's style, and how far their content moves (what the judge sees
of subject and place). *greedy* goes on from the best layer and adds the best beside it, round after round. *chosen*:
the layers that each ranking puts first, opened together. References are painted by the model under their own caption.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks._workers import forked, outcomes
from benchmarks.harness import Demo, Painted, Paintings, described
from conditional_balance.engine.agreement import spearman
from conditional_balance.engine.gates import WrittenGate
from conditional_balance.engine.grammar import parse
from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.runtime.inject.style import StyleInjection, inject_style
from conditional_balance.runtime.profile.effect import measure_layers
from demo import models
from demo.judge import style_distance
from demo.world import scenes
from demo.world.scenes import Specs
from demo.world.sets import KNOWN_HANDS
from demo.world.subjects import WELL_DRAWN

NONE, ALL = "none", "all"
SHARES = (0.2, 0.43)  # of the layers, opened together
RANKINGS = ("JSD ranking", "measured gain", "measured gain minus loss", "true gain", "at random")


class Case(NamedTuple):
    """A reference and the scenes that are painted beside it, with their prompts."""

    reference: Painted
    wanted: Specs
    prompts: list[str]


class Seen(NamedTuple):
    """Of one run's pictures: mean distance to the reference's style, and what is seen [B, subjects + places]."""

    distance: float
    content: Tensor


def main() -> None:
    chosen = harness.options(
        __doc__, references=6, prompts=2, steps=8, levels=4, rounds=2, workers=2, weights=models.WEIGHTS, model="unet"
    )
    torch.set_num_threads(1)
    profile = harness.profile_of(chosen.model, chosen.weights)
    shared = Demo(cfg=1.0, weights=chosen.weights, paints=chosen.model), profile, chosen, paintings(chosen)
    everyone = range(chosen.references)
    with forked(chosen.workers, share_objects, *shared) as pool:
        rounds = list(outcomes(pool, look, everyone, every=1))
        greedy = added_greedily(pool, profile, rounds, chosen)
        jobs = [(index, layers) for index in everyone for layers in picks(profile, rounds, index).values()]
        seen = pool.starmap(opened, jobs)
    found = summarised(rounds, profile, chosen)
    names = list(picks(profile, rounds, 0))
    table = torch.tensor([effect(rounds[index], each) for (index, _), each in zip(jobs, seen, strict=True)])
    table = table.reshape(chosen.references, len(names), 2)
    found["chosen"] = {name: told(table[:, place]) for place, name in enumerate(names)}
    harness.report(found | {"greedy": greedy}, chosen)


def paintings(chosen: Any) -> Paintings:
    files = harness.weights_of(chosen.weights, chosen.model)
    return Paintings("layers", *files, f"{WELL_DRAWN} {chosen.prompts} {chosen.steps}")


def share_objects(demo: Demo, profile: SensitivityProfile, chosen: Any, kept: Paintings) -> None:
    global DEMO, PROFILED, CHOSEN, KEPT
    DEMO, PROFILED, CHOSEN, KEPT = demo, profile, chosen, kept


@lru_cache(2)
def case_of(index: int) -> Case:
    """A reference by a known hand, and scenes of another subject before another place."""
    dice = torch.Generator().manual_seed(5000 + index)
    specs = scenes.random_specs(1, dice, (KNOWN_HANDS[index % len(KNOWN_HANDS)],), WELL_DRAWN, alone=1.0)
    reference = harness.painted_reference(DEMO, specs, index, 12)
    wanted = harness.scenes_beside(specs, CHOSEN.prompts, dice, (1.0,))
    return Case(reference, wanted, harness.captions_without_style(wanted))


def painted(index: int, layers: str) -> Tensor:
    """Latents of one reference's scenes with style let in at the named layers."""

    def paint() -> Tensor:
        case = case_of(index)
        model = DEMO.model
        if layers != NONE:
            model = inject_style(model, StyleInjection(WrittenGate(parse(layers)), case.reference.source))
        return DEMO.sample(model, case.prompts, index, CHOSEN.steps)

    return KEPT.of(f"{index:03} {layers}", paint)


def opened(index: int, layers: str) -> Seen:
    pictures, judge = DEMO.decode(painted(index, layers)), DEMO.judge
    target = judge.style(case_of(index).reference.picture)
    return Seen(
        float(style_distance(judge.style(pictures), target).mean()),
        torch.cat([judge.subjects(pictures), judge.places(pictures)], 1),
    )


def look(index: int) -> dict[str, Any]:
    """True and measured effect of every layer for one reference; processor seconds, as the machine does other work."""
    case = case_of(index)
    plain, names = opened(index, NONE), [str(layer) for layer in PROFILED.layers]
    seen = [opened(index, name) for name in names]
    started = time.process_time()
    with torch.inference_mode():
        found = measure_layers(
            DEMO.model,
            case.reference.source,
            painted(index, NONE),
            DEMO.conditioning(case.prompts),
            CHOSEN.levels,
            index,
        )
    measured_s = time.process_time() - started
    order = found.aligned(PROFILED.layers)
    return {
        "plain": plain,
        "gain": torch.tensor([plain.distance - each.distance for each in seen]),
        "loss": torch.tensor([moved(plain, each) for each in seen]),
        "measured gain": (1 - found.scores[0].mean(0))[order],
        "measured loss": (1 - found.content.score[0].mean(0))[order],
        "measured_s": measured_s,
        "run_s": run_seconds(index) if index == 0 else 0.0,
    }


def run_seconds(index: int) -> float:
    """Processor seconds of one full run with one layer open."""
    case = case_of(index)
    model = inject_style(
        DEMO.model, StyleInjection(WrittenGate(parse(str(PROFILED.layers[-1]))), case.reference.source)
    )
    started = time.process_time()
    DEMO.decode(DEMO.sample(model, case.prompts, index, CHOSEN.steps))
    return time.process_time() - started


def moved(plain: Seen, other: Seen) -> float:
    """How far content moves, in log probabilities, so that a doubt counts as well as an error."""
    return float((other.content - plain.content).norm(dim=-1).mean())


def effect(one: dict[str, Any], seen: Seen) -> tuple[float, float]:
    """Gain in style and loss of content beside the run without any layer."""
    return one["plain"].distance - seen.distance, moved(one["plain"], seen)


def told(effects: Tensor) -> dict[str, Any]:
    """Of effects [references, 2]."""
    groups = torch.arange(len(effects))
    return {name: described(effects[:, place], groups) for place, name in enumerate(("gain", "loss"))}


def picks(profile: SensitivityProfile, rounds: list[dict[str, Any]], index: int) -> dict[str, str]:
    """For one reference the layers that each ranking puts first, by name; true gain is that of the other references."""
    one, others = rounds[index], [each["gain"] for place, each in enumerate(rounds) if place != index]
    gain, loss = (one[name] / one[name].abs().max() for name in ("measured gain", "measured loss"))
    dice = torch.Generator().manual_seed(index)
    scores = (
        -profile.scores.mean((0, 1)), gain, gain - loss, torch.stack(others or [one["gain"]]).mean(0),
        torch.rand(len(gain), generator=dice),
    )  # fmt: skip
    found = {ALL: "all"}
    for name, score in zip(RANKINGS, scores, strict=True):
        for share in SHARES:
            best = score.argsort(descending=True)[: int(share * len(score))]
            found[f"{name} {share:g}"] = together([profile.layers[place] for place in sorted(best.tolist())])
    return found


def together(layers: Sequence[Any]) -> str:
    return ", ".join(map(str, layers))


def added_greedily(
    pool: Any, profile: SensitivityProfile, rounds: list[dict[str, Any]], chosen: Any
) -> list[dict[str, Any]]:
    """Round after round the layer that brings most style beside those before, a mean over references."""
    kept, found = list[Any](), list[dict[str, Any]]()
    for _ in range(chosen.rounds):
        free = [layer for layer in profile.layers if layer not in kept]
        jobs = [(index, together([*kept, layer])) for layer in free for index in range(chosen.references)]
        seen = pool.starmap(opened, jobs)
        effects = torch.tensor([effect(rounds[index], each) for (index, _), each in zip(jobs, seen, strict=True)])
        effects = effects.reshape(len(free), chosen.references, 2)
        best = int(effects[..., 0].mean(1).argmax())
        kept.append(free[best])
        found.append({"layer": str(free[best])} | told(effects[best]))
        print(f"greedy: {together(kept)}", flush=True)
    return found


def summarised(rounds: list[dict[str, Any]], profile: SensitivityProfile, chosen: Any) -> dict[str, Any]:
    """Rank correlations over layers, of the means over references and of each reference; and what both cost."""
    ranked = -profile.scores.mean((0, 1))
    content = -profile.content.score.mean((0, 1)) if profile.content else ranked
    true, loss, gain, lost = (
        torch.stack([one[name].double() for one in rounds])
        for name in ("gain", "loss", "measured gain", "measured loss")
    )
    pairs = {
        "measured gain against true gain": (gain, true),
        "measured loss against true loss": (lost, loss),
        "JSD ranking against true gain": (ranked.expand_as(true), true),
        "JSD ranking against true loss": (ranked.expand_as(loss), loss),
        "JSD content ranking against true loss": (content.expand_as(loss), loss),
        "JSD ranking against measured gain": (ranked.expand_as(gain), gain),
        "true gain against true loss": (true, loss),
    }
    layers = [str(layer) for layer in profile.layers]
    cost = {"measured_s": statistics.mean(one["measured_s"] for one in rounds), "run_s": rounds[0]["run_s"]}
    greedy = cost["run_s"] * len(layers) * (len(layers) + 1) / 2  # n + (n - 1) + ... runs
    return {
        "references": len(rounds), "prompts": chosen.prompts, "steps": chosen.steps, "layers": layers,
        "without any": statistics.mean(one["plain"].distance for one in rounds),
        "by layer": {layer: told(torch.stack([true[:, n], loss[:, n]], 1)) for n, layer in enumerate(layers)},
        "measured gain": gain.mean(0).tolist(), "measured loss": lost.mean(0).tolist(),
        "agreement": {name: correlated(*both) for name, both in pairs.items()},
        "halves agree": {"true gain": halves(true), "true loss": halves(loss)},
        "seconds": cost | {"greedy_s": greedy}, "cost_of_greedy": cost["measured_s"] / greedy,
    }  # fmt: skip


def correlated(one: Tensor, other: Tensor) -> dict[str, Any]:
    """Spearman over layers, of means over references [R, L] with a 95 % interval over references, and of each."""
    dice = torch.Generator().manual_seed(0)
    draws = [torch.randint(len(one), (len(one),), generator=dice) for _ in range(1000)]
    values = torch.tensor([spearman(one[rows].mean(0), other[rows].mean(0)) for rows in draws])
    low, high = values.quantile(torch.tensor([0.025, 0.975])).tolist()
    found = {"mean": spearman(one.mean(0), other.mean(0)), "low": low, "high": high}
    each = [spearman(*both) for both in zip(one, other, strict=True)]
    return {name: round(value, 3) for name, value in found.items()} | {"each": [round(value, 3) for value in each]}


def halves(values: Tensor) -> float:
    """Spearman of the layers' means over one half of the references with those over the other: the truth's own."""
    if len(values) < 2:
        return float("nan")
    return round(spearman(values[::2].mean(0), values[1::2].mean(0)), 3)


if __name__ == "__main__":
    main()
