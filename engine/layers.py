"""Names for the attention layers of a UNet."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

BLOCKS = ("input", "middle", "output")
_LETTERS = {"i": "input", "m": "middle", "o": "output", "d": "input", "u": "output"}
_NAME = re.compile(r"([imodu])(\d+)\.(\d+)|m(\d+)")


class LayerId(NamedTuple):
    """One transformer block of the UNet, written `o1.8` for ("output", 1, 8).

    `number` counts blocks inside the part, `transformer` counts transformer blocks inside that block:
    the two numbers ComfyUI puts into a patch key.
    """

    block: str
    number: int
    transformer: int

    def __str__(self) -> str:
        return f"{self.block[0]}{self.number}.{self.transformer}"

    @classmethod
    def parse(cls, text: str) -> LayerId:
        """Read `o1.8`, `i4.0`, `m0.3`; `d` and `u` mean `i` and `o`; `m3` is short for `m0.3`.

        Raises ValueError when the text is no layer name.
        """
        match = _NAME.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"'{text}' is no layer name; write i4.0, m0.3 or o1.8.")
        letter, number, transformer, middle = match.groups()
        if middle is not None:
            return cls("middle", 0, int(middle))
        return cls(_LETTERS[letter], int(number), int(transformer))


def in_forward_order(layers: Iterable[LayerId]) -> tuple[LayerId, ...]:
    """Sort layers as the forward pass meets them: input, middle, output."""
    return tuple(sorted(layers, key=lambda layer: (BLOCKS.index(layer.block), layer.number, layer.transformer)))
