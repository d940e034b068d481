"""One part of a training: steps that end by count or clock, checkpoints to go on from, finished parts left alone."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from demo.training.loop import Trainer, agreed

COUNTING = ("batch", "processes", "subjects", "often", "repeated")  # with others, steps would stand for other pictures


def counting(options: argparse.Namespace) -> dict[str, object]:
    """What a checkpoint's steps stand for, and the weights that they began with."""
    begun = str(options.begin.resolve()) if options.begin else ""
    return {name: getattr(options, name) for name in COUNTING} | {"begin": begun}


class Run:
    """Steps of a part. All chance of a step follows from its number, so that a stop changes nothing."""

    def __init__(self, part: str, options: argparse.Namespace, trainer: Trainer) -> None:
        self.part, self.options, self.trainer = part, options, trainer
        self.samples, self.minutes = options.samples, options.minutes[part]
        self.before = 0.0  # seconds of earlier runs
        self.path: Path = options.out / f"{part}.checkpoint"
        self.start = time.monotonic()
        self._resume()

    @property
    def step(self) -> int:
        return self.trainer.count

    def steps(self, batch: int) -> Iterator[tuple[float, bool]]:
        """Yield progress in [0, 1) and whether to speak, once per optimiser step, until clock or count end it."""
        self.start = saved = time.monotonic()
        spoken, ranks = -1e9, self.options.processes
        while True:
            now = time.monotonic()
            used = self.before + now - self.start
            progress = agreed(max(self.step * batch * ranks / self.samples, used / 60 / self.minutes))
            late = agreed(float(now > self.options.deadline)) > 0
            speak = self.options.rank == 0 and (now - spoken > self.options.speak or progress >= 1 or late)
            if speak:
                spoken = now
                pictures = self.step * batch * ranks
                print(f"{self.part}: {pictures:,} pictures, {used:.0f} s, {100 * progress:.0f} %", end=" ", flush=True)
            if progress >= 1 or late:
                print("done" if progress >= 1 else "stopped by the clock", flush=True) if speak else None
                self.save(progress >= 1)
                return
            if now - saved > self.options.save_every:
                self.save(False)
                saved = now
            torch.manual_seed(self.options.seed + 104_729 * self.step + self.options.rank)
            yield progress, speak

    def save(self, done: bool) -> None:
        """Write a checkpoint; the file is replaced whole or not at all."""
        if self.options.rank:
            return
        used = self.before + time.monotonic() - self.start
        part = self.path.with_suffix(".part")
        kept = {"trainer": self.trainer.state(), "seconds": used, "done": done, "counting": counting(self.options)}
        torch.save(kept, part)
        os.replace(part, self.path)

    def _resume(self) -> None:
        if self.options.fresh or not self.path.exists():
            return
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        mine = counting(self.options)
        for name, value in state.get("counting", {}).items():
            if mine[name] != value:
                raise SystemExit(
                    f"{self.path.name} was begun with --{name} {value or 'left out'}, not {mine[name] or 'without'}: "
                    "give that, another --out, or --fresh to start anew."
                )
        self.trainer.restore(state["trainer"])
        self.before = state["seconds"]
        print(f"{self.part}: going on after {self.step:,} steps", flush=True)


def finished(part: str, options: argparse.Namespace) -> bool:
    """Whether an earlier run has brought a part to its end."""
    path = options.out / f"{part}.checkpoint"
    if options.fresh or not path.exists():
        return False
    return bool(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["done"])
