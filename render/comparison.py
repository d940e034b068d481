"""Two rankings held against each other: a chart over noise levels, and a report."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from PIL import Image, ImageDraw, ImageFont

from ..engine.comparing import Comparison
from ..engine.texts import counted

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1024, 460, 70, 30, 96, 62
BACKGROUND, PANEL, GRID = (19, 21, 28), (30, 33, 43), (58, 63, 80)
INK, FAINT = (236, 238, 245), (148, 154, 172)
MEASURES = {
    "spearman": ("Spearman", (255, 211, 110)),
    "kendall": ("Kendall", (116, 190, 255)),
    "overlap": ("overlap", (249, 142, 92)),
}
STYLES = (None, (14, 8), (3, 6))  # of the lines of the first feature, the second and the third: whole, dashed, dotted
FEATURE_NAMES = {"q": "queries", "k": "keys", "v": "values"}
SURE, LOOSE = 0.9, 0.6  # mean Spearman from which rankings are called the same, and below which they are not


def comparison_report(found: Comparison, names: Sequence[str]) -> str:
    """What the agreement means, and a line of figures for each feature."""
    mean = float(found.spearman.mean())
    verdict = "the same layers come first" if mean >= SURE else "they partly agree" if mean >= LOOSE else "they differ"
    levels = counted(len(found.sigmas), "noise level")
    lines = [f"{names[0]} and {names[1]}: {verdict} (mean Spearman {mean:.2f} over {levels})."]
    for index, feature in enumerate(found.features):
        figures = (tensor[index] for tensor in (found.spearman, found.kendall, found.overlap))
        spearman, kendall, overlap = figures
        worst = int(spearman.argmin())
        lines.append(
            f"{feature}: Spearman {float(spearman.mean()):.2f}, Kendall {float(kendall.mean()):.2f}, "
            f"{float(overlap.mean()):.0%} of the first {found.count} layers in common (by chance {found.chance:.0%}); "
            f"least alike at sigma {float(found.sigmas[worst]):.2f} (Spearman {float(spearman[worst]):.2f})."
        )
    return "\n".join(lines)


def comparison_chart(found: Comparison, names: Sequence[str]) -> Image.Image:
    """Agreement upward from -1 or 0 to 1, noise falling to the right; a line for each measure and feature."""
    image = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
    pen = ImageDraw.Draw(image)
    low = -1.0 if min(float(found.spearman.min()), float(found.kendall.min())) < 0 else 0.0
    pen.rectangle((LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM), fill=PANEL)
    pen.text((LEFT, 14), f"{names[0]} and {names[1]}"[:110], INK, _font(18))
    _axes(pen, found, low)
    _key(pen, found)
    for measure, (_, colour) in MEASURES.items():
        for index in range(len(found.features)):
            heights = getattr(found, measure)[index]
            _line(pen, [_point(found, low, level, height) for level, height in enumerate(heights)], colour, index)
    return image


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _point(found: Comparison, low: float, level: int, height: torch.Tensor | float) -> tuple[float, float]:
    room = WIDTH - LEFT - RIGHT
    x = LEFT + room * ((level + 0.5) / len(found.sigmas))
    return x, HEIGHT - BOTTOM - (float(height) - low) / (1 - low) * (HEIGHT - TOP - BOTTOM)


def _axes(pen: ImageDraw.ImageDraw, found: Comparison, low: float) -> None:
    for mark in (1.0, 0.5, 0.0, -0.5, -1.0):
        if mark >= low:
            _, y = _point(found, low, 0, mark)
            pen.line((LEFT, y, WIDTH - RIGHT, y), fill=GRID)
            pen.text((LEFT - 10, y), f"{mark:g}", FAINT, _font(13), anchor="rm")
    step = -(-len(found.sigmas) // 12)
    for level in range(0, len(found.sigmas), step):
        x, _ = _point(found, low, level, 0)
        pen.text((x, HEIGHT - BOTTOM + 10), f"{float(found.sigmas[level]):.3g}", FAINT, _font(12), anchor="mt")
    pen.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 24), "noise level sigma", FAINT, _font(13), anchor="mt")


def _key(pen: ImageDraw.ImageDraw, found: Comparison) -> None:
    x = float(LEFT)
    for words, colour in MEASURES.values():
        name = f"{words} of the first {found.count}" if words == "overlap" else words
        x = _entry(pen, x, name, colour, 0)
    for index, feature in enumerate(found.features):
        x = _entry(pen, x, FEATURE_NAMES[feature], INK, index)


def _entry(pen: ImageDraw.ImageDraw, x: float, words: str, colour: tuple[int, ...], index: int) -> float:
    _line(pen, [(x, 66), (x + 34, 66)], colour, index)
    pen.text((x + 42, 66), words, INK, _font(14), anchor="lm")
    return x + 66 + pen.textlength(words, _font(14))


def _line(pen: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], colour: tuple[int, ...], index: int) -> None:
    dash = STYLES[index]
    if len(points) == 1 or dash is None:
        pen.line([*points], fill=colour, width=3)
    else:
        for start, end in pairwise(points):
            _dashed(pen, start, end, colour, dash)
    if len(points) != 2 or dash is None:
        for x, y in points:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)


def _dashed(
    pen: ImageDraw.ImageDraw,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: tuple[int, ...],
    dash: tuple[int, int],
) -> None:
    length = max(1.0, ((end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2) ** 0.5)
    drawn, gap = dash
    for at in range(0, int(length), drawn + gap):
        ends = at / length, min(1.0, (at + drawn) / length)
        (x0, y0), (x1, y1) = ([a + (b - a) * share for a, b in zip(start, end, strict=True)] for share in ends)
        pen.line((x0, y0, x1, y1), fill=colour, width=3)
