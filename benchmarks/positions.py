"""Where should a reference's tokens stand in a model with rotary positions? Three cures and two rules of sharing.

On the demo transformer and the scenes of `balance`, with the layers ranked first and with all. *layout copied* is how
alike picture and reference are where their scenes have nothing in common: the correlation of their lightness on 6 x 6
patches, less that of the same scene painted without the reference. A cure is right if it brings the style and copies no
layout.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import balance, harness
from benchmarks._workers import forked, gathered
from benchmarks.balance import ALL, MEASURES, NONE, Job
from benchmarks.harness import Demo
from conditional_balance.engine.style import BOTH, EITHER, KEEP, SHIFT, UNTWIST
from conditional_balance.runtime.inject.style import StyleInjection, StyleSettings, inject_style
from demo import models

KNOWN = "known hands"
GATES = (("ranked", 0.2), ("ranked", 0.43), (ALL, 1.0))
SETTINGS: Mapping[str, StyleSettings] = MappingProxyType(
    {
        f"{position}, {told}": StyleSettings(1.0, position=position, sharing=sharing)
        for position, (told, sharing) in itertools.product(
            (KEEP, SHIFT, UNTWIST), (("q or k", EITHER), ("q and k", BOTH))
        )
    }
)
COLUMNS = (*MEASURES, "layout copied")


def main() -> None:
    chosen = harness.options(
        __doc__, references=16, prompts=1, steps=12, cfg=harness.CFG, workers=2, weights=models.WEIGHTS,
        content=harness.WELL,
    )  # fmt: skip
    chosen.model = "transformer"  # the UNet has no rotary positions
    torch.set_num_threads(1)
    demo = Demo(cfg=chosen.cfg, weights=chosen.weights, paints=chosen.model)
    shared = demo, None, harness.profile_of(chosen.model, chosen.weights), chosen, *balance.kept(chosen)
    ways = [(NONE, (NONE, 0.0)), *itertools.product(SETTINGS, GATES)]
    jobs = [(setting, gate, index) for index in range(chosen.references) for setting, gate in ways]
    with forked(chosen.workers, balance.share_objects, *shared) as pool:
        rows = gathered(pool, measured, jobs, lambda job: told(*job[:2]), every=len(ways))
    results = {
        "references": chosen.references,
        "steps": chosen.steps,
        "cfg": chosen.cfg,
        "ways": {way: harness.means(torch.stack(parts), COLUMNS) for way, parts in rows.items()},
    }
    harness.report(results, chosen)


def told(setting: str, gate: tuple[str, float]) -> str:
    policy, amount = gate
    return NONE if setting == NONE else f"{setting}; {policy if policy == ALL else f'{policy} {amount:g}'}"


def measured(job: tuple[str, tuple[str, float], int]) -> Tensor:
    """COLUMNS [scenes, COLUMNS] of one reference under one setting and gate."""
    setting, (policy, amount), index = job
    none = Job(KNOWN, NONE, 0.0, index)
    asked = none if setting == NONE else Job(KNOWN, f"{setting} {policy}", amount, index)
    plain = balance.DEMO.decode(balance.painted(none))
    pictures = plain if asked == none else balance.DEMO.decode(balance.PAINTED.of(asked.name, lambda: painted(job)))
    reference = balance.pair(KNOWN, index)[0].picture
    copied = alike(pictures, reference) - alike(plain, reference)
    return torch.cat([balance.measures(asked, pictures), copied[:, None]], 1)


def painted(job: tuple[str, tuple[str, float], int]) -> Tensor:
    setting, (policy, amount), index = job
    reference, wanted = balance.pair(KNOWN, index)
    gate = balance.gate_of(Job(KNOWN, policy, amount, index))
    model = inject_style(balance.DEMO.model, StyleInjection(gate, reference.source, SETTINGS[setting]))
    prompts = harness.captions_without_style(wanted)
    return balance.DEMO.sample(model, prompts, index, balance.CHOSEN.steps)


def alike(pictures: Tensor, reference: Tensor) -> Tensor:
    """Correlation [N] of the lightness of pictures [N, 3, H, W] with that of a reference [1, 3, H, W], on patches."""
    light = functional.adaptive_avg_pool2d(torch.cat([reference, pictures]).mean(1), 6).flatten(1)
    light = functional.normalize(light - light.mean(1, keepdim=True), dim=1)
    return light[1:] @ light[0]


if __name__ == "__main__":
    main()
