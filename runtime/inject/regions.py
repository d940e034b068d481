"""Where each of several style references acts, brought to the grid of every layer's tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from comfy import utils
from torch.nn import functional

from ...engine.several import Leads
from ..runs.layout import Layout, places_of
from ..runs.model_call import ModelCall, brought
from .reference import StyleReference

Grid = tuple[int, int, int]
LeadsAt = Callable[[Grid | None], Leads]
"""The references of a call for a layer whose tokens stand in a grid; for None as if none had a mask."""


def fitted(reference: StyleReference, noise: torch.Tensor) -> torch.Tensor | None:
    """A reference's mask [H, W] at the size of the run's latents, on the CPU."""
    return None if reference.mask is None else _resized(reference.mask.float().cpu(), noise)


def _resized(mask: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    size = pictures.shape[-1], pictures.shape[-2]
    return utils.common_upscale(mask[None, None], *size, "area", "disabled")[0, 0].clamp(0, 1)


def _at_size(mask: torch.Tensor | None, pictures: torch.Tensor | None) -> torch.Tensor | None:
    """A mask for pictures of a size to which a sampler has changed the run's."""
    if mask is None or pictures is None or mask.shape == pictures.shape[-2:]:
        return mask
    return _resized(mask, pictures)


def leads_of(
    acting: Sequence[tuple[float, torch.Tensor | None]],
    rows: Sequence[int],
    call: ModelCall,
    layout: Layout,
    kept: dict[Any, Leads],
) -> LeadsAt:
    """Strength and mask of the acting references, in their rows, for the part of the picture that the call shows.

    What calls on the whole picture ask for is `kept` for the later ones of a run.
    """
    places, pictures = None, call.pictures
    if any(mask is not None for _, mask in acting):
        assert pictures is not None  # a run's life cycle notes them in every call
        places = places_of(call.x, layout, pictures)
    if places is not None:
        kept = {}
    known = tuple((strength, id(mask)) for strength, mask in acting), tuple(rows), call.x.shape[-2:], call.x.device

    def at(grid: Grid | None) -> Leads:
        if (known, grid) not in kept:
            fitting = ((strength, _at_size(mask, pictures)) for strength, mask in acting)
            each = torch.broadcast_tensors(*(strength * _weights(mask, places, grid) for strength, mask in fitting))
            kept[known, grid] = Leads.of(rows, torch.stack(each)).on(functools.partial(brought, call))
        return kept[known, grid]

    return at


def _weights(
    mask: torch.Tensor | None, places: Sequence[tuple[slice, slice]] | None, grid: Grid | None
) -> torch.Tensor:
    """A mask's mean over every token [chunks or 1, tokens]; 1 [1, 1] without a mask."""
    if mask is None or grid is None:
        return torch.ones(1, 1)
    parts = [mask] if places is None else [mask[place] for place in places]
    frames, height, width = grid
    means = (functional.adaptive_avg_pool2d(part[None], (height, width)) for part in parts)
    return torch.stack([mean.flatten().repeat(frames) for mean in means])
