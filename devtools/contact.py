"""Lays pictures and maps out for people: contact sheets, and small multiples of what a gate lets through."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import zip_longest

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT = "white", (38, 42, 48), (110, 116, 126)
GAP, LINE, SIZE = 6, 24, 16

Row = tuple[str, Sequence[Image.Image | None]]


def sheet(rows: Sequence[Row], heads: Sequence[str] = (), title: str = "", tile: int = 150) -> Image.Image:
    """Rows of pictures `tile` pixels high behind their labels, under the columns' heads; None leaves a gap."""
    scaled = [(label, [picture and _as_high(picture, tile) for picture in pictures]) for label, pictures in rows]
    columns = list(zip_longest(*(pictures for _, pictures in scaled)))
    widths = [max(picture.width for picture in column if picture) for column in columns]
    left = max(_widest(label) for label, _ in rows)
    left += 2 * GAP if left else 0
    top = LINE * (bool(title) + bool(heads))
    size = (max(left + sum(widths) + GAP * (len(widths) - 1), _widest(title)), top + len(rows) * (tile + GAP) - GAP)
    page = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(SIZE)
    pen.text((0, 0), title, fill=INK, font=font)
    starts = [left + sum(widths[:column]) + GAP * column for column in range(len(widths))]
    for start, width, head in zip(starts, widths, heads, strict=False):
        pen.text((start + width / 2, top - LINE), head, fill=INK, font=font, anchor="ma")
    for number, (label, pictures) in enumerate(scaled):
        upper = top + number * (tile + GAP)
        pen.multiline_text((0, upper + tile / 2), label, fill=INK, font=font, anchor="lm")
        for start, picture in zip(starts, pictures, strict=False):
            if picture:
                page.paste(picture, (start, upper))
    return page


def stacked(pictures: Sequence[Image.Image], width: int) -> Image.Image:
    """Pictures under one another, all `width` pixels wide."""
    heights = [round(picture.height * width / picture.width) for picture in pictures]
    page = Image.new("RGB", (width, sum(heights) + GAP * (len(heights) - 1)), PAPER)
    upper = 0
    for picture, height in zip(pictures, heights, strict=True):
        page.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (0, upper))
        upper += height + GAP
    return page


def parts(picture: Image.Image, count: int) -> list[Image.Image]:
    """A picture cut into `count` of equal width."""
    width = picture.width // count
    return [picture.crop((width * number, 0, width * (number + 1), picture.height)) for number in range(count)]


def _as_high(picture: Image.Image, height: int) -> Image.Image:
    return picture.resize((round(picture.width * height / picture.height), height), Image.Resampling.LANCZOS)


def _widest(text: str) -> int:
    font = ImageFont.load_default(SIZE)
    return round(max((font.getlength(line) for line in text.splitlines()), default=0))


def grids(
    panels: Mapping[str, np.ndarray],
    names: Sequence[tuple[float, str]],
    below: Sequence[tuple[float, str]],
    axis: str = "",
    columns: int = 3,
    size: tuple[float, float] = (2.2, 2.7),
    numbers: bool = False,
) -> Image.Image:
    """Weights [rows, columns] in 0..1 as dark cells, a panel of `size` inches under each title.

    `names` (left) and `below` label places on the axes; `numbers` writes each weight into its cell, in percent.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    down = -(-len(panels) // columns)
    across = min(columns, len(panels))
    figure, axes = pyplot.subplots(
        down, across, figsize=(0.9 + size[0] * across, size[1] * down), dpi=100, sharex=True, sharey=True, squeeze=False
    )
    for place in axes.flat[len(panels) :]:
        place.set_axis_off()
    for place, (title, weights) in zip(axes.flat, panels.items(), strict=False):
        place.imshow(weights, cmap="Greens", vmin=0, vmax=1.15, aspect="auto", interpolation="nearest")
        place.set_title(title, fontsize=11)
        place.set_yticks([at for at, _ in names], [name for _, name in names], fontsize=9)
        place.set_xticks([at for at, _ in below], [name for _, name in below], fontsize=9)
        place.tick_params(length=0)
        for (row, column), value in np.ndenumerate(weights) if numbers else ():
            place.text(column, row, f"{value:.0%}", ha="center", va="center", fontsize=9)
    if axis:
        figure.supxlabel(axis, fontsize=10)
    figure.tight_layout()
    data = io.BytesIO()
    figure.savefig(data, format="png")
    pyplot.close(figure)
    return Image.open(data).convert("RGB")
