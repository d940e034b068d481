"""Names for the attention layers of a UNet or a diffusion transformer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

LETTERS = {
    "input": "i",
    "middle": "m",
    "output": "o",
    "refiner": "r",
    "joint": "j",
    "second": "x",
    "single": "s",
    "block": "b",
}
"""The letter of each kind of block: three of UNets, then those of transformers.

`refiner` self-attention of the picture alone before text joins; `joint` picture and text, each with weights of its own
(or the only kind there is); `second` SD3.5 Medium's other attention of the same block, picture only; `single` picture
and text under the same weights; `block` self-attention of the picture, where text comes in by cross-attention.
"""

KINDS = {letter: block for block, letter in LETTERS.items()} | {"d": "input", "u": "output"}
"""Block by letter, with the old `d` (down) and `u` (up)."""

UNET_BLOCKS = ("input", "middle", "output")

_STAGES = {"input": 0, "middle": 1, "output": 2, "refiner": 3, "joint": 4, "second": 4, "single": 5, "block": 6}
_NAME = re.compile(r"([imodu])(\d+)\.(\d+)|m(\d+)|([rjxsb])(\d+)(?:\.0)?")


class LayerId(NamedTuple):
    """One attention layer: `o1.8` for ("output", 1, 8) of a UNet, `j3` for ("joint", 3, 0) of a transformer.

    `number` counts blocks inside the part, `transformer` counts transformer blocks inside that block: the two numbers
    that ComfyUI puts into a UNet's patch key. Blocks of transformers hold one, whose 0 is not written.
    """

    block: str
    number: int
    transformer: int = 0

    def __str__(self) -> str:
        name = f"{LETTERS[self.block]}{self.number}"
        return f"{name}.{self.transformer}" if self.block in UNET_BLOCKS else name

    @classmethod
    def parse(cls, text: str) -> LayerId:
        """Read `o1.8`, `i4.0`, `m0.3`, `j3`; `d` and `u` mean `i` and `o`; `m3` is short for `m0.3`.

        Raises ValueError when the text is not a layer name.
        """
        match = _NAME.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"'{text}' is not a layer name; write i4.0, m0.3, o1.8 or j3.")
        letter, number, transformer, middle, kind, place = match.groups()
        if middle is not None:
            return cls("middle", 0, int(middle))
        if kind is not None:
            return cls(KINDS[kind], int(place))
        return cls(KINDS[letter], int(number), int(transformer))


def in_forward_order(layers: Iterable[LayerId]) -> tuple[LayerId, ...]:
    """Sort layers as the forward pass meets them: input, middle, output; r0, j0, x0, j1, x1, ..., s0.

    Every architecture lists its layers in this order (a contract test holds it).
    """
    return tuple(sorted(layers, key=_place))


def _place(layer: LayerId) -> tuple[int, int, int, int]:
    return _STAGES[layer.block], layer.number, layer.block == "second", layer.transformer


def stretch(layer: LayerId) -> str:
    """The name of the layers that are drawn as one stretch: a UNet's block (`o1`), all joint blocks of a transformer.

    A joint block and its second attention take turns, so both belong to `joint`.
    """
    if layer.block in UNET_BLOCKS:
        return f"{LETTERS[layer.block]}{layer.number}"
    return "joint" if layer.block == "second" else layer.block


def titled_stretches(layers: Sequence[LayerId]) -> list[tuple[str, int]]:
    """The stretches of layers in forward order, each with its title (`o1`, `j0-18`) and its number of layers."""
    found = [(name, list(group)) for name, group in groupby(layers, key=stretch)]
    return [(name if group[0].block in UNET_BLOCKS else spelled(group), len(group)) for name, group in found]


def spelled(layers: Iterable[LayerId]) -> str:
    """Layers in the gate grammar, as short as it goes: `o1.4-9, o2.0-6`, `j0-11, s3`; "none" without any."""
    forward = sorted(layers, key=lambda layer: (_STAGES[layer.block], layer.block == "second", *layer[1:]))
    names = []
    for head, group in groupby(forward, key=_head):
        numbers = [layer.transformer if "." in head else layer.number for layer in group]
        names += [f"{head}{run}" for run in _runs(numbers)]
    return ", ".join(names) or "none"


def _head(layer: LayerId) -> str:
    """What stands before the running number: `o1.` in a UNet, `j` in a transformer."""
    return str(layer)[: str(layer).index(".") + 1] if layer.block in UNET_BLOCKS else LETTERS[layer.block]


def spans(numbers: Sequence[int]) -> str:
    """Ascending numbers with consecutive ones run together: [1, 2, 5] is "1-2, 5"."""
    return ", ".join(_runs(numbers))


def _runs(numbers: Sequence[int]) -> list[str]:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
