"""The labels of a series: which style each picture is of, and which subject it shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

STYLE, CONTENT, BASE = range(3)  # same style and other subject; same subject and other style; neither the same


class Series(NamedTuple):
    """Each picture's style and subject [images], both counted from 0 upward."""

    styles: torch.Tensor
    subjects: torch.Tensor

    @classmethod
    def of(cls, styles: Sequence[int], subjects: Sequence[str | None]) -> Series:
        """A picture without a subject has one of its own, which meets no other picture of itself."""
        names = [(name, 0) if name else (None, place) for place, name in enumerate(subjects)]
        known = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return cls(torch.as_tensor(styles), torch.tensor([known[name] for name in names]))

    @property
    def counts(self) -> tuple[int, int]:
        """Styles and subjects."""
        return int(self.styles.max()) + 1, int(self.subjects.max()) + 1

    def kinds(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Which pairs are of each kind, [3, rows, columns]; a picture and itself, or its twin, are of none."""
        style = self.styles[rows, None] == self.styles[columns]
        subject = self.subjects[rows, None] == self.subjects[columns]
        return torch.stack([style & ~subject, subject & ~style, ~style & ~subject])
