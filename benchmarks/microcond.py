"""Sizes by noise level: that nothing changes when nothing is asked, what the schedule costs, how far embeddings move.

What it does to pictures cannot be measured on the demo model: it was trained on one size, and its weights for the six
numbers are zero. *moved*: how far the embedding of the original size has come on its way from 1024 to 2048, by percent
of the schedule. *off*: how far the mixture of two sizes' embeddings lies from that of the nearest size that there is,
in norms of an embedding.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import Timestep
from torch import Tensor

from benchmarks import harness
from benchmarks import style as costs
from benchmarks.harness import Demo
from conditional_balance.engine.conditioning import between, between_sizes, power_cosine
from conditional_balance.runtime.inject.metadata import Change, Metadata, schedule_metadata
from demo import models

EARLY, LATE = 1024.0, 2048.0
PERCENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
CURVES = (0.0, 1.0, 3.0)
ASKED = Metadata(original=Change(2.0, 3.0), top=Change(200.0, 1.0), left=Change(200.0, 1.0))


def main() -> None:
    chosen = harness.options(__doc__, size=32, rounds=7, weights=models.WEIGHTS)
    torch.set_num_threads(1)
    harness.report({"demo model": unheard(chosen), "moved": movement(), **prices(chosen)}, chosen)


def unheard(chosen: argparse.Namespace) -> dict[str, Any]:
    """That the demo model knows no sizes: its weights, and its pictures under a schedule."""
    demo = Demo(weights=chosen.weights)
    network = demo.model.model.diffusion_model
    sizes = network.label_emb[0][0].weight[:, -6 * 256 :]
    prompt = ["a fox in the forest, ink drawing"]
    plain, scheduled = (demo.sample(each, prompt, 1, 4) for each in (demo.model, schedule_metadata(demo.model, ASKED)))
    return {"largest weight for sizes": float(sizes.abs().max()), "same bits": bool(torch.equal(plain, scheduled))}


def movement() -> dict[str, Any]:
    """Of the embedding of the original size, over the schedule."""
    embed = Timestep(256)
    known = embed(torch.arange(1.0, 8193.0))
    found: dict[str, Any] = {}
    for how in ("numbers", "embeddings"):
        for power in CURVES:
            at = [embedding(embed, how, power_cosine(percent, power)) for percent in PERCENTS]
            found[f"{how}, curve {power:g}"] = {
                "moved": [round(float(x.sub(embed(_one(EARLY))).norm() / way(embed)), 3) for x in at],
                "off": [round(float((known - x).norm(dim=1).min() / x.norm()), 3) for x in at],
            }
    return {"percents": PERCENTS, "ways": found}


def embedding(embed: Timestep, how: str, gamma: float) -> Tensor:
    """As the node makes it."""
    if how == "numbers":
        return embed(between_sizes(_one(EARLY), _one(LATE), gamma).round())
    return between(embed(_one(EARLY)), embed(_one(LATE)), gamma)


def way(embed: Timestep) -> Tensor:
    return (embed(_one(LATE)) - embed(_one(EARLY))).norm()


def _one(value: float) -> Tensor:
    return torch.tensor([value])


def prices(chosen: argparse.Namespace) -> dict[str, Any]:
    """A run under a schedule over a plain one on a UNet with SDXL's 70 layers at a reduced width, one thread."""
    bench = costs.Bench(costs.Setting(size=chosen.size), torch.device("cpu"))
    with torch.inference_mode():
        ways = {"plain": bench.model, "constant": schedule_metadata(bench.model, Metadata())}
        ways["scheduled"] = schedule_metadata(bench.model, ASKED)
        made = {name: bench.run(model, 1) for name, model in ways.items()}
        runs = {name: lambda model=model: bench.run(model, 1) for name, model in ways.items()}
        times = costs.in_turns(runs, bench.clock, chosen.rounds)
    return {
        "constant, same bits": bool(torch.equal(made["plain"], made["constant"])),
        "scheduled, same bits": bool(torch.equal(made["plain"], made["scheduled"])),
        "cost over a plain run": {name: round(costs.ratio(times[name], times["plain"]), 3) for name in runs},
        "seconds": {name: round(statistics.median(each), 3) for name, each in times.items()},
    }


if __name__ == "__main__":
    main()
