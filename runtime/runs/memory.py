"""Whether a failure is a device's memory that has run out, which no fallback of ours should hide."""

from __future__ import annotations

import torch
from comfy import model_management

_LOST = getattr(torch, "AcceleratorError", ())
"""What a device that computes ahead raises, by the time that somebody asks; older versions of torch do not know it."""


def out_of_memory(problem: BaseException) -> bool:
    """Whether memory has run out, as newer ComfyUI tells it; 0.3.75 knows the first of the two errors only."""
    if isinstance(problem, model_management.OOM_EXCEPTION):
        return True
    return isinstance(problem, _LOST) and "out of memory" in str(problem).lower()
