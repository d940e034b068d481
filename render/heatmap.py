"""Draws a sensitivity profile: layers along, noise levels down, one panel for each feature, bright = sensitive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from textwrap import shorten

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..engine.layers import KINDS, UNET_BLOCKS, LayerId, titled_stretches
from ..engine.profile import SensitivityProfile
from ..engine.texts import counted

WIDTH = 1024
NAMED = 8  # layers called by name above a panel
LONGEST_TITLE = 100  # characters; what a profile measures is anybody's text

BACKGROUND, PANEL, BLANK = (19, 21, 28), (30, 33, 43), (38, 42, 54)
INK, FAINT, ACCENT = (236, 238, 245), (148, 154, 172), (255, 211, 110)
FEATURE_NAMES = {"q": "Query", "k": "Key", "v": "Value"}

# From unmoved to sensitive. Lightness climbs evenly, so equal steps of score look equal, also without colour vision.
ANCHORS = ("#161a3a", "#43307f", "#8d3a8f", "#d8527c", "#f98e5c", "#ffd36e", "#fffbe0")

MARGIN, AXIS, BAR, GAP = 20, 62, 74, 3
HEADER, NAMES, ROW, FOOTER = 62, 66, 20, 52


def draw(profile: SensitivityProfile, title: str) -> Image.Image:
    """The heat map, WIDTH pixels wide; cells whose scores are NaN stay blank."""
    plan = _plan(profile)
    image = Image.new("RGB", (WIDTH, plan.height), BACKGROUND)
    canvas = _Canvas(ImageDraw.Draw(image), image)
    _title(canvas, profile, title)
    low, high = score_range(profile.scores)
    for index, feature in enumerate(profile.features):
        top = plan.panel_top(index)
        _panel(canvas, plan, profile, index, top, (low, high))
        _caption(canvas, plan, profile, feature, index, top)
    _block_axis(canvas, plan, plan.panel_top(len(profile.features) - 1) + plan.rows_height + 8)
    _colour_bar(canvas, plan, (low, high))
    return image


@dataclass(frozen=True)
class _Plan:
    """Where everything goes, in pixels."""

    blocks: tuple[tuple[str, tuple[int, ...]], ...]  # name and column numbers of each block
    left: tuple[int, ...]  # of each column, and the right end of the last
    right: tuple[int, ...]
    levels: int
    panels: int

    @property
    def rows_height(self) -> int:
        return ROW * self.levels

    @property
    def height(self) -> int:
        return self.panel_top(self.panels - 1) + self.rows_height + FOOTER

    def panel_top(self, index: int) -> int:
        """Where the first row of a panel starts."""
        return HEADER + (index + 1) * NAMES + index * self.rows_height


@dataclass(frozen=True)
class _Canvas:
    draw: ImageDraw.ImageDraw
    image: Image.Image

    def text(self, at: tuple[float, float], text: str, size: float, fill: tuple[int, ...], anchor: str) -> None:
        self.draw.text(at, text, fill=fill, font=ImageFont.load_default(size), anchor=anchor)

    def upright(self, centre: float, bottom: float, text: str, size: float, fill: tuple[int, ...]) -> None:
        """Text that reads upward, its start at `bottom`."""
        font = ImageFont.load_default(size)
        left, top, right, end = font.getbbox(text)
        strip = Image.new("RGBA", (round(right - left) + 2, round(end - top) + 2))
        ImageDraw.Draw(strip).text((1 - left, 1 - top), text, fill=fill, font=font)
        strip = strip.rotate(90, expand=True)
        self.image.paste(strip, (round(centre - strip.width / 2), round(bottom - strip.height)), strip)


def _plan(profile: SensitivityProfile) -> _Plan:
    blocks = tuple(_blocks(profile.layers))
    start = MARGIN + AXIS
    room = WIDTH - BAR - MARGIN - start
    gap = min(GAP, room // (4 * len(blocks)))  # many blocks must leave room for their columns
    room -= gap * (len(blocks) - 1)
    edges = [start + round(column * room / len(profile.layers)) for column in range(len(profile.layers) + 1)]
    shift = [gap * number for number, (_, columns) in enumerate(blocks) for _ in columns]
    return _Plan(
        blocks=blocks,
        left=tuple(edge + more for edge, more in zip(edges, shift, strict=False)),
        right=tuple(edge + more for edge, more in zip(edges[1:], shift, strict=True)),
        levels=len(profile.sigmas),
        panels=len(profile.features),
    )


def _blocks(layers: Sequence[LayerId]) -> list[tuple[str, tuple[int, ...]]]:
    first, found = 0, []
    for title, count in titled_stretches(layers):
        found.append((title, tuple(range(first, first + count))))
        first += count
    return found


def _title(canvas: _Canvas, profile: SensitivityProfile, title: str) -> None:
    canvas.text((MARGIN, 18), shorten(title, LONGEST_TITLE, placeholder="..."), 20, INK, "lt")
    detail = f"{len(profile.layers)} self-attention layers, {counted(len(profile.sigmas), 'noise level')}"
    by_effect = "gain" in str(profile.provenance.get("scale", ""))  # as Measure Layers notes it
    bright = "bring the style by themselves" if by_effect else "tell the clusters apart"
    canvas.text((MARGIN, 44), f"{detail}. Bright layers {bright}.", 13, FAINT, "lt")


def score_range(scores: torch.Tensor) -> tuple[float, float]:
    """Scores that the colours span; outliers beyond the outer percent saturate."""
    finite = scores[scores.isfinite()]
    if not len(finite):
        return 0.0, 1.0
    low, high = torch.quantile(finite, torch.tensor([0.01, 0.99], dtype=finite.dtype)).tolist()
    return low, max(high, low + 1e-6)


def _panel(
    canvas: _Canvas, plan: _Plan, profile: SensitivityProfile, index: int, top: int, span: tuple[float, float]
) -> None:
    colours = _coloured(profile.scores[index], span)
    for level, sigma in enumerate(profile.sigmas.tolist()):
        upper = top + level * ROW
        canvas.text((plan.left[0] - 8, upper + ROW / 2), _short(sigma), 12, FAINT, "rm")
        for column, (left, right) in enumerate(zip(plan.left, plan.right, strict=True)):
            canvas.draw.rectangle((left, upper, right - 1, upper + ROW - 1), fill=colours[level][column])
    canvas.upright(MARGIN + 6, top + plan.rows_height / 2 + 44, "noise level sigma", 12, FAINT)


def _coloured(scores: torch.Tensor, span: tuple[float, float]) -> list[list[tuple[int, ...]]]:
    """Colours [T][L]; blank where there is no score yet."""
    rgb = palette()[shades(scores, span)].tolist()
    known = scores.isfinite().tolist()
    return [
        [tuple(cell) if there else BLANK for cell, there in zip(row, known_row, strict=True)]
        for row, known_row in zip(rgb, known, strict=True)
    ]


def shades(scores: torch.Tensor, span: tuple[float, float]) -> torch.Tensor:
    """Places of scores in the palette, same shape, 0 (not sensitive) to 255; beyond `span` they saturate, NaN is 0."""
    low, high = span
    return (((high - scores) / (high - low)).clamp(0, 1).nan_to_num(0) * 255).round().long()


def _short(sigma: float) -> str:
    return f"{sigma:.1f}" if sigma >= 1 else f"{sigma:.2f}"


def _caption(canvas: _Canvas, plan: _Plan, profile: SensitivityProfile, feature: str, index: int, top: int) -> None:
    """The feature's name, and the most sensitive layers by name with a tick above their column."""
    canvas.text((MARGIN, top - 8), FEATURE_NAMES[feature], 17, INK, "ls")
    for column in _most_sensitive(profile.scores[index]):
        centre = (plan.left[column] + plan.right[column]) / 2
        canvas.draw.polygon(_triangle(centre, top - 3, 3.5), fill=ACCENT)
        canvas.upright(centre, top - 10, str(profile.layers[column]), 11, ACCENT)


