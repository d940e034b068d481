"""Memory that ran out."""

from __future__ import annotations

from comfy import model_management


def ran_out(problem: BaseException) -> bool:
    """Whether an error says that there was no memory left: CUDA's has a class that ComfyUI knows, Apple's has none."""
    return isinstance(problem, model_management.OOM_EXCEPTION) or "out of memory" in str(problem)
