"""Which row of a model call belongs to which picture and prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from .keys import kinds_of
from .model_call import ModelCall

LAYOUT = "conditional_balance_layout"
"""In transformer_options, once a node of ours has added rows: the layout of the call as it is now."""


class Layout(NamedTuple):
    """Rows of a model call: equal chunks, one for each entry of `kinds` (places in the list of conditionings).

    A chunk holds `pictures` rows of the run's batch and behind them `hidden` rows of references.
    """

    kinds: tuple[int, ...]
    pictures: int
    hidden: int = 0

    @property
    def chunks(self) -> int:
        return len(self.kinds)

    @property
    def rows(self) -> int:
        """Rows of one chunk."""
        return self.pictures + self.hidden

    def with_hidden_row(self) -> Layout:
        return self._replace(hidden=self.hidden + 1)


def layout_of(options: Mapping[str, Any], x: torch.Tensor, text: Any, pictures: torch.Tensor) -> Layout:
    """The layout of a call whose input is x [rows, ...], made to predict for `pictures` [B, C, ..., H, W].

    Nodes that cut the picture into tiles put several into one call, tile by tile, each with all conditionings: the
    layout then has as many chunks as the tiles have together. A call on a part of the batch has fewer pictures.
    Raises ValueError for a call in any other order.
    """
    if LAYOUT in options:
        return options[LAYOUT]
    kinds, batch = tuple(kinds_of(options)), len(pictures)
    if len(x) <= len(kinds) * batch and len(x) % len(kinds) == 0:
        return Layout(kinds, len(x) // len(kinds))
    tiles, rest = divmod(len(x), len(kinds) * batch)
    if rest or not tiles or not _tile_by_tile(x, text, tiles, pictures):
        raise ValueError(
            f"Another node calls the model with {len(x)} rows for {batch} pictures and {len(kinds)} conditionings, "
            "in an order that is not known: set that node to one tile at a time, or bypass it."
        )
    return Layout(kinds * tiles, batch)


def with_layout(call: ModelCall, layout: Layout) -> ModelCall:
    """The call with its layout noted for nodes of ours further in."""
    return replace(call, options={**call.options, LAYOUT: layout})


def _tile_by_tile(x: torch.Tensor, text: Any, tiles: int, pictures: torch.Tensor) -> bool:
    """Whether rows stand tile by tile, each with all conditionings of all pictures, as Tiled Diffusion orders them.

    Then all conditionings of a tile show one part of the same picture, and the prompts repeat with every tile.
    """
    parts = x.unflatten(0, (tiles, -1, len(pictures)))  # [tile, conditioning, picture, ...]
    same_part = bool((parts == parts[:, :1]).all())
    return same_part and _repeats(text, len(x), tiles) and all(_lie_in(tile[0], pictures) for tile in parts)


def _repeats(text: Any, rows: int, tiles: int) -> bool:
    if not isinstance(text, torch.Tensor) or len(text) != rows:
        return True  # a model without text, or one text for all rows
    parts = text.unflatten(0, (tiles, -1))
    return bool((parts == parts[:1]).all())


def _lie_in(tile: torch.Tensor, pictures: torch.Tensor) -> bool:
    """Whether the first place of each row of a tile [B, C, ..., h, w] is found in the picture of that row."""
    same = (pictures == tile[..., :1, :1].to(pictures)).flatten(1, -3).all(1)
    return bool(same.flatten(1).any(1).all())


def places_of(x: torch.Tensor, layout: Layout, pictures: torch.Tensor) -> tuple[tuple[slice, slice], ...] | None:
    """Which part of the picture each chunk of a call shows, in rows and columns; None when all show it whole.

    A call on an area or a tile does not say where that lies: it is looked for in the pictures [B, C, ..., H, W].
    Raises ValueError when it is not found there.
    """
    if x.shape[-2:] == pictures.shape[-2:]:
        return None
    return tuple(_place(x[chunk * layout.rows], pictures) for chunk in range(layout.chunks))


def _place(tile: torch.Tensor, pictures: torch.Tensor) -> tuple[slice, slice]:
    height, width = tile.shape[-2:]
    tile, pictures = tile.flatten(0, -3).to(pictures), pictures.flatten(1, -3)
    rows, columns = pictures.shape[-2] - height + 1, pictures.shape[-1] - width + 1
    corners = (pictures[:, :, :rows, :columns] == tile[:, :1, :1]).all(1)
    for picture, top, left in corners.nonzero().tolist():
        place = slice(top, top + height), slice(left, left + width)
        if bool((pictures[picture][:, place[0], place[1]] == tile).all()):
            return place
    raise ValueError(
        "Another node calls the model with a part of the picture that is not found in it, so the 'mask' of a style "
        "reference cannot be placed: remove the mask, or bypass that node."
    )
