"""Pictures of clusters: read from the disk when a run needs them, and only as large as it needs them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import comfy.utils
import numpy as np
import torch
from PIL import Image, ImageOps

from ...engine.texts import quoted

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif")
"""Endings of pictures; those that Pillow cannot read without help are refused by name, not passed over."""
MOST_PIXELS = 178_956_970  # where Pillow, too, takes a file for one that wants to fill the memory
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values that exchange width and height

Read = TypeVar("Read")


class Picture(Protocol):
    """A picture of a cluster."""

    @property
    def aspect(self) -> float:
        """Width over height."""
        ...

    def fitted(self, width: int, height: int) -> torch.Tensor:
        """The picture [height, width, 3] in 0..1, scaled to cover that size and cropped at the centre."""
        ...


@dataclass(frozen=True)
class HeldPicture:
    """A picture out of a node, [height, width, 3] in 0..1."""

    pixels: torch.Tensor

    @property
    def aspect(self) -> float:
        return self.pixels.shape[1] / self.pixels.shape[0]

    def fitted(self, width: int, height: int) -> torch.Tensor:
        channels_first = self.pixels.float().movedim(-1, 0)[None]
        return comfy.utils.common_upscale(channels_first, width, height, "lanczos", "center")[0].movedim(0, -1)


@dataclass(frozen=True)
class StoredPicture:
    """A picture in a file, of which only the header was read; it takes no memory until it is fitted."""

    file: Path
    aspect: float

    def fitted(self, width: int, height: int) -> torch.Tensor:
        """Raises ValueError when the file cannot be read any more, or not to its end."""
        pixels = _reading(self.file, lambda image: np.asarray(_fitted(image, (width, height)), dtype=np.float32))
        return torch.from_numpy(pixels / 255)


def held(image: torch.Tensor) -> HeldPicture:
    """A picture of an IMAGE, [height, width, channels]: grey is repeated, alpha is left out as VAE Encode leaves it.

    Raises ValueError, that says what the image is, for what cannot be a picture.
    """
    if image.ndim != 3 or not 1 <= image.shape[-1] <= 4 or not image.numel() or not image.is_floating_point():
        raise ValueError(
            f"is a tensor of shape {tuple(image.shape)} and type {str(image.dtype).removeprefix('torch.')}, not "
            "[height, width, channels] with 1 to 4 channels of floats"
        )
    if not bool(torch.isfinite(image).all()):
        raise ValueError("holds NaN or infinite values")
    return HeldPicture(image[..., :3] if image.shape[-1] > 2 else image[..., :1].expand(-1, -1, 3))


def stored(file: Path) -> StoredPicture:
    """A picture by its header. Raises ValueError when that is none, or when the picture is too large to read."""
    return StoredPicture(file, _reading(file, _aspect))


class _Unfit(Exception):
    """What is wrong with a picture that can be read, and the cure."""


def _reading(file: Path, read: Callable[[Image.Image], Read]) -> Read:
    """What `read` makes of the opened picture. Raises ValueError with the file's name whatever is wrong with it."""
    name = quoted(f"{file.parent.name}/{file.name}")
    try:
        with Image.open(file) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            return read(image)
    except _Unfit as unfit:
        raise ValueError(f"{name} {unfit}.") from unfit
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} has more than {MOST_PIXELS // 10**6} million pixels: make it smaller or remove it."
        ) from error
    except Exception as error:  # decoders raise whatever they meet: OSError, SyntaxError, struct.error, MemoryError ...
        raise ValueError(
            f"{name} is not a picture that can be read (damaged, or of a format that this Pillow does not know): save "
            "it as PNG or JPEG, or remove it."
        ) from error


def _aspect(image: Image.Image) -> float:
    aspect = image.width / image.height
    return 1 / aspect if _lies_sideways(image) else aspect


def _lies_sideways(image: Image.Image) -> bool:
    return image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _SIDEWAYS  # Pillow itself turns those


def _fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The upright picture in RGB, scaled to cover `size` and cropped at the centre."""
    image.draft(None, _covering(image, size))  # a JPEG is decoded at the next larger half, quarter or eighth
    return ImageOps.fit(in_rgb(ImageOps.exif_transpose(image)), size, Image.Resampling.LANCZOS)


def _covering(image: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
    """The size of the whole picture, as it lies in the file, when scaled to cover `size`."""
    width, height = reversed(size) if _lies_sideways(image) else size
    scale = max(width / image.width, height / image.height)
    return math.ceil(image.width * scale), math.ceil(image.height * scale)


def in_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode in 8-bit RGB; what is transparent shows white paper, and 16 bits become 8."""
    if image.mode.startswith("I"):
        return _from_integers(np.asarray(image, dtype=np.int64))
    if image.mode == "F":
        return _from_floats(np.asarray(image, dtype=np.float64))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image.convert("RGBA"))
        return paper.convert("RGB")
    return image.convert("RGB")


def _from_integers(grey: np.ndarray) -> Image.Image:
    """Grey of 16 bits; Pillow alone would cut it off at 255."""
    if grey.min() < 0 or grey.max() > 65535:
        raise _Unfit("has 32 bits a pixel: save it with 8 or 16")
    return Image.fromarray((grey / 257).round().astype(np.uint8)).convert("RGB")


def _from_floats(grey: np.ndarray) -> Image.Image:
    if not (grey.min() >= 0 and grey.max() <= 1):
        raise _Unfit("holds floats outside 0 to 1: save it with 8 or 16 bits a channel")
    return Image.fromarray((grey * 255).round().astype(np.uint8)).convert("RGB")
