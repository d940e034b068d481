"""Measuring many pictures: memory and speed against their number, and one loaded model against two on Ray.

Pictures are drawn when they are looked at, in eight media of recurring places. Every size runs in a process of its
own, whose peak memory is read at its end. What `--json` holds already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks._command import command_line, keep
from benchmarks.harness import Demo
from conditional_balance.engine.divergence import pairwise
from conditional_balance.engine.moments import Moments
from conditional_balance.engine.sampling import MOST_PAIRS
from conditional_balance.runtime.profile.clusters import Cluster, Clusters
from conditional_balance.runtime.profile.parts import CHUNKS, Parts
from conditional_balance.runtime.profile.profiling import Measurement, Settings, profile_model
from demo.world.media import PARAMETERS, laid
from demo.world.scenes import grounds, random_specs
from devtools import profile
from devtools.profile import DEMO

STYLES = 8


@dataclass(frozen=True)
class DrawnPicture:
    """A square place in a medium, drawn when it is asked for: what it shows does not matter here."""

    style: int
    scene: int
    aspect: float = 1.0

    def fitted(self, width: int, height: int) -> torch.Tensor:
        scene = random_specs(1, torch.Generator().manual_seed(self.scene))
        parameters = torch.rand(1, len(PARAMETERS), generator=torch.Generator().manual_seed(self.style))
        scene = replace(scene, medium=torch.tensor([self.style]), style=parameters)
        return laid(grounds(scene, width), scene.medium, scene.style)[0].movedim(0, -1)


def clusters(pictures: int) -> Clusters:
    scenes = range(pictures // STYLES)
    names = tuple(f"scene {scene}" for scene in scenes)
    return tuple(
        Cluster(f"style {style}", tuple(DrawnPicture(style, scene) for scene in scenes), names)
        for style in range(STYLES)
    )


def main() -> None:
    parser = command_line(__doc__, levels=12, side=128, actors=0, series=96, rounds=3)
    parser.add_argument("--sizes", type=int, nargs="*", default=[500, 5000], help="pictures of each run")
    options = parser.parse_args()
    kept = options.json.read_text(encoding="utf-8") if options.json and options.json.exists() else "{}"
    figures: dict[str, Any] = json.loads(kept)
    figures["cores"] = os.cpu_count()
    under = f"at {options.levels} noise levels and {options.side} pixels"
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as process:
        todo: dict[str, Callable[[], Any]] = {
            f"{size} pictures {under}": partial(process.apply, measured, (size, options)) for size in options.sizes
        }
        if options.series:
            todo[f"parts {under}"] = partial(part_costs, options)
        if options.actors:
            todo[f"ray, {options.series} pictures {under}"] = partial(actors_in_turns, options)
        for name, measure in todo.items():
            if name not in figures:
                figures[name] = measure()
            print(f"{name}: {figures[name]}", flush=True)
            keep(figures, options)


def part_costs(options: argparse.Namespace) -> dict[str, Any]:
    """Processor seconds of a moments task and a sums task, and the hours that 5,000 pictures then take on n machines.

    Wall-clock time would count whatever else a machine does; a task uses one core.
    """
    torch.set_num_threads(1)
    started, pictures, levels = time.process_time(), options.series, options.levels
    demo, settings = Demo(), _settings(options)
    pairwise(Moments(torch.zeros(2, 1, 1), torch.ones(2, 1, 1)), settings.distance)  # fills the table
    with torch.inference_mode(), tempfile.TemporaryDirectory() as scratch:
        run = Measurement(demo.model, clusters(pictures), demo.vae, demo.conditioning(["a picture"]), None, settings)
        parts = Parts(run, Path(scratch), {})
        looking, summing = parts.tasks(0, "moments"), parts.tasks(0, "sums")
        begun = time.process_time()
        for task in looking:
            parts.do(task)
        looked = time.process_time()
        for task in summing:
            parts.do(task)
        summed = time.process_time()
    cost = {
        "start_s": begun - started,
        "moments_s_a_picture_and_level": (looked - begun) / (pictures * levels),
        "sums_s_a_pair_and_level": (summed - looked) / (pictures * (pictures - 1) / 2 * levels),
    }
    return cost | {"seconds_of_5000_pictures_on": {n: makespan(cost, levels, n) for n in (1, 2, 4, 8, 16, 32, 64)}}


def makespan(cost: dict[str, float], levels: int, machines: int) -> float:
    """Seconds until the last machine is done with 5000 pictures, when tasks are as large as `Parts` makes them."""
    size = 2 * MOST_PAIRS // 5000
    groups, chunk = -(-5000 // size), 28  # of 100 pictures, in four chunks, summed in four tasks
    moments = cost["moments_s_a_picture_and_level"] * levels * chunk
    sums = cost["sums_s_a_pair_and_level"] * levels * size * (size - 1) / 2 / CHUNKS
    looking, summing = groups * -(-size // chunk), groups * CHUNKS
    return round(cost["start_s"] + -(-looking // machines) * moments + -(-summing // machines) * sums, 1)


def measured(pictures: int, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and memory of one run, in this process, which is made for it."""
    demo, series = Demo(), clusters(pictures)
    before, started, busy = _peak_mb(), time.perf_counter(), time.process_time()
    given = demo.model, series, demo.vae, demo.conditioning(["a picture"]), None, _settings(options)
    with torch.inference_mode():
        found = profile_model(*given)
    return {
        "pictures": sum(len(cluster.images) for cluster in series),
        "pairs": found.provenance.get("pairs", "all"),
        "seconds": round(time.perf_counter() - started),
        "processor seconds": round(time.process_time() - busy),
        "peak MB above the loaded model": round(_peak_mb() - before),
    }


