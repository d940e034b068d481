"""Drawings as pixels: what a set's archive holds, drawn by resvg, alpha being the subject's exact mask."""

from __future__ import annotations

import io
import json
import tarfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .fetch import fetched
from .sets import ICON_FAMILIES, SETS

NO_RENDERER = (
    "Drawings are rendered by resvg, which is not installed in this Python: `python dev.py train` and `python dev.py "
    "test` install it, or run `pip install resvg-py`."
)


@cache
def icons_of(name: str) -> dict[str, Any]:
    """A fetched set: its `icons`, `aliases` and default sizes."""
    return read_icons(fetched(SETS[name]))


def read_icons(archive: Path) -> dict[str, Any]:
    with tarfile.open(archive) as files:
        return json.load(files.extractfile("package/icons.json"))


def names_of(icons: dict[str, Any]) -> set[str]:
    """All names that can be drawn, aliases among them."""
    return set(icons["icons"]) | set(icons.get("aliases", {}))


class Drawing(NamedTuple):
    """A vector drawing: SVG elements, and the square of their plane that is seen."""

    body: str
    left: float
    top: float
    side: float

    def svg(self, size: int) -> str:
        """A document of `size` pixels; resvg rounds the sizes of one that does not state them."""
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{size}" height="{size}" viewBox="{self.left} {self.top} {self.side} {self.side}">{self.body}</svg>'
        )


def drawing_of(icons: dict[str, Any], name: str, ink: str = "#000000") -> Drawing:
    """One drawing of a set, centred in a square; what has no colour of its own is drawn in `ink`."""
    alias = icons.get("aliases", {}).get(name, {})
    icon = icons["icons"][alias.get("parent", name)]
    left, top, width, height = (
        icon.get(part, icons.get(part, usual))
        for part, usual in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    body = icon["body"].replace("currentColor", ink)
    if alias.get("hFlip"):
        body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
    side = max(width, height)
    return Drawing(body, left - (side - width) / 2, top - (side - height) / 2, side)


def drawn(drawing: Drawing, size: int) -> Tensor:
    """Bytes [4, size, size]: red, green, blue (not premultiplied) and alpha."""
    try:
        import resvg_py
    except ImportError:
        raise ValueError(NO_RENDERER) from None
    png = bytes(resvg_py.svg_to_bytes(svg_string=drawing.svg(size), skip_system_fonts=True))
    return torch.from_numpy(np.array(Image.open(io.BytesIO(png)).convert("RGBA"))).movedim(-1, 0).contiguous()


def fitted(drawing: Drawing, margin: float = 0.02, draft: int = 128) -> Drawing:
    """The same drawing seen so closely that its visible part fills the square but for a margin on each side."""
    seen = drawn(drawing, draft)[3] > 0
    rows, columns = seen.any(1).nonzero()[:, 0], seen.any(0).nonzero()[:, 0]
    if not len(rows):
        raise ValueError("A drawing is empty: its SVG shows nothing.")
    top, bottom, left, right = (int(end) for end in (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1))
    pixel = drawing.side / draft
    side = max(bottom - top, right - left) * pixel * (1 + 2 * margin)
    x, y = drawing.left + (left + right) / 2 * pixel, drawing.top + (top + bottom) / 2 * pixel
    return Drawing(drawing.body, x - side / 2, y - side / 2, side)


def on_ground(drawings: Tensor, ground: float = 1.0) -> Tensor:
    """Drawings [..., 4, H, W] as pictures [..., 3, H, W] in [0, 1] on an even ground."""
    shown = drawings.float() / 255
    colours, alpha = shown[..., :3, :, :], shown[..., 3:, :, :]
    return colours * alpha + ground * (1 - alpha)


def icon_subjects(family: str) -> list[str]:
    """What all six hands of an icon family draw, in order of the alphabet."""
    names, hands = names_of(icons_of(family)), ICON_FAMILIES[family].values()
    drawn_by = (
        {name[len(b) : len(name) - len(e)] for name in names if name.startswith(b) and name.endswith(e)}
        for b, e in hands
    )
    return sorted(set.intersection(*drawn_by))


def icon_series(family: str, subjects: list[str], size: int = 128) -> dict[str, Tensor]:
    """Purely geometric clusters: hand -> pictures [N, 3, size, size] in [0, 1] of the same subjects, black on white."""
    if family not in ICON_FAMILIES:
        raise ValueError(f"There is no icon family '{family}': choose from {', '.join(ICON_FAMILIES)}.")
    icons = icons_of(family)
    return {
        hand: on_ground(torch.stack([drawn(drawing_of(icons, f"{before}{name}{behind}"), size) for name in subjects]))
        for hand, (before, behind) in ICON_FAMILIES[family].items()
    }
