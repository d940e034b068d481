"""Makes the two pictures that the registry shows of the pack: python devtools/run.py devtools/registry.py

docs/icon.png (400 x 400) and docs/banner.png (21:9) come from the figure of Suggest Style Amount, which `dev.py
pictures` makes: the picture that gives the style, the prompt without it, and with more and more of it.
"""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from devtools import face, files
from devtools.comfyui import ROOT
from devtools.contact import PAPER

ICON, BANNER = (400, 400), (1260, 540)
TILES, SHOWN = 7, (0, 1, 3)  # of the strip; of them on the banner: the style, without it, with it
EDGE = 24


def main() -> None:
    with Image.open(face.figure_of("CBSuggestAmount")) as strip:
        tiles = [_tile(strip.convert("RGB"), place) for place in SHOWN]
    _write("icon", tiles[-1].resize(ICON, Image.Resampling.LANCZOS))
    banner, side = Image.new("RGB", BANNER, PAPER), (BANNER[0] - 4 * EDGE) // 3
    for place, tile in enumerate(tiles):
        picture = tile.resize((side, side), Image.Resampling.LANCZOS)
        banner.paste(picture, (EDGE + place * (side + EDGE), (BANNER[1] - side) // 2))
    _write("banner", banner)


def _tile(strip: Image.Image, place: int) -> Image.Image:
    """One of the squares of a strip that fill its height."""
    left = round(place * (strip.width - strip.height) / (TILES - 1))
    return strip.crop((left, 0, left + strip.height, strip.height))


def _write(name: str, picture: Image.Image) -> None:
    data = BytesIO()
    picture.quantize(256).save(data, "PNG", optimize=True)
    files.replace(ROOT / "docs" / f"{name}.png", data.getvalue())


if __name__ == "__main__":
    main()
