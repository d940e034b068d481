"""All drawings of the world in one tensor, so that scenes are composed in batches; packed into one small file."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .sets import HANDS, ONE_COLOUR
from .subjects import SUBJECTS

SIDE = 192  # pixels of a drawing; in a picture of as many, one that is alone spans 111 to 161


class Atlas(NamedTuple):
    """Drawings of every subject by every hand, as bytes; a subject that a hand does not draw is empty."""

    drawings: Tensor  # [hands, subjects, 4, SIDE, SIDE]: colours times alpha, and alpha
    hands: tuple[str, ...]
    subjects: tuple[str, ...]

    def drawn_by(self, hand: str) -> list[int]:
        """Indices of the subjects that a hand draws."""
        there = self.drawings[self.hands.index(hand), :, 3].flatten(1).amax(1) > 0
        return there.nonzero()[:, 0].tolist()

    def to(self, device: str | torch.device) -> Atlas:
        return self._replace(drawings=self.drawings.to(device))

    def half(self) -> Atlas:
        """At half the resolution, for subjects that are drawn small."""
        small = [functional.avg_pool2d(hand.float(), 2).round().byte() for hand in self.drawings]
        return self._replace(drawings=torch.stack(small))


def draw_atlas(hands: tuple[str, ...] = tuple(HANDS), subjects: tuple[str, ...] = SUBJECTS, side: int = SIDE) -> Atlas:
    """From the fetched sets."""
    from .drawing import drawing_of, drawn, fitted, icons_of, names_of

    drawings = torch.zeros(len(hands), len(subjects), 4, side, side, dtype=torch.uint8)
    for row, hand in enumerate(hands):
        icons = icons_of(hand)
        names = names_of(icons)
        for column, subject in enumerate(subjects):
            if subject in names:
                picture = drawn(fitted(drawing_of(icons, subject)), side)
                drawings[row, column] = premultiplied(filled(picture) if hand in ONE_COLOUR else picture)
    return Atlas(drawings, hands, subjects)


def premultiplied(picture: Tensor) -> Tensor:
    """Colours times alpha, of bytes [4, H, W]: the mean of two such pixels is right where one is transparent."""
    colours, alpha = picture[:3].float(), picture[3:].float()
    return torch.cat([(colours * alpha / 255).round(), alpha]).byte()


def filled(picture: Tensor) -> Tensor:
    """A one-colour drawing whose enclosed parts are white paper instead of transparent, so that its mask is whole."""
    from scipy import ndimage  # here, since training needs no scipy

    alpha = picture[3].float() / 255
    whole = torch.from_numpy(ndimage.binary_fill_holes(picture[3].numpy() > 127))
    solid = torch.maximum(alpha, whole.float())
    paper = (255 * (1 - alpha / solid.clamp_min(1e-3))).clamp(0, 255)
    return torch.cat([paper.expand(3, -1, -1), 255 * solid[None]]).round().byte()


def pack(atlas: Atlas, path: Path) -> None:
    """Write one file: differences along rows, which are mostly zero, compressed."""
    values = atlas.drawings.numpy()
    steps = np.diff(values, axis=-2, prepend=np.zeros_like(values[..., :1, :]))
    about = {"hands": atlas.hands, "subjects": atlas.subjects, "shape": values.shape}
    head = json.dumps(about).encode()
    path.write_bytes(len(head).to_bytes(4, "little") + head + lzma.compress(steps.tobytes(), preset=6))


def unpack(path: Path) -> Atlas:
    content = path.read_bytes()
    size = int.from_bytes(content[:4], "little")
    about = json.loads(content[4 : 4 + size])
    steps = np.frombuffer(lzma.decompress(content[4 + size :]), dtype=np.uint8).reshape(about["shape"])
    values = np.cumsum(steps, axis=-2, dtype=np.uint8)
    return Atlas(torch.from_numpy(values), tuple(about["hands"]), tuple(about["subjects"]))