def _settings(options: argparse.Namespace) -> Settings:
    return Settings("style", options.levels, ("q", "k"), "jensen_shannon", 0, "1:1", options.side)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def actors_in_turns(options: argparse.Namespace) -> dict[str, Any]:
    """Tasks a second of one loaded model, of two, ... on Ray, in turns: whatever else the machine does meets all alike.

    All actors are started and have done a task before; starting and loading are left out.
    """
    from devtools import on_ray  # needs Ray

    rates: dict[int, list[float]] = {count: [] for count in range(1, options.actors + 1)}
    with tempfile.TemporaryDirectory() as scratch, on_ray.connected(""):
        _write_pictures(Path(scratch) / "pictures", options)
        given = [DEMO, Path(scratch) / "pictures", Path(scratch) / "out", "--size", options.side]
        given += ["--noise-levels", options.levels, "--ray", "--actors", options.actors]
        asked = vars(profile.parser().parse_args(list(map(str, given))))
        actors, parts = on_ray.lookers(asked), profile.parts_of(asked)
        _run_tasks(actors, parts)
        for _ in range(options.rounds):
            for count, found in rates.items():
                found.append(_run_tasks(actors[:count], parts))
                print(f"  {count} actors: {found[-1]:.3f} tasks a second", flush=True)
    times = {
        count: statistics.median(one / alone for one, alone in zip(found, rates[1], strict=True))
        for count, found in rates.items()
    }
    return {"tasks a second": rates, "times as fast as one": times}


def _run_tasks(actors: Sequence[Any], parts: Parts) -> float:
    """Do all tasks, afresh; returns how many a second."""
    from devtools.on_ray import Run

    for file in parts.folder.glob("*.safetensors"):
        file.unlink()
    tasks = sum(len(parts.tasks(group, kind)) for group in parts.groups for kind in ("moments", "sums"))
    started = time.perf_counter()
    Run(actors, parts, profile.Teller(parts)).until_done()
    return tasks / (time.perf_counter() - started)


def _write_pictures(folder: Path, options: argparse.Namespace) -> None:
    for cluster in clusters(options.series):
        (folder / cluster.name).mkdir(parents=True)
        for picture, name in zip(cluster.images, cluster.subjects, strict=True):
            pixels = (255 * picture.fitted(options.side, options.side).clamp(0, 1)).round().byte().numpy()
            Image.fromarray(pixels).save(folder / cluster.name / f"{name}.png")


if __name__ == "__main__":
    main()
