"""What accelerators lack: Apple's, Intel's and DirectML's compute less than CPUs and CUDA, and some of it wrongly."""

from __future__ import annotations

import torch

COMPLETE = ("cpu", "cuda")
"""Kinds of devices that compute in float64, pool over cells of unequal size, and serve several threads at once. AMD's
are called cuda too. Apple's (mps) does none of this, Intel's Arc (xpu) has no float64."""


def able(x: torch.Tensor) -> torch.Tensor:
    """x where it is, if all can be computed there, else on the CPU."""
    return x if x.device.type in COMPLETE else x.cpu()


def double(x: torch.Tensor) -> torch.Tensor:
    """x in float64, on the CPU where its own device has none."""
    return able(x).double()
