"""Measuring many pictures: memory and speed against their number, and one loaded model against two on Ray.

Pictures are drawn when they are looked at, in eight media of recurring places. Every size runs in a process of its
own, whose peak memory is read at its end.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks._command import command_line, keep
from benchmarks.harness import Demo
from conditional_balance.engine.sampling import MOST_PAIRS
from conditional_balance.runtime.profile.clusters import Cluster, Clusters
from conditional_balance.runtime.profile.parts import Parts
from conditional_balance.runtime.profile.profiling import Measurement, Settings, profile_model
from demo.world.media import PARAMETERS, laid
from demo.world.scenes import grounds, random_specs
from devtools.bootstrap import ROOT

STYLES = 8
SIDE = 128


@dataclass(frozen=True)
class DrawnPicture:
    """A place in a medium, drawn when it is asked for: what it shows does not matter here."""

    style: int
    scene: int
    aspect: float = 1.0

    def fitted(self, width: int, height: int) -> torch.Tensor:
        scene = random_specs(1, torch.Generator().manual_seed(self.scene))
        parameters = torch.rand(1, len(PARAMETERS), generator=torch.Generator().manual_seed(self.style))
        scene = replace(scene, medium=torch.tensor([self.style]), style=parameters)
        return laid(grounds(scene, SIDE), scene.medium, scene.style)[0].movedim(0, -1)


def clusters(pictures: int) -> Clusters:
    scenes = range(pictures // STYLES)
    names = tuple(f"scene {scene}" for scene in scenes)
    return tuple(
        Cluster(f"style {style}", tuple(DrawnPicture(style, scene) for scene in scenes), names)
        for style in range(STYLES)
    )


def main() -> None:
    parser = command_line(__doc__, levels=12, actors=0, series=96)
    parser.add_argument("--sizes", type=int, nargs="*", default=[500, 5000], help="pictures of each run")
    options = parser.parse_args()
    figures: dict[str, Any] = {"cores": os.cpu_count(), "levels": options.levels}
    if options.series:
        figures["parts"] = part_costs(options.series, options.levels)
        print(figures["parts"], flush=True)
    for size in options.sizes:
        with multiprocessing.get_context("fork").Pool(1) as process:
            figures[f"{size} pictures"] = found = process.apply(measured, (size, options.levels))
        print(f"{size} pictures: {found}", flush=True)
    if options.actors:
        figures["ray"] = {f"{count} actors": on_ray(count, options) for count in range(1, options.actors + 1)}
    print(keep(figures, options))


def part_costs(pictures: int, levels: int) -> dict[str, Any]:
    """Processor seconds of a moments task and a sums task, and the hours that 5,000 pictures then take on n machines.

    Wall-clock time would count whatever else a machine does; a task uses one core.
    """
    torch.set_num_threads(1)
    started = time.process_time()
    demo = Demo()
    settings = Settings("style", levels, ("q", "k"), "jensen_shannon", 0, "1:1", SIDE)
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


def makespan(cost: dict[str, float], levels: int, machines: int, pictures: int = 5000) -> float:
    """Seconds until the last machine is done, when tasks are as large as `Parts` makes them."""
    size = 2 * MOST_PAIRS // pictures
    groups, chunk = -(-pictures // size), 28  # of 100 pictures, in four chunks
    moments = cost["moments_s_a_picture_and_level"] * levels * chunk
    sums = cost["sums_s_a_pair_and_level"] * levels * size * (size - 1) / 2
    tasks = groups * -(-size // chunk)
    return round(cost["start_s"] + -(-tasks // machines) * moments + -(-groups // machines) * sums, 1)


def measured(pictures: int, levels: int) -> dict[str, Any]:
    """Seconds and memory of one run, in this process, which is made for it."""
    demo, series = Demo(), clusters(pictures)
    settings = Settings("style", levels, ("q", "k"), "jensen_shannon", 0, "1:1", SIDE)
    before, started = _peak_mb(), time.perf_counter()
    with torch.inference_mode():
        profile = profile_model(demo.model, series, demo.vae, demo.conditioning(["a picture"]), None, settings)
    seconds = time.perf_counter() - started
    return {
        "pictures": sum(len(cluster.images) for cluster in series),
        "pairs": profile.provenance.get("pairs", "all"),
        "seconds": round(seconds, 1),
        "pictures x levels a second": round(pictures * levels / seconds, 1),
        "peak MB above the loaded model": round(_peak_mb() - before),
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def on_ray(count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds between the first and the last finished task of a run, so that starting and loading are left out."""
    with tempfile.TemporaryDirectory() as scratch:
        for cluster in clusters(options.series):
            for picture, name in zip(cluster.images, cluster.subjects, strict=True):
                path = Path(scratch) / "pictures" / cluster.name / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = (255 * picture.fitted(SIDE, SIDE).clamp(0, 1)).round().byte().numpy()
                Image.fromarray(pixels).save(path)
        script = [ROOT / "devtools" / "run.py", ROOT / "devtools" / "profile.py", "demo", Path(scratch) / "pictures"]
        more = [Path(scratch) / "out.safetensors", "--size", SIDE, "--noise-levels", options.levels, "--ray"]
        command = [str(part) for part in (sys.executable, *script, *more, "--actors", count)]
        told: list[tuple[float, int]] = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
            for line in running.stdout:
                if found := re.match(r"  (\d+) of \d+ tasks", line):
                    told.append((time.perf_counter(), int(found[1])))
    (first, some), (last, every) = told[0], told[-1]
    return {"seconds": round(last - first, 1), "tasks": every - some, "tasks a second": (every - some) / (last - first)}


if __name__ == "__main__":
    main()
