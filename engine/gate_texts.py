"""A gate's weights in the words of other packs: texts to paste into their widgets.

Their formats know blocks, not layers: a block has the mean weight of its attention layers. What each number means was
read in their sources: IPAdapter_plus (CrossAttentionPatch.py, `transformer_index`), Inspire-Pack
(lora_block_weight.py, `load_lbw`) and Advanced-ControlNet (utils.py, `ControlWeights.get`).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from statistics import fmean

from .layers import LayerId, spelled
from .structure import slot_layout

Block = tuple[str, int]
"""A block's part and its number in it."""

SD15 = (*(("input", number) for number in (1, 2, 4, 5, 7, 8)), ("middle", 0), *(("output", n) for n in range(3, 12)))
SDXL = (*(("input", number) for number in (4, 5, 7, 8)), ("middle", 0), *(("output", number) for number in range(6)))
INPUT_BLOCKS = {SD15: 12, SDXL: 9}
"""The blocks of both UNets that have attention, in forward order, and how many input blocks each has."""


class NoSuchFormat(ValueError):
    """A model for which another pack's format has no numbers; `why` is a clause."""

    def __init__(self, why: str) -> None:
        super().__init__(f"There is no such text for this model, as {why}.")
        self.why = why


def block_weights(weights: Mapping[LayerId, float]) -> dict[Block, float]:
    """The mean weight of every block's attention layers, in forward order."""
    return {block: fmean(weights[layer] for layer in of) for block, of in groupby(weights, lambda layer: layer[:2])}


def ipadapter_text(weights: Mapping[LayerId, float]) -> str:
    """`layer_weights` of IPAdapter's Mad Scientist node: "3:0.5,6:1".

    An index counts the blocks that have attention in forward order: SDXL's 0 to 3 are i4, i5, i7 and i8, 4 is the
    middle, 5 to 10 are o0 to o5; SD1.5's 0 to 5 are i1 to i8, 6 is the middle, 7 to 15 are o3 to o11. Blocks that are
    left out have weight 0, and an empty text would mean all of them: a closed gate is "0:0".
    Raises NoSuchFormat for other models than these.
    """
    blocks = block_weights(weights)
    _of_unet(blocks, "IPAdapter counts the attention blocks of SD1.5 and SDXL")
    acting = [f"{index}:{_number(weight)}" for index, weight in enumerate(blocks.values()) if weight]
    return ",".join(acting) or "0:0"


def lora_text(weights: Mapping[LayerId, float]) -> str:
    """`block_vector` of LoRA block weights: "1,0,0,1": a base weight, then one for each block that a LoRA changes.

    In forward order; for Flux the double-stream blocks, then the single-stream ones. The base is what lies in no block,
    and the text encoder's. Raises NoSuchFormat for other models than SD1.5, SDXL and those with Flux's blocks.
    """
    blocks = block_weights(weights)
    if {part for part, _ in blocks} != {"joint", "single"}:
        _of_unet(blocks, "LoRA block weights have numbers for SD1.5, SDXL and Flux")
    return ",".join(["1", *map(_number, blocks.values())])


def controlnet_text(weights: Mapping[LayerId, float]) -> str:
    """Values of Advanced-ControlNet's Custom Weights, one a line: "output_0: 1", ..., "middle_0: 0.5".

    `output_N` is the residual of input block N. Each takes the mean weight of the layers that it reaches first, as in
    `structure.slot_layout`, the middle one as the first output block's. Raises NoSuchFormat for other models.
    """
    why = "Advanced-ControlNet's numbers are known for the residuals of SD1.5 and SDXL"
    slots = INPUT_BLOCKS[_of_unet(block_weights(weights), why)]
    feeds = slot_layout(slots, tuple(weights)).feeds
    numbers = [_number(fmean(weights[layer] for layer in fed)) for fed in feeds]
    lines = [f"output_{slot}: {number}" for slot, number in enumerate(numbers)]
    return "\n".join([*lines, f"middle_0: {numbers[-1]}"])


def _of_unet(blocks: Mapping[Block, float], why: str) -> tuple[Block, ...]:
    """The blocks, a key of INPUT_BLOCKS. Raises NoSuchFormat, with the clause `why`, for those of another model."""
    found = tuple(blocks)
    if found not in INPUT_BLOCKS:
        first = spelled(LayerId(*block) for block in found[:2])
        raise NoSuchFormat(f"{why}, and this one's attention layers begin with {first}")
    return found


def _number(weight: float) -> str:
    """Three decimals at most: 1, 0.5, 0.333."""
    return f"{round(weight, 3):g}"
