"""Train the demo models: `python dev.py train [PART ...]`; the painting parts in order by default.

Parts are autoencoder, unet, controlnet and transformer, and where they are named the judge, which fetches its network
and icons, and hands, the judge that names those. Each ends after its share of `--minutes` or after `--samples`
pictures, writes its weights to `--out`, and leaves a checkpoint there: the same command goes on where it was stopped
(or where `--stop` stopped it), and leaves alone what is finished. `prepare` draws the atlas and makes the folder that a
machine without network needs (see `demo/gpu.py`).
`profile` measures the UNet and the transformer in `--out`, by default those that are shipped, `geometry` the UNet.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from pathlib import Path

import torch

from demo import nets
from demo.training.autoencoder import train_autoencoder
from demo.training.controlnet import train_controlnet
from demo.training.hands import train_hands
from demo.training.judge import train_judge
from demo.training.pool import World
from demo.training.processes import default_processes, spread
from demo.training.run import finished
from demo.training.transformer import train_transformer
from demo.training.unet import train_unet
from demo.world import subjects
from demo.world.atlas import Atlas, unpack
from demo.world.words import load_vocabulary

ROOT = Path(__file__).resolve().parents[1]
PREPARED = ROOT / ".cache" / "drawn"
WEIGHTS = ROOT / "demo" / "weights"
PARTS = {
    "autoencoder": train_autoencoder,
    "unet": train_unet,
    "controlnet": train_controlnet,
    "transformer": train_transformer,
    "judge": train_judge,
    "hands": train_hands,
}
JUDGES = ("judge", "hands")  # they fetch what a machine without network has not
PAINTING = tuple(part for part in PARTS if part not in JUDGES)
ALONE = ("prepare", "profile", "geometry")  # each a command of its own
BEGUN_FROM = ("unet.safetensors", "text_encoder.safetensors")
MINUTES = {"autoencoder": 0.08, "unet": 0.55, "controlnet": 0.13, "transformer": 0.25}  # shares of the whole
# What suits a GPU, and what suits two cores.
SIZES = {
    "cuda": {"batch": 640, "pool": 100, "renew": 200, "pause": 5, "rate": 1.5e-3, "save_every": 90.0, "average": 0.98},
    "cpu": {"batch": 32, "pool": 400, "renew": 2, "pause": 1, "rate": 1e-3, "save_every": 600.0, "average": 0.99},
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = f"{', '.join(PAINTING)} by default; {', '.join(JUDGES)}, {', '.join(ALONE)}"
    parser.add_argument("parts", nargs="*", metavar="part", help=usual)
    parser.add_argument("--minutes", type=float, default=math.inf, help="for all parts together, shared out among them")
    parser.add_argument("--samples", type=float, help="pictures to train each part on; by default as the clock allows")
    parser.add_argument("--stop", type=float, default=math.inf, help="stop by the clock after so many minutes")
    parser.add_argument("--subjects", type=int, default=len(subjects.KNOWN_SUBJECTS), help="how many; 33 for two cores")
    parser.add_argument("--often", type=int, default=0, help="how many of them, the easiest, fill three of four scenes")
    parser.add_argument("--repeated", type=float, default=0.0, help="share of couples that show the same things twice")
    parser.add_argument("--batch", type=int, help="pictures per step and process")
    parser.add_argument("--pool", type=int, help="blocks of pairs drawn in advance")
    parser.add_argument("--renew", type=int, help="pairs to a block")
    parser.add_argument("--pause", type=int, help="steps between renewals; each draws one block anew")
    parser.add_argument("--rate", type=float, help="the highest learning rate")
    parser.add_argument("--save-every", type=float, help="seconds between checkpoints")
    parser.add_argument("--speak", type=float, default=10.0, help="seconds between lines")
    parser.add_argument("--sheet", type=int, default=32, help="prompts to paint at the end of a part, eights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="start anew")
    parser.add_argument("--prepared", type=Path, default=PREPARED, help="where `prepare` put atlas and words")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--start", type=Path, default=WEIGHTS / "autoencoder.safetensors")
    parser.add_argument("--begin", type=Path, help="a folder with weights of UNet and text encoder to go on from")
    parser.add_argument("--record", action="store_true", help="on a GPU, record steps once and replay them")
    parser.add_argument("--processes", type=int, help="processes that share each step; a CPU's cores by default")
    options = parser.parse_args(argv)
    complete(options, parser)
    if options.parts[0] in ALONE:
        return alone(options)
    if options.processes > 1 and "RANK" not in os.environ:
        sys.exit(spread(options.processes))
    run(options)


def alone(options: argparse.Namespace) -> None:
    """What needs more of ComfyUI or of this machine than training does."""
    part = options.parts[0]
    if part == "prepare":
        from demo.training.prepare import prepare

        return prepare(options.prepared)
    from demo.training.profiles import measure_geometry, measure_profile

    atlas = prepared_atlas(options.prepared)
    return {"profile": measure_profile, "geometry": measure_geometry}[part](atlas, options.out.resolve())


def complete(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Fill in what the device decides, and refuse what cannot be."""
    unknown = [part for part in options.parts if part not in (*PARTS, *ALONE)]
    if unknown:
        parser.error(f"there is no part '{unknown[0]}'; choose from {', '.join((*PARTS, *ALONE))}.")
    if len(options.parts) > 1 and (apart := set(options.parts) & set(ALONE)):
        parser.error(f"'{min(apart)}' is a command of its own; give it no other part.")
    if not 2 <= options.subjects <= len(subjects.KNOWN_SUBJECTS):
        parser.error(f"--subjects must lie between 2 and {len(subjects.KNOWN_SUBJECTS)}.")
    if options.often and not 2 <= options.often <= options.subjects:
        parser.error("--often must lie between 2 and the number of subjects; leave it out to show all as often.")
    if not 0 <= options.repeated <= 1:
        parser.error("--repeated must lie between 0 and 1.")
    if options.begin:
        if options.parts and "unet" not in options.parts:
            parser.error("--begin is for the UNet's training: name the part 'unet', or leave --begin out.")
        missing = [name for name in BEGUN_FROM if not (options.begin / name).exists()]
        if missing:
            parser.error(f"--begin names a folder without {' and '.join(missing)}; demo/weights has what is shipped.")
    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    options.record = options.record and options.device == "cuda"
    options.dtype = nets.fast_dtype(options.device)
    for name, value in SIZES[options.device].items():
        if getattr(options, name, None) is None:
            setattr(options, name, value)
    options.deadline = time.monotonic() + 60 * options.stop
    options.parts = options.parts or list(PAINTING)
    whole = sum(MINUTES.get(part, 1) for part in options.parts)
    options.minutes = {part: options.minutes * MINUTES.get(part, 1) / whole for part in options.parts}
    if options.samples is None:
        options.samples = math.inf if math.isfinite(max(options.minutes.values())) else 1e6
    options.rank = int(os.environ.get("RANK", 0))
    given = int(os.environ.get("WORLD_SIZE", 0)) or options.processes
    options.processes = given or default_processes(options.device)


