"""The square picture of a template: what goes in and what comes out, in a few tiles that are large enough to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from .contact import GAP, INK, PAPER
from .graph import Graph, Link
from .studio import Studio

SIDE, INSET, LETTERS = 512, 176, 26  # pixels: of the square, of a picture that goes in, of a tile's name
GIVEN = {
    "CBStyleFromPicture": ("image",),
    "CBKeepSubject": ("image",),
    "CBStyleAndStructure": ("style_image", "structure_image"),
}
"""The pictures that go into a job's node."""
ROWS = {"compare_layers_demo": (1, 2, 6), "style_structure_balanced_demo": (1, 2, 4)}
"""Of a comparison, the rows of its sheet that stand for all; of others the first, the middle one and the last."""


def square_of(studio: Studio, graph: Graph, result: Image.Image, rows: Sequence[int] | None = None) -> Image.Image:
    """A workflow's picture, made of results of its run; that result itself where it has neither a job nor a sheet."""
    for kind, names in GIVEN.items():
        if nodes := graph.all(kind):
            given = studio.shoot(graph, *(graph.input(nodes[0], name) for name in names))
            return with_insets(result, [pictures[0] for pictures in given])
    if sheets := graph.all("CBDemoSheet"):
        return in_four(_tiles(studio, graph, sheets[0], rows))
    return result


def _tiles(studio: Studio, graph: Graph, sheet: str, rows: Sequence[int] | None) -> dict[str, Image.Image]:
    """The reference and the first picture of three rows of a comparison's sheet, by name."""
    count = sum(name.startswith("row_") for name in graph.prompt[sheet]["inputs"])
    chosen = rows or (1, (count + 1) // 2, count)
    links: list[Link] = [graph.input(sheet, name) for name in ("reference", *(f"row_{row}" for row in chosen))]
    names = graph.input(sheet, "labels").splitlines()
    shown = studio.shoot(graph, *links)
    return {names[place]: pictures[0] for place, pictures in zip((0, *chosen), shown, strict=True)}


def with_insets(result: Image.Image, given: Sequence[Image.Image]) -> Image.Image:
    """What came out, and in its corners, framed, what went in."""
    page = _as_square(result, SIDE)
    for place, picture in enumerate(given):
        left = GAP if place == 0 else SIDE - GAP - INSET
        page.paste(PAPER, (left - GAP, 0, left + INSET + GAP, INSET + 2 * GAP))
        page.paste(_as_square(picture, INSET), (left, GAP))
    return page


def in_four(tiles: Mapping[str, Image.Image]) -> Image.Image:
    """Four pictures, two by two, each above its name."""
    page, half = Image.new("RGB", (SIDE, SIDE), PAPER), (SIDE - GAP) // 2
    pen = ImageDraw.Draw(page)
    for place, (name, picture) in enumerate(tiles.items()):
        left, top = (half + GAP) * (place % 2), (half + GAP) * (place // 2)
        small = _as_square(picture, half - LETTERS)
        page.paste(small, (left + LETTERS // 2, top))
        middle = (left + half / 2, top + half - LETTERS / 2)
        pen.text(middle, name, fill=INK, font=ImageFont.load_default(LETTERS - 8), anchor="mm")
    return page


def _as_square(picture: Image.Image, side: int) -> Image.Image:
    return picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
