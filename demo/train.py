"""Train the demo models: `python dev.py train [PART ...]`; all parts in order by default.

Parts are autoencoder, decoder, judge, unet, profile, controlnet and geometry. Each trains for `--samples` pictures or
`--minutes`, whichever ends first, and writes its weights to `--out`; profile and geometry measure the shipped UNet. The
learning rate falls to zero over that span. They go on from weights that are there unless `--fresh`. On a CPU one
single-threaded process per core shares each step, which is faster than threads. Pictures are drawn by the world's own
generator, so there is no data set to fetch.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path

import torch

from demo import models
from demo.training.autoencoder import train_autoencoder, train_decoder
from demo.training.controlnet import train_controlnet
from demo.training.judge import train_judge
from demo.training.processes import default_processes, spread
from demo.training.profiles import measure_geometry, measure_profile
from demo.training.unet import train_unet


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--samples", type=float, help="pictures to train each part on")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop each part after this long")
    parser.add_argument("--batch", type=int, default=32, help="pictures per step and process; 512 suits a GPU")
    parser.add_argument("--pool", type=int, default=12_000, help="pictures drawn in advance")
    parser.add_argument("--rate", type=float, default=1e-3, help="the highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="start anew")
    parser.add_argument("--out", type=Path, default=models.WEIGHTS)
    parser.add_argument("--processes", type=int, help="processes that share each step; a CPU's cores by default")
    options = parser.parse_args(argv)
    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    options.dtype = models.fast_dtype(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    options.rank = int(os.environ.get("RANK", 0))
    options.processes = int(os.environ.get("WORLD_SIZE", 0)) or options.processes or default_processes(options.device)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part '{unknown[0]}'; choose from {', '.join(PARTS)}.")
    if options.processes > 1 and "RANK" not in os.environ:
        sys.exit(spread(options.processes))
    train(options)


def train(options: argparse.Namespace) -> None:
    torch.backends.cudnn.benchmark = True
    if options.processes > 1:
        torch.distributed.init_process_group("gloo")
    for part in options.parts or list(PARTS):
        torch.manual_seed(options.seed + 1000 * options.rank)
        PARTS[part](options)


PARTS = {
    "autoencoder": train_autoencoder,
    "decoder": train_decoder,
    "judge": train_judge,
    "unet": train_unet,
    "profile": measure_profile,
    "controlnet": train_controlnet,
    "geometry": measure_geometry,
}

if __name__ == "__main__":
    main()