def run(options: argparse.Namespace) -> None:
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.processes > 1:
        torch.distributed.init_process_group("gloo")
    world = prepared_world(options)
    for part in options.parts:
        if time.monotonic() > options.deadline:
            print(f"{part}: no time left", flush=True)
        elif finished(part, options):
            print(f"{part}: finished before", flush=True)
        else:
            torch.manual_seed(options.seed)
            PARTS[part](options, world)


def prepared_world(options: argparse.Namespace) -> World:
    atlas = prepared_atlas(options.prepared)
    names = subjects.EASIEST_FIRST[: options.subjects]
    small = atlas.half().to(options.device)
    seed = options.seed + 1000 * options.rank
    vocabulary = load_vocabulary(options.prepared / "words.json")
    drawings = atlas.to(options.device)
    often = names[: options.often]
    return World(drawings, small, vocabulary, names, options.device, options.dtype, seed, options.repeated, often)


def prepared_atlas(prepared: Path) -> Atlas:
    """The drawings. Stops, saying what to do, where they have not been prepared."""
    if not all((prepared / name).exists() for name in ("atlas.bin", "words.json")):
        raise SystemExit(f"There is no atlas in {prepared}: run `python dev.py train prepare` first.")
    return unpack(prepared / "atlas.bin")


if __name__ == "__main__":
    main()
