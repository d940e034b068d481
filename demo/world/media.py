"""Media: what a drawn scene is laid down with, whichever hand drew it. A palette and a texture with open parameters.

Colours are handled in OKLab (Ottosson 2020): a medium changes lightness, chroma and hue of what is there, and leaves
shapes to the hand.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .places import grid
from .textures import TEXTURES

PARAMETERS = ("hue", "hue_gap", "chroma", "key", "tint", "contrast", "frequency", "angle", "amount", "phase")


class Medium(NamedTuple):
    """Pairs are (low, high): the range that an open parameter moves in."""

    texture: str | None = None
    is_ink: bool = False  # two colours, the texture's share is the tone; else the tone itself varies with the texture
    dark: bool = False  # light marks on a dark ground
    chroma: tuple[float, float] = (1.0, 1.0)  # times the drawing's own
    tint: tuple[float, float] = (0.0, 0.0)  # chroma of the palette's hue, laid over everything
    contrast: tuple[float, float] = (1.0, 1.0)
    frequency: tuple[float, float] = (2.0, 3.0)  # texture cycles per unit; the picture is two units wide
    angle: tuple[float, float] = (0.0, 1.0)  # half turns
    amount: tuple[float, float] = (0.0, 0.0)  # lightness swing of the texture


PLAIN = "plain"
MEDIA = {
    PLAIN: Medium(),
    "comic": Medium("dots", chroma=(1.1, 1.4), contrast=(1.1, 1.3), frequency=(7.0, 10.0), amount=(0.07, 0.12)),
    "engraving": Medium("stripes", is_ink=True, chroma=(0.2, 0.4), tint=(0.01, 0.04), frequency=(11.0, 15.0)),
    "mosaic": Medium("tiles", chroma=(0.9, 1.2), frequency=(7.0, 10.0), amount=(0.05, 0.09)),
    "watercolor": Medium(
        "blobs", chroma=(0.4, 0.7), tint=(0.01, 0.04), contrast=(0.55, 0.75), frequency=(3.0, 5.0), amount=(0.08, 0.12)
    ),
    "woodcut": Medium("waves", is_ink=True, dark=True, chroma=(0.2, 0.4), tint=(0.02, 0.06), frequency=(10.0, 14.0)),
    "knitted": Medium(
        "zigzag", chroma=(0.8, 1.0), contrast=(0.8, 1.0), frequency=(8.0, 11.0), angle=(0.4, 0.6), amount=(0.08, 0.13)
    ),
    "brick": Medium("bricks", chroma=(0.8, 1.1), frequency=(6.0, 8.0), angle=(0.44, 0.56), amount=(0.06, 0.1)),
    "chalk": Medium("hatch", is_ink=True, dark=True, chroma=(0.1, 0.3), tint=(0.01, 0.03), frequency=(9.0, 12.0)),
}
HELD_OUT_MEDIA = ("brick", "chalk")
KNOWN_MEDIA = tuple(name for name in MEDIA if name not in HELD_OUT_MEDIA)


def laid(picture: Tensor, medium: Tensor, style: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1] in the media [B] with open parameters [B, 10]."""
    result = picture.clone()
    for index, one in enumerate(MEDIA.values()):
        rows = (medium == index).nonzero()[:, 0]
        if one.texture and len(rows):
            result[rows] = _laid(picture[rows], one, style[rows])
    return result


def _laid(picture: Tensor, medium: Medium, style: Tensor) -> Tensor:
    lab = oklab(picture)
    light, colours = lab[:, :1], lab[:, 1:] * _open(style, medium, "chroma")
    turn = 2 * torch.pi * raw(style, "hue")
    tint = _open(style, medium, "tint") * torch.cat([turn.cos(), turn.sin()], 1)
    swing = _texture(picture, medium, style)
    if medium.is_ink:
        light = _ink(light, swing, medium.dark)
    else:
        middle = 0.72
        light = middle + (light - middle) * _open(style, medium, "contrast") + _open(style, medium, "amount") * swing
    return srgb(torch.cat([light.clamp(0, 1), colours + tint], 1))


def _ink(light: Tensor, swing: Tensor, dark: bool) -> Tensor:
    """Two tones: the darker what was there, the more of each period is marked, on a dark ground in light."""
    ground, mark = (0.22, 0.92) if dark else (0.95, 0.25)
    return ground + (mark - ground) * torch.sigmoid(7 * (0.7 * swing + 4 * (0.68 - light)))


def _texture(picture: Tensor, medium: Medium, style: Tensor) -> Tensor:
    """Lightness swing in about [-1, 1], [B, 1, H, W]."""
    x, y = grid(len(picture), picture.shape[-1], picture.device)
    angle = torch.pi * _open(style, medium, "angle")[:, 0]
    frequency, phase = _open(style, medium, "frequency")[:, 0], 6.28 * raw(style, "phase")[:, 0]
    a = (x * angle.cos() + y * angle.sin()) * frequency + phase
    b = (y * angle.cos() - x * angle.sin()) * frequency + 1.7 * phase
    return TEXTURES[medium.texture](a, b)[:, None]


def raw(style: Tensor, name: str) -> Tensor:
    """An open parameter in [0, 1], [B, 1, 1, 1]."""
    return style[:, PARAMETERS.index(name), None, None, None]


def _open(style: Tensor, medium: Medium, name: str) -> Tensor:
    """An open parameter moved into its medium's range, [B, 1, 1, 1]."""
    low, high = getattr(medium, name)
    return low + (high - low) * raw(style, name)


TO_LONG_MEDIUM_SHORT = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
TO_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


def oklab(picture: Tensor) -> Tensor:
    """sRGB [B, 3, H, W] in [0, 1] to OKLab."""
    linear = torch.where(picture <= 0.04045, picture / 12.92, ((picture.clamp_min(0) + 0.055) / 1.055) ** 2.4)
    return mixed(mixed(linear, TO_LONG_MEDIUM_SHORT).clamp_min(0) ** (1 / 3), TO_LAB)


def srgb(lab: Tensor) -> Tensor:
    """OKLab [B, 3, H, W] to sRGB, clipped to [0, 1]."""
    back = torch.linalg.inv(torch.tensor(TO_LAB, dtype=torch.float64)).tolist()
    linear = mixed(mixed(lab, back) ** 3, torch.linalg.inv(torch.tensor(TO_LONG_MEDIUM_SHORT).double()).tolist())
    linear = linear.clamp(0, 1)
    return torch.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear.clamp_min(1e-6) ** (1 / 2.4) - 0.055)


def oklch(lightness: Tensor, chroma: Tensor, turn: Tensor) -> Tensor:
    """OKLCH [B, H, W], hue in turns, to sRGB [B, 3, H, W], clipped to [0, 1]."""
    angle = 2 * torch.pi * turn
    return srgb(torch.stack(torch.broadcast_tensors(lightness, chroma * angle.cos(), chroma * angle.sin()), 1))


def mixed(picture: Tensor, matrix: tuple | list) -> Tensor:
    """A 3 x 3 matrix on every pixel."""
    return torch.einsum("ij,bjhw->bihw", torch.tensor(matrix, dtype=picture.dtype, device=picture.device), picture)
