"""The variable in which noise levels of a model lie evenly: how profiles are spaced, read and averaged.

Models whose sigma has no upper end (SD1.5, SDXL, Cosmos): log(sigma). Flow models, sigma from 1 to 0 (SD3, Flux,
Qwen-Image and most of their age): log(sigma / (1 - sigma)), half the logarithm of noise over signal in both cases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

LOG, LOGIT = "log", "logit"

_VARIABLES: Mapping[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]] = (
    MappingProxyType({LOG: (torch.log, torch.exp), LOGIT: (torch.logit, torch.sigmoid)})
)
NOISES = tuple(_VARIABLES)


def variable(sigma: torch.Tensor | float, noise: str) -> torch.Tensor:
    """Noise levels in the variable `noise` (LOG or LOGIT), in float64; rises with sigma."""
    return _VARIABLES[noise][0](torch.as_tensor(sigma, dtype=torch.float64))


def back(value: torch.Tensor | float, noise: str) -> torch.Tensor:
    """Noise levels from their variable."""
    return _VARIABLES[noise][1](torch.as_tensor(value, dtype=torch.float64))


def evenly_spaced(high: float, low: float, count: int, noise: str) -> torch.Tensor:
    """`count` falling sigmas from `high` to `low`, evenly spaced in the variable; a single one lies half way."""
    first, last = variable(torch.tensor([high, low], dtype=torch.float64), noise)
    if count == 1:
        return back((first + last) / 2, noise)[None]
    return back(torch.lerp(first, last, torch.linspace(0, 1, count, dtype=torch.float64)), noise)
