"""Captions of the pictures, as rows of one table of tokens."""

from __future__ import annotations

import itertools
import math

import torch
from comfy.sd1_clip import SDTokenizer
from torch import Tensor

from demo import world


def caption_tokens() -> Tensor:
    """Tokens of every caption, [subject or none, background or none, family or none, 77] flattened to two axes.

    After these `single_captions()` rows come those of diptychs, [family or none, 77].
    """
    tokenizer = SDTokenizer()
    families = (*world.FAMILY_NAMES, None)
    parts = itertools.product((*world.SUBJECT_NAMES, None), (*world.BACKGROUND_NAMES, None), families)
    texts = [*(world.caption(*names) for names in parts), *(world.diptych_caption(family) for family in families)]
    return torch.tensor([[token for token, _ in tokenizer.tokenize_with_weights(text)[0]] for text in texts])


# How many there are to name, "none" included.
CAPTION_PARTS = [len(names) + 1 for names in (world.SUBJECT_NAMES, world.BACKGROUND_NAMES, world.FAMILY_NAMES)]


def single_captions() -> int:
    return math.prod(CAPTION_PARTS)


def sheet_captions(family: Tensor) -> Tensor:
    """Rows of `caption_tokens` for diptychs in families [B], or in none, the number behind the last family."""
    return single_captions() + family


def parts_named(captions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Subject, background and family that rows of `caption_tokens` name; the number behind the last where none is."""
    subjects, backgrounds, families = CAPTION_PARTS
    scenes = torch.where(captions < single_captions(), captions // families, subjects * backgrounds - 1)
    return scenes // backgrounds, scenes % backgrounds, captions % families


def caption_rows(specs: world.Specs, unnamed: float = 0.2) -> Tensor:
    """Rows of `caption_tokens` for a batch; words are left out at random, one caption in ten altogether.

    The style goes unnamed in a share `unnamed` of the others.
    """
    device = specs.subject.device

    def dropped(names: Tensor, none: int, share: float) -> Tensor:
        gone = torch.rand(len(specs), device=device)
        return torch.where((gone < share) | silent, none, names)

    silent = torch.rand(len(specs), device=device) < 0.1
    subjects, backgrounds, families = (
        len(n) for n in (world.SUBJECT_NAMES, world.BACKGROUND_NAMES, world.FAMILY_NAMES)
    )
    subject = dropped(specs.subject, subjects, 0.06)
    background = dropped(specs.background, backgrounds, 0.06)
    family = dropped(specs.family[:, 0], families, unnamed)
    return (subject * (backgrounds + 1) + background) * (families + 1) + family
