"""Windows of the schedule, such as `0.22-0.48, 0.68`, and the noise levels they cover in one run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from .texts import bounded, quoted

ROUNDING = 1 + 1e-4
"""Samplers and schedulers reach a noise level only to within single precision."""

LONGEST = 1_000
"""Characters that a text of windows may hold: a hundred windows, and each costs a measurement."""

_NUMBER = r"(\d+(?:\.\d+)?|\.\d+)"
_WINDOW = re.compile(rf"{_NUMBER}(?:\s*-\s*{_NUMBER})?")


class Window(NamedTuple):
    """From `start` to `end` in percent of the schedule (0 noise, 1 picture); without an end, one step."""

    start: float
    end: float | None = None

    def __str__(self) -> str:
        return f"{self.start:g}" if self.end is None else f"{self.start:g}-{self.end:g}"


class Span(NamedTuple):
    """A window in one run: sigmas with low < sigma <= high; `step` is the first one inside."""

    window: Window
    step: int
    high: float
    low: float

    def holds(self, sigma: float) -> bool:
        """Whether a model call at this sigma falls in."""
        return self.low * ROUNDING < sigma <= self.high * ROUNDING


def parse_windows(text: str) -> tuple[Window, ...]:
    """Read windows separated by commas: `0.22-0.48` a range, `0.68` the first step at or past it.

    Raises ValueError that quotes the part which is not a window, or says that the text is too long.
    """
    parts = [part.strip() for part in re.split(r"[,\n]", bounded(text, "windows", LONGEST)) if part.strip()]
    return tuple(_window(part) for part in parts)


def _window(text: str) -> Window:
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{quoted(text)} is not a window; write a range such as 0.2-0.5 or a single number such as 0.7."
        )
    start, end = float(match[1]), None if match[2] is None else float(match[2])
    if max(start, end or 0.0) > 1:
        raise ValueError(f"{quoted(text)} leaves the schedule, which runs from 0 (noise) to 1 (picture).")
    if end == start:
        raise ValueError(f"{quoted(text)} ends where it starts: write {start:g} alone for one step.")
    if end is not None and end < start:
        raise ValueError(f"{quoted(text)} ends before it starts: swap the numbers.")
    return Window(start, end)


def spans(
    windows: Sequence[Window], sigmas: torch.Tensor, to_sigma: Callable[[float], float], before: float = math.inf
) -> tuple[Span, ...]:
    """What the windows cover of a falling schedule [steps + 1].

    A window that lies between two steps takes the next one, so that none is lost to a short schedule; one that ended
    before the run starts, as in img2img, or starts after its last step, is left out. So are those of one step that an
    earlier stage had, whose last step was at the level `before`; of those that are left before the run starts, it has
    the last. A schedule that rises, as in an inversion, holds none.
    """
    levels = sigmas.tolist()
    if rises(sigmas):
        return ()
    early = {each for each in windows if each.end is None and to_sigma(each.start) > levels[0] * ROUNDING}
    ours = (each for each in early if to_sigma(each.start) * ROUNDING < before)
    passed = early - {max(ours, key=lambda each: each.start, default=None)}
    found = [_span(window, levels, to_sigma) for window in windows if window not in passed]
    return tuple(span for span in found if span is not None)


def step_before(sigmas: torch.Tensor, to_sigma: Callable[[float], float]) -> float:
    """The level of the step before a schedule that goes on with another's: as far from its first as that is from the
    second, in percent."""
    if len(sigmas) < 2:
        return math.inf
    first, second = (percent_of(float(sigma), to_sigma) for sigma in sigmas[:2])
    return to_sigma(max(2 * first - second, 0.0))


def _span(window: Window, levels: Sequence[float], to_sigma: Callable[[float], float]) -> Span | None:
    high = to_sigma(window.start)
    step = next((index for index, level in enumerate(levels[:-1]) if level <= high * ROUNDING), None)
    low = None if window.end is None else to_sigma(window.end)
    if step is None or (low is not None and low >= levels[0]):
        return None
    if low is None or low * ROUNDING >= levels[step]:
        low = levels[step + 1]
    top = torch.inf if step == 0 else levels[step]  # samplers that add noise before a step call above its level
    return Span(window, step, top, low)


def rises(sigmas: torch.Tensor) -> bool:
    """Whether a schedule goes from a picture toward noise."""
    return len(sigmas) > 1 and bool(sigmas[-1] >= sigmas[0])


def percent_of(sigma: float, to_sigma: Callable[[float], float]) -> float:
    """Where in the schedule a noise level stands, in percent, by bisection of the falling `to_sigma`."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if to_sigma(middle) > sigma else (low, middle)
    return round(high, 3)
