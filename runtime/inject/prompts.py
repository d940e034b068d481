"""One prompt per row of a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from comfy.sd import CLIP

MOST_TIMES = 4  # that the shortest text is repeated; comfy.conds.CONDCrossAttn.can_concat has the same limit
READ_ONLY = {"l", "g", "h"}  # ComfyUI's names of the CLIPs whose text pictures read but do not mix with


def encode_rows(clip: CLIP, prompts: Sequence[str]) -> list[list[Any]]:
    """A CONDITIONING whose row i [tokens, width] is prompt i, with pooled texts and other extras stacked the same way.

    Prompts of different length are repeated to their least common number of tokens, as ComfyUI does within a batch:
    that changes nothing where pictures read the text by cross-attention alone.
    Raises ValueError where it would: for models that join text and picture in one attention, and where the encoder
    gives extras, such as an attention mask, that differ in shape; and where the text would grow beyond ComfyUI's limit.
    """
    tokens = [clip.tokenize(prompt) for prompt in prompts]
    encoded = [dict(clip.encode_from_tokens(each, return_dict=True)) for each in tokens]
    texts = [entry.pop("cond") for entry in encoded]
    lengths = [text.shape[1] for text in texts]
    common = math.lcm(*lengths)
    if common > min(lengths):
        _check_may_repeat(clip, tokens[0], lengths, common)
    rows = torch.cat([text.repeat(1, common // text.shape[1], 1) for text in texts])
    return [[rows, _stacked(encoded)]]


def _check_may_repeat(clip: CLIP, tokens: Mapping[str, Any], lengths: Sequence[int], common: int) -> None:
    short, long = min(lengths), max(lengths)
    first, second = lengths.index(short) + 1, lengths.index(long) + 1
    lines = f"'prompts': line {first} takes {short} tokens and line {second} takes {long}"
    cascade = "Cascade" in type(clip.cond_stage_model).__name__  # a CLIP, but its model joins text and picture
    if cascade or not set(tokens) <= READ_ONLY:
        raise ValueError(
            f"{lines}, and models of this text encoder need equal counts within a batch: write lines of about the same "
            "length, or sample them one by one."
        )
    if common > MOST_TIMES * short:
        raise ValueError(
            f"{lines}, which within a batch would become {common:,} for each: shorten the long lines, or sample them "
            "one by one."
        )


def _stacked(encoded: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The encoder's extras for all rows. Raises ValueError where the rows' extras do not go together."""
    names = dict.fromkeys(name for entry in encoded for name in entry)
    return {name: _one(name, [entry.get(name) for entry in encoded]) for name in names}


def _one(name: str, extras: Sequence[Any]) -> Any:
    first = extras[0]
    if all(isinstance(extra, torch.Tensor) and extra.shape == first.shape for extra in extras):
        return torch.cat(list(extras)) if first.ndim else first
    if all(not isinstance(extra, torch.Tensor) and extra == first for extra in extras):
        return first
    raise ValueError(
        f"'prompts': the text encoder's '{name}' differs between the lines and cannot be put into one batch: write "
        "lines of about the same length, or sample them one by one."
    )
