"""Whether a failure is a device's memory that has run out."""

from __future__ import annotations

from comfy import model_management


def out_of_memory(problem: BaseException) -> bool:
    """Whether an error says that there was no memory left.

    ComfyUI knows the class of CUDA's. A device that computes ahead raises another by the time that somebody asks, and
    Apple's have none of their own: their words tell.
    """
    if isinstance(problem, model_management.OOM_EXCEPTION):
        return True
    return isinstance(problem, RuntimeError) and "out of memory" in str(problem).lower()
