"""Suggest Style Amount against a fine sweep: is the amount that six cheap runs suggest as good as the best there is?

References show one subject by a hand that the model knows. Prompts name another subject before another place, and no
style. The sweep paints them at 14 amounts in `steps` steps, and the judge looks: *style* is the part of the style
distance to the reference that is gone, *content* how sure the judge is of the prompt's subject, both against the run
without style; *balance* is their geometric mean. The suggestion comes of other runs, of `cheap` steps at the node's own
amounts, through the node's own functions. *share of the best*: balance at an amount, over the sweep's best; *tries*:
the mean of that over the sweep, what one gets by choosing blindly.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.harness import PROFILES, Demo, Painted, Paintings, described
from conditional_balance.engine.gates import RankedGate
from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.engine.profile_file import load
from conditional_balance.engine.suggesting import Tries, suggested
from conditional_balance.nodes.suggest import contents, styles
from conditional_balance.runtime.inject.style import StyleInjection, StyleSettings, inject_style
from conditional_balance.runtime.profile.likeness import style_layers
from demo import models
from demo.judge import style_distance
from demo.world import scenes
from demo.world.scenes import Specs
from demo.world.sets import KNOWN_HANDS
from demo.world.subjects import WELL_DRAWN

PROFILE = PROFILES / "demo.style.safetensors"
SWEEP = (0.0, 0.059, 0.118, 0.176, 0.235, 0.294, 0.353, 0.412, 0.471, 0.529, 0.647, 0.765, 0.882, 1.0)
CHEAP = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75)
FIXED = 0.43
"""The default of Style from Picture."""


class Job(NamedTuple):
    index: int  # which reference; also the seed
    amount: float
    steps: int

    @property
    def name(self) -> str:
        return f"{self.index:03} {self.amount:g} {self.steps}"


def main() -> None:
    chosen = harness.options(__doc__, references=16, prompts=3, steps=12, cheap=8, weights=models.WEIGHTS)
    torch.set_num_threads(1)
    files = (*harness.weights_of(chosen.weights), PROFILE)
    kept = Paintings("suggest", *files, " ".join(WELL_DRAWN), f"{chosen.prompts} {chosen.seed}")
    share_objects(Demo(weights=chosen.weights), load(PROFILE), chosen, kept)
    rows = []
    for index in range(chosen.references):
        rows.append(row(index))
        print(f"{index + 1} of {chosen.references}: {rows[-1]}", flush=True)
    harness.report(summarised(rows, chosen), chosen)


def row(index: int) -> dict[str, float]:
    """What one reference's sweep, its cheap runs and a fixed amount come to."""
    swept = balance_of_sweep(index)
    amount = suggestion(index)
    best = max(swept)
    return {
        "suggested": amount,
        "best": SWEEP[swept.index(best)],
        "share of the best": float(np.interp(amount, SWEEP, swept)) / best,
        f"share at {FIXED}": float(np.interp(FIXED, SWEEP, swept)) / best,
        "tries": float(np.mean(swept[1:])) / best,
    }


def balance_of_sweep(index: int) -> list[float]:
    """The judge's balance at every amount of the sweep."""
    reference, wanted = pair(index)
    manner = DEMO.judge.style(reference.picture)
    distances, sure = [], []
    for amount in SWEEP:
        pictures = DEMO.decode(painted(Job(index, amount, CHOSEN.steps)))
        distances.append(float(style_distance(DEMO.judge.style(pictures), manner).mean()))
        sure.append(float(harness.as_prompted(harness.subjects_seen(DEMO.judge, pictures, wanted), wanted)[1].mean()))
    style, content = 1 - np.array(distances) / distances[0], np.array(sure) / sure[0]
    return np.sqrt(style.clip(0, 1) * content.clip(0, 1)).tolist()


def suggestion(index: int) -> float:
    """The amount that the node suggests of the cheap runs."""
    reference, _ = pair(index)
    latents = [DEMO.encode(DEMO.decode(painted(Job(index, amount, CHOSEN.cheap)))) for amount in CHEAP]
    given = DEMO.model, DEMO.conditioning([""]), DEMO.encode(reference.picture), latents, style_layers(PROFILED)
    return suggested(Tries(CHEAP, styles(*given), contents(latents)))


def summarised(rows: Sequence[dict[str, float]], chosen: Any) -> dict[str, Any]:
    groups = torch.arange(len(rows))
    columns = {name: torch.tensor([each[name] for each in rows]) for name in rows[0]}
    within = (columns["share of the best"] >= 0.9).float()
    return {
        "references": chosen.references,
        "prompts": chosen.prompts,
        "steps": chosen.steps,
        "cheap": chosen.cheap,
        "within 10 % of the best": described(within, groups),
        **{name: described(values, groups) for name, values in columns.items()},
        "worst share": round(float(columns["share of the best"].min()), 4),
        "rows": [{name: round(value, 3) for name, value in each.items()} for each in rows],
    }


def share_objects(demo: Demo, profile: SensitivityProfile, chosen: Any, kept: Paintings) -> None:
    global DEMO, PROFILED, CHOSEN, KEPT
    DEMO, PROFILED, CHOSEN, KEPT = demo, profile, chosen, kept
    torch.set_grad_enabled(False)


@lru_cache(4)
def pair(index: int) -> tuple[Painted, Specs]:
    """A reference of one subject, and the scenes that are painted in its style."""
    dice = torch.Generator().manual_seed(1000 * (CHOSEN.seed + 1) + index)
    hand = KNOWN_HANDS[index % len(KNOWN_HANDS)]
    specs = scenes.random_specs(1, dice, (hand,), WELL_DRAWN, alone=1.0)
    reference = harness.painted_reference(DEMO, specs, index, CHOSEN.steps)
    return reference, harness.scenes_beside(specs, CHOSEN.prompts, dice, (1.0,))


def painted(job: Job) -> Tensor:
    """Latents of one reference's scenes at one amount."""

    def paint() -> Tensor:
        reference, wanted = pair(job.index)
        prompts = harness.captions_without_style(wanted)
        return DEMO.sample(styled(job, reference), prompts, job.index, job.steps)

    return KEPT.of(job.name, paint)


def styled(job: Job, reference: Painted) -> Any:
    if job.amount == 0:
        return DEMO.model
    gate = RankedGate(PROFILED, job.amount)
    return inject_style(DEMO.model, StyleInjection(gate, reference.source, StyleSettings(1.0)))


if __name__ == "__main__":
    main()
