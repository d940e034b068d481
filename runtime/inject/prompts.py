"""One prompt per row of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from comfy.sd import CLIP


def encode_rows(clip: CLIP, prompts: Sequence[str]) -> list[list[Any]]:
    """A CONDITIONING whose row i [tokens, width] is prompt i, with pooled texts stacked the same way.

    Prompts of different length are repeated to their least common number of tokens, as ComfyUI does within a batch.
    """
    encoded = [clip.encode_from_tokens(clip.tokenize(prompt), return_dict=True) for prompt in prompts]
    texts = [entry.pop("cond") for entry in encoded]
    tokens = math.lcm(*(text.shape[1] for text in texts))
    rows = torch.cat([text.repeat(1, tokens // text.shape[1], 1) for text in texts])
    return [[rows, {**encoded[0], **_stacked_pooled(encoded)}]]


def _stacked_pooled(encoded: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    pooled = [entry.get("pooled_output") for entry in encoded]
    return {} if any(row is None for row in pooled) else {"pooled_output": torch.cat(pooled)}
