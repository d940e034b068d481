"""From a map of importance to a mask: blur, threshold, dilation, feather, union.

Lengths are in cells of the latent; `scale` is how many pixels of the given map make one cell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, ModuleType

import numpy as np
import torch
from scipy import ndimage

from .devices import double
from .texts import quoted


class UnknownRule(ValueError):
    """A rule for the threshold that is none of RULES."""

    def __init__(self, rule: str) -> None:
        super().__init__(f"There is no rule {quoted(rule)} for the threshold: choose one of {', '.join(RULES)}.")
        self.rule = rule


class NoShare(ValueError):
    """An amount that should be a share of the picture."""

    def __init__(self, amount: float) -> None:
        super().__init__(f"A share of the picture lies between 0 and 1, and this one is {amount:g}.")
        self.amount = amount


class MapNotFinite(ValueError):
    """A map that holds NaN or infinity."""

    def __init__(self) -> None:
        super().__init__(
            "The attribution holds numbers that are not finite: look for NaN in the latent or the model, or start "
            "ComfyUI in a higher precision."
        )


@dataclass(frozen=True)
class MaskSettings:
    """How a map becomes a mask. `amount` is c of `mean + c std`, or the share of `top share`; Otsu's rule has none.

    Raises UnknownRule or NoShare.
    """

    blur: float = 0.7
    rule: str = "otsu"
    amount: float = 0.8
    dilate: float = 0.0
    feather: float = 0.0
    invert: bool = False

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UnknownRule(self.rule)
        if self.rule == TOP_SHARE and not 0 <= self.amount <= 1:
            raise NoShare(self.amount)


def mask_of(maps: torch.Tensor, settings: MaskSettings, scale: float = 1.0) -> torch.Tensor:
    """The mask [B, h, w] in [0, 1] of the subjects' maps [S, B, h, w]; 1 is the subject.

    Every subject has its own threshold and the mask is their union. Raises MapNotFinite.
    """
    if not maps.isfinite().all():
        raise MapNotFinite
    smooth = torch.stack([blurred(part, settings.blur * scale) for part in maps])
    inside = torch.stack([part > RULES[settings.rule](part, settings.amount) for part in smooth]).any(0)
    mask = feathered(dilated(inside, settings.dilate * scale), settings.feather * scale)
    return 1 - mask if settings.invert else mask


def blurred(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of [B, h, w]; a sigma of 0 changes nothing."""
    reach = min(round(3 * sigma), min(maps.shape[-2:]) - 1)  # reflection needs as many cells
    if reach < 1:
        return maps
    return _filters().gaussian_blur2d(maps[:, None].float(), 2 * reach + 1, (sigma, sigma))[:, 0]


def _filters() -> ModuleType:
    """kornia.filters, which ComfyUI names among its packages but starts without."""
    try:
        import kornia.filters
    except ImportError as error:
        raise ImportError(
            "A blur needs the package kornia, which cannot be imported: run `pip install kornia` in ComfyUI's Python, "
            f"or set the blur to 0 ({error})."
        ) from error
    return kornia.filters


def mean_plus(maps: torch.Tensor, amount: float) -> torch.Tensor:
    """mean + c std over each map (arXiv 2408.16232, with c = 0.5)."""
    deviation, mean = torch.std_mean(maps, dim=(-2, -1), correction=0, keepdim=True)
    return mean + amount * deviation


def otsu(maps: torch.Tensor, amount: float = 0.0) -> torch.Tensor:
    """The threshold with most variance between its two sides (Otsu 1979, eq. 18), over all values, no histogram."""
    values = double(maps.flatten(-2)).sort(-1).values
    count = values.shape[-1]
    if count == 1:
        return maps
    below = torch.arange(1, count, dtype=torch.float64, device=values.device)
    left = values.cumsum(-1)[..., :-1] / below
    right = (values.sum(-1, keepdim=True) - left * below) / (count - below)
    between = below * (count - below) * (right - left).square()
    best = between.argmax(-1, keepdim=True)
    return values.gather(-1, best).to(maps)[..., None]


def top_share(maps: torch.Tensor, amount: float) -> torch.Tensor:
    """The value that `amount` of each map exceeds."""
    values = maps.flatten(-2).sort(-1).values
    count = round(amount * values.shape[-1])
    lowest = torch.full_like(values[..., :1], -torch.inf)  # for a share of 1
    return torch.cat((lowest, values), -1)[..., values.shape[-1] - count, None, None]


TOP_SHARE = "top share"
RULES: Mapping[str, Callable[[torch.Tensor, float], torch.Tensor]] = MappingProxyType(
    {"mean + c std": mean_plus, "otsu": otsu, TOP_SHARE: top_share}
)


def dilated(inside: torch.Tensor, radius: float) -> torch.Tensor:
    """Every cell within `radius` of one that is inside; bool [B, h, w]."""
    return distance_to(inside) <= radius if radius > 0 else inside


def feathered(inside: torch.Tensor, width: float) -> torch.Tensor:
    """1 inside, falling to 0 over `width` cells outside: the subject itself stays whole."""
    return (1 - distance_to(inside) / width).clamp(0, 1) if width > 0 else inside.float()


def distance_to(inside: torch.Tensor) -> torch.Tensor:
    """Distance of every cell to the nearest one inside, in cells; infinite where nothing is inside."""
    found = [
        np.asarray(ndimage.distance_transform_edt(~part)) if part.any() else np.full(part.shape, np.inf)
        for part in inside.cpu().numpy()
    ]
    return torch.from_numpy(np.stack(found)).float().to(inside.device)


def smoothed(maps: torch.Tensor, before: torch.Tensor | None, keep: float) -> torch.Tensor:
    """Moving average over windows: `keep` of what was, the rest of what is; a mask then does not jump."""
    return maps if before is None else torch.lerp(maps, before, keep)
