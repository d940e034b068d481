"""Which style amount to take, from pictures painted with a few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FINENESS = 0.01  # steps of the amount between those that were tried


class Tries(NamedTuple):
    """What was seen at each amount [N], which rise from 0, the picture without style.

    `style` is the part of the distance to the reference that is gone, `content` the part of the plain picture that is
    left: 0 and 1 at amount 0.
    """

    amounts: Sequence[float]
    style: Sequence[float]
    content: Sequence[float]


def suggested(tries: Tries) -> float:
    """The amount at which style and content together are the most; 0 where no try comes nearer to the style."""
    amounts = np.arange(0, max(tries.amounts) + FINENESS / 2, FINENESS)
    return round(float(amounts[np.argmax(balance(tries, amounts))]), 2)


def balance(tries: Tries, amounts: np.ndarray) -> np.ndarray:
    """The geometric mean of style and content at `amounts` [M], on straight lines between those tried."""
    style = np.interp(amounts, tries.amounts, np.clip(tries.style, 0, 1))
    content = np.interp(amounts, tries.amounts, np.clip(tries.content, 0, 1))
    return np.sqrt(style * content)
