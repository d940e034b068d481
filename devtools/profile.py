"""Measures a checkpoint on folders of pictures, without a graph: python dev.py profile CHECKPOINT PICTURES OUT

CHECKPOINT is a file that ComfyUI loads, or `demo`. PICTURES is a folder with one folder of pictures for each style;
files of one name in several of them count as one subject. OUT is the profile that Load Sensitivity Profile reads, the
same file that the node Profile Sensitivity makes. What is done lies in a work folder beside OUT: after a kill, run the
same command again.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DEMO, MIDDLE = "demo", "from images"
FEATURES = {"q and k": ("q", "k"), "q, k and v": ("q", "k", "v"), "q": ("q",), "k": ("k",), "v": ("v",)}


def parser() -> argparse.ArgumentParser:
    """The command line; only the standard library is needed to show it."""
    made = argparse.ArgumentParser(
        prog="dev.py profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("checkpoint", help="a checkpoint file, or 'demo'")
    made.add_argument("pictures", type=_path, help="a folder of folders of pictures")
    made.add_argument("out", type=_path, help="the profile to write, such as my-model.style.safetensors")
    made.add_argument("--measures", default="style", help="what the folders differ in (default: style)")
    made.add_argument("--prompt", default="a picture", help="one prompt for all pictures (default: a picture)")
    made.add_argument("--negative", help="a negative prompt to measure beside it, such as '' (default: none)")
    made.add_argument("--noise-levels", type=_whole(1, 50), default=12, help="1 to 50 (default: 12)")
    made.add_argument("--features", choices=list(FEATURES), default="q and k", help="default: q and k")
    made.add_argument("--distance", choices=["jensen_shannon", "bhattacharyya"], default="jensen_shannon")
    made.add_argument("--seed", type=_whole(0, 2**64 - 1), default=0)
    made.add_argument(
        "--aspect", type=_aspect, default=MIDDLE, help=f"width:height (default: {MIDDLE}, the middle one)"
    )
    made.add_argument("--size", type=_whole(0, 4096), default=0, help="side in pixels; default: the model's own")
    made.add_argument("--limit", type=_whole(2), default=1000, help="pictures of each folder at most (default: 1000)")
    made.add_argument("--subjects", choices=["auto", "file names", "none"], default="auto", help="default: auto")
    made.add_argument(
        "--pairs", type=_whole(1), default=250_000, help="pairs at most; of more, a sample (default: 250000)"
    )
    made.add_argument("--work", type=_path, help="where what is done is kept (default: OUT.work)")
    made.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help="on Ray: here, or on a cluster at ADDRESS")
    made.add_argument(
        "--actors", type=_whole(0), default=0, help="with --ray: loaded models (default: one a GPU or CPU)"
    )
    made.add_argument("--gpus", type=float, help="with --ray: GPUs that each takes (default: 1 where there are any)")
    made.add_argument("--cpus", type=float, default=0.5, help="with --ray: CPUs that each takes (default: 0.5)")
    return made


def _path(text: str) -> Path:
    """As every process of a run understands it, whatever folder it works in."""
    return Path(text).expanduser().resolve()


def _whole(low: int, high: int | None = None) -> Callable[[str], int]:
    span = f"of {low} or more" if high is None else f"from {low} to {high}"

    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number {span}")
        return int(text)

    return whole


def _aspect(text: str) -> str:
    if text != MIDDLE and re.fullmatch("0*[1-9][0-9]*:0*[1-9][0-9]*", text) is None:
        raise argparse.ArgumentTypeError(f"'{text}' is not {MIDDLE} or a width and a height, such as 3:2")
    return text


def main(arguments: list[str]) -> None:
    import torch

    options = vars(parser().parse_args(arguments))
    if options["out"].is_dir():
        raise ValueError(f"{options['out']} is a folder: name the file to write, such as my-model.style.safetensors.")
    if options["checkpoint"] != DEMO:
        options["checkpoint"] = str(_path(options["checkpoint"]))
    from conditional_balance.engine.profile_file import save
    from conditional_balance.render.report import report

    with torch.inference_mode():
        parts = parts_of(options)
        teller = Teller(parts)
        if options["ray"] is None:
            _one_after_another(parts, teller)
        else:
            from devtools.on_ray import run

            run(options, parts, teller)
        profile = parts.finish()
    save(profile, options["out"])
    parts.clear()
    print(f"{report(profile)}\n\nSaved as {options['out']}.")


def parts_of(options: dict[str, Any]) -> Any:
    """The tasks of a run; every process makes them from the same options."""
    import torch

    from conditional_balance.runtime.profile.clusters import load_clusters
    from conditional_balance.runtime.profile.parts import Parts
    from conditional_balance.runtime.profile.profiling import Measurement, Settings

    with torch.inference_mode(False):
        model, clip, vae = _loaded(options["checkpoint"])
    texts = {"positive": options["prompt"], "negative": options["negative"]}
    conds = {name: None if text is None else _encoded(clip, text) for name, text in texts.items()}
    settings = Settings(
        options["measures"], options["noise_levels"], FEATURES[options["features"]], options["distance"],
        options["seed"], options["aspect"], options["size"], most_pairs=options["pairs"],
    )  # fmt: skip
    clusters = load_clusters(options["pictures"], options["limit"], options["subjects"])
    run = Measurement(model, clusters, vae, conds["positive"], conds["negative"], settings)
    work = options["work"] or options["out"].with_name(f"{options['out'].name}.work")
    return Parts(run, work, texts)


def _loaded(checkpoint: str) -> tuple[Any, Any, Any]:
    if checkpoint == DEMO:
        from demo import models

        return models.load_unet(), models.load_clip(), models.load_vae()
    import comfy.sd

    if not Path(checkpoint).is_file():
        raise ValueError(f"There is no checkpoint {checkpoint}: name a file, or 'demo'.")
    return comfy.sd.load_checkpoint_guess_config(checkpoint, output_vae=True, output_clip=True)[:3]


def _encoded(clip: Any, text: str) -> list[Any]:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def _one_after_another(parts: Any, teller: Teller) -> None:
    for group in parts.groups:
        for kind in ("moments", "sums"):
            for task in parts.tasks(group, kind):
                if not parts.done(task):
                    parts.do(task)
                teller.done(task)
        parts.forget_moments(group)


class Teller:
    """Says how far a run is, at most once a second."""

    def __init__(self, parts: Any) -> None:
        self._left = {task for task in _all(parts) if not parts.done(task)}
        self._all, self._todo = len(list(_all(parts))), len(self._left)
        self._started, self._said = time.monotonic(), 0.0
        before = self._all - self._todo
        print(f"{parts.run.count} pictures, {self._all} tasks, {before} of them done before.", flush=True)

    def done(self, task: Any) -> None:
        self._left.discard(task)
        now = time.monotonic()
        if now - self._said < 1 and self._left:
            return
        self._said = now
        finished = self._todo - len(self._left)
        minutes = (now - self._started) / max(1, finished) * len(self._left) / 60
        print(f"  {self._all - len(self._left)} of {self._all} tasks, about {minutes:.1f} min left", flush=True)


def _all(parts: Any) -> Iterator[Any]:
    return (task for group in parts.groups for kind in ("moments", "sums") for task in parts.tasks(group, kind))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"\ndev.py stopped. {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on where this one was")
