"""Which row of a model call belongs to which picture and prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from .keys import kinds_of

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


def layout_of(options: Mapping[str, Any], x: torch.Tensor, text: Any, pictures: int) -> Layout:
    """The layout of a call whose input is x [rows, ...], in a run of `pictures` pictures.

    Nodes that cut the picture into tiles put several into one call, tile by tile, each with all conditionings: the
    layout then has as many chunks as the tiles have together. A call on a part of the batch has fewer pictures.
    Raises ValueError for a call in any other order.
    """
    if LAYOUT in options:
        return options[LAYOUT]
    kinds = tuple(kinds_of(options))
    if len(x) <= len(kinds) * pictures and len(x) % len(kinds) == 0:
        return Layout(kinds, len(x) // len(kinds))
    tiles, rest = divmod(len(x), len(kinds) * pictures)
    if rest or not tiles or not _tile_by_tile(text, len(x), tiles):
        raise ValueError(
            f"Another node calls the model with {len(x)} rows for {pictures} pictures and {len(kinds)} conditionings, "
            "in an order that cannot be told: set that node to one tile at a time, or bypass it."
        )
    return Layout(kinds * tiles, pictures)


def _tile_by_tile(text: Any, rows: int, tiles: int) -> bool:
    """Whether the prompts [rows, tokens, width] repeat with every tile, as they do when each tile has all of them."""
    if not isinstance(text, torch.Tensor) or len(text) != rows:
        return True  # nothing says otherwise: core's own order
    parts = text.unflatten(0, (tiles, -1))
    return bool((parts == parts[:1]).all())
