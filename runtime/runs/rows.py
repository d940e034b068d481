"""Rows of prompts and references that do not go with the pictures of a run: ComfyUI repeats or drops them silently."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def misfit(what: str, rows: int, pictures: int) -> Iterator[str]:
    """A sentence where `rows` are neither one for all pictures nor one for each; `what` reads "The prompt has"."""
    if rows not in (1, pictures):
        done = "the last are left out" if rows > pictures else "they are repeated in turn"
        room = f"{pictures} picture{'' if pictures == 1 else 's'}"
        yield f"{what} {rows} rows for {room}, so {done}: give one for all, or one for each."


def misfits_of_prompts(conds: Mapping[str, Sequence[Mapping[str, Any]]], pictures: int) -> Iterator[str]:
    """The sentences for a guider's prompts, by their names ("positive", "negative")."""
    for name, prompts in conds.items():
        texts = (prompt.get("cross_attn") for prompt in prompts)
        for rows in sorted({text.shape[0] for text in texts if text is not None}):
            yield from misfit(f"The {name} prompt has", rows, pictures)
