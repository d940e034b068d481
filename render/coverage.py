"""How much of each picture a mask covers, in words, and what to do about one that is empty or full."""

from __future__ import annotations

import torch


def coverage(mask: torch.Tensor) -> str:
    """The share of each picture that its mask [B, h, w] covers: "14%, 9%"."""
    return ", ".join(f"{float(share):.0%}" for share in mask.mean((-2, -1)))


def caveat(mask: torch.Tensor) -> str:
    """Which pictures' masks are empty or full, and the cure; nothing where all are as they should be."""
    found = (
        ("Nothing was found{}: lower 'amount', or choose otsu.", mask.amax((-2, -1)) <= 0),
        ("The mask covers everything{}: raise 'amount', lower 'dilate', or choose otsu.", mask.amin((-2, -1)) >= 1),
    )
    return " ".join(words.format(_pictures(which)) for words, which in found if which.any())


def _pictures(which: torch.Tensor) -> str:
    """ " in pictures 1, 3", or nothing when all are meant."""
    if which.all():
        return ""
    numbers = [str(number + 1) for number, mine in enumerate(which.tolist()) if mine]
    return f" in picture{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
