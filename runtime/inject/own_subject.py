"""A style reference's own subject: where it stands in its picture, and how little attention may take from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from comfy import utils
from comfy.model_patcher import ModelPatcher
from torch.nn import functional

from ...engine.masks import MaskSettings, mask_of
from ...engine.style import Damping
from ..attribution.find import ProbeSettings, find_subject
from ..attribution.settings import AttributionSettings
from ..runs.model_call import ModelCall, brought
from .reference import StyleReference, covering, fits, middle

LEVEL = ProbeSettings((0.7,))
METHOD = AttributionSettings("value_norm", propagation=2)
MASK = MaskSettings()
"""What Grad-SAM Mask does by default."""
LEAST = 1e-4
"""Weight of what is wholly the subject's. Above 0, as some attention does not know an infinite bias."""

Grid = tuple[int, int, int]
DampingAt = Callable[[Grid], Damping]


def with_subject_found(model: ModelPatcher, reference: StyleReference) -> StyleReference:
    """The reference, and those before it, with the subject of each looked for in its picture, in one more prediction.

    Raises ValueError where the batch's first picture, which is not painted yet, is the reference.
    """
    if reference.previous is not None:
        reference = replace(reference, previous=with_subject_found(model, reference.previous))
    if reference.subject is None or reference.subject_mask is not None:
        return reference
    if not reference.hidden:
        raise ValueError(
            "'subject' of the style reference needs a picture to look for it in, and the batch's first is not painted "
            "yet: connect a picture or a trajectory."
        )
    with torch.no_grad():
        found = find_subject(model, _picture(model, reference), reference.subject, LEVEL, METHOD)
    return replace(reference, subject_mask=mask_of(found.maps, MASK)[0])


def _picture(model: ModelPatcher, reference: StyleReference) -> torch.Tensor:
    """The reference's latent [1, C, (1,) h, w], as VAE Encode gives it."""
    if reference.trajectory is None:
        assert reference.latent is not None  # or it would not be hidden
        return reference.latent[:1]
    return model.model.process_latent_out(reference.trajectory.states[-1:])


def subject_at(reference: StyleReference, noise: torch.Tensor) -> torch.Tensor | None:
    """Where the subject stands in the reference as it runs along: [H, W] of the run's latents, 0 to 1, on the CPU."""
    mask = reference.subject_mask
    if mask is None:
        return None
    return _resized(mask.float().cpu(), noise.shape[-2:])


def _resized(mask: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return utils.common_upscale(mask[None, None], size[-1], size[-2], "bilinear", "center")[0, 0].clamp(0, 1)


def damping_at(subject: torch.Tensor, call: ModelCall, kept: dict[Any, torch.Tensor]) -> DampingAt:
    """By a layer's grid of tokens: less weight for every token, the more of it is the subject's.

    It is `kept` for the later calls of a run.
    """
    size = call.x.shape[-2:]

    def at(grid: Grid) -> torch.Tensor:
        known = id(subject), size, grid, call.x.device
        if known not in kept:
            seen = middle(subject if fits(size, subject) else _resized(subject, covering(size, subject)), size)
            frames, height, width = grid
            share = functional.adaptive_avg_pool2d(seen[None], (height, width)).flatten().repeat(frames)
            kept[known] = brought(call, (1 - share).clamp(min=LEAST).log())
        return kept[known]

    return at
