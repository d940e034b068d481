"""What runs of one blend measured, each kept by the latent that the run returned."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ...engine.windows import Window
from ..runs.loaded import CELL

KEPT = 32
"""Runs that are remembered: as many as a queue of seeds with a cache of nodes looks back on."""


@dataclass(frozen=True)
class Measured:
    """What one window found at the sigma where it opened: maps [S, B, h, w], mask [B, h, w], how, and any caveat."""

    window: Window
    sigma: float
    maps: torch.Tensor
    mask: torch.Tensor
    method: str
    note: str


@dataclass(frozen=True)
class RunMeasured:
    """What one run measured, window by window, and what it was asked for and did not do."""

    windows: tuple[Measured, ...] = ()
    warnings: tuple[str, ...] = ()


class Attribution:
    """The latest runs of one blend. ComfyUI may show an old run's latent again from its cache, and several samplers may
    share one blend: what was measured is therefore looked up by the latent, never by who came last.

    `cell` is the side in pixels of one cell of the latents.
    """

    def __init__(self, cell: int = CELL) -> None:
        self.cell = cell
        self._runs: OrderedDict[str, RunMeasured] = OrderedDict()

    def __deepcopy__(self, memo: dict[int, Any]) -> Attribution:
        return self

    def keep(self, latents: Iterable[torch.Tensor], run: RunMeasured) -> None:
        """Remember a run by every latent that a sampler node may hand on for it."""
        for latent in latents:
            key = digest(latent)
            self._runs[key] = run
            self._runs.move_to_end(key)
        while len(self._runs) > 2 * KEPT:
            self._runs.popitem(last=False)

    def of(self, latent: torch.Tensor) -> RunMeasured:
        """What was measured in the run that returned this latent. Raises ValueError when none is known to have."""
        if not self._runs:
            raise ValueError(
                "'attribution' is empty: connect 'after' to the sampler that uses Grad-SAM Blend's model, and write "
                "'windows' that the run passes through."
            )
        run = self._runs.get(digest(latent))
        if run is None:
            raise ValueError(
                "'after' is not a latent that a sampler made with this Grad-SAM Blend: connect the sampler's own "
                f"output, before any node that changes it. Only the last {KEPT} runs are remembered; for an older one "
                "change the seed and run again."
            )
        return run


def digest(latent: torch.Tensor) -> str:
    """Tells latents [B, C, h, w] apart by shape and content, in half precision: some setups hand them on in that."""
    half = latent.detach().to("cpu", torch.float16).contiguous()
    return hashlib.sha256(repr(tuple(half.shape)).encode() + half.numpy().tobytes()).hexdigest()