def _most_sensitive(scores: torch.Tensor) -> list[int]:
    known = scores[scores.isfinite().all(-1)]
    if not len(known):
        return []
    return known.mean(0).argsort(stable=True)[:NAMED].tolist()


def _triangle(centre: float, tip: float, size: float) -> list[tuple[float, float]]:
    return [(centre - size, tip - size * 1.4), (centre + size, tip - size * 1.4), (centre, tip)]


def _block_axis(canvas: _Canvas, plan: _Plan, top: float) -> None:
    """Block names under their columns, and below them which part of the network they belong to."""
    for name, columns in plan.blocks:
        canvas.text(((plan.left[columns[0]] + plan.right[columns[-1]]) / 2, top), name, 12, INK, "mt")
    for part, blocks in groupby(plan.blocks, key=lambda block: block[0][0]):
        columns = [column for _, columns in blocks for column in columns]
        left, right, line = plan.left[columns[0]], plan.right[columns[-1]], top + 18
        canvas.draw.line((left, line, right, line), fill=FAINT)
        canvas.text(((left + right) / 2, line + 5), _part_title(KINDS[part]), 12, FAINT, "mt")


def _part_title(block: str) -> str:
    return block if block in UNET_BLOCKS else {"block": "blocks"}.get(block, f"{block} blocks")


def _colour_bar(canvas: _Canvas, plan: _Plan, span: tuple[float, float]) -> None:
    top = plan.panel_top(0)
    bottom = plan.panel_top(plan.panels - 1) + plan.rows_height
    left, right = plan.right[-1] + 16, plan.right[-1] + 30
    colours = palette().tolist()
    for y in range(top, bottom):
        colour = colours[round(255 * (bottom - 1 - y) / max(1, bottom - 1 - top))]
        canvas.draw.line((left, y, right, y), fill=tuple(colour))
    low, high = span
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = top + share * (bottom - top)
        canvas.text((right + 6, y), f"{low + share * (high - low):.2f}", 12, FAINT, "lm")
    middle = (left + right) / 2
    canvas.text((middle + 8, top - 40), "more sensitive", 12, INK, "ms")
    canvas.draw.line((middle, top - 6, middle, top - 26), fill=INK, width=2)
    head = [(middle - 4, top - 25), (middle + 4, top - 25), (middle, top - 33)]
    canvas.draw.polygon(head, fill=INK)
    canvas.text((middle + 8, bottom + 18), "score", 12, FAINT, "ms")


def palette() -> torch.Tensor:
    """256 colours [256, 3] in 0..255 through the anchors, straight lines in Oklab at an even rise of lightness."""
    anchors = np.array([[int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)] for colour in ANCHORS])
    lab = np.cbrt(_linear(anchors) @ _TO_CONES.T) @ _TO_OKLAB.T
    lightness = np.linspace(lab[0, 0], lab[-1, 0], 256)
    even = np.stack([np.interp(lightness, lab[:, 0], lab[:, axis]) for axis in range(3)], -1)
    rgb = (even @ np.linalg.inv(_TO_OKLAB).T) ** 3 @ np.linalg.inv(_TO_CONES).T
    return torch.from_numpy((_gamma(rgb.clip(0, 1)) * 255).round().astype(np.int64))


def _linear(srgb: np.ndarray) -> np.ndarray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _gamma(linear: np.ndarray) -> np.ndarray:
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


# Ottosson, "A perceptual color space for image processing" (2020): linear sRGB to cones, their cube roots to Oklab.
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
