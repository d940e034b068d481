"""Scenes of the demo world: one subject or two with a relation, drawn by a hand, in a place, in a medium.

A batch is specified by `Specs` and composed as one tensor program on any device; its captions and masks are true by
construction. A *style* is what the scenes of a couple share: hand, medium, colour and the open parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .atlas import Atlas
from .media import KNOWN_MEDIA, MEDIA, PARAMETERS, PLAIN, laid, oklch, raw
from .places import PHRASES, PLACES, SLOTS, grid, soft
from .sets import HANDS, KNOWN_HANDS, ONE_COLOUR
from .subjects import KNOWN_SUBJECTS, UNCOUNTED, WORDS, rows_of

SIZE = 192
NOTHING = -1
PLACE_NAMES = tuple(PLACES)
RELATIONS = ("left of", "right of", "above", "below")  # where the first subject is
WHERE = ((-0.48, 0.0), (0.48, 0.0), (0.0, -0.48), (0.0, 0.48))  # the first subject's centre, the second's mirrored
COLOURS = {  # hue in turns of OKLab, lightness and chroma of the paper of one-colour hands
    "white": (0.0, 0.97, 0.0),
    "red": (0.075, 0.62, 0.2),
    "orange": (0.165, 0.75, 0.16),
    "yellow": (0.275, 0.9, 0.16),
    "green": (0.39, 0.72, 0.17),
    "blue": (0.72, 0.62, 0.17),
    "purple": (0.84, 0.6, 0.18),
    "pink": (0.985, 0.78, 0.14),
}
COLOUR_NAMES = tuple(COLOURS)
DIPTYCH = "two pictures"


@dataclass
class Specs:
    """What a batch of B pictures shows. Integer tensors index the name tuples; the rest is in [0, 1]."""

    subject: Tensor  # [B, 2]; the second is NOTHING where there is but one
    relation: Tensor  # [B]; of the first subject to the second
    hand: Tensor  # [B]
    colour: Tensor  # [B]; of one-colour hands' paper, NOTHING with all others
    medium: Tensor  # [B]
    place: Tensor  # [B]; NOTHING is an even ground
    style: Tensor  # [B, 10], see media.PARAMETERS
    pose: Tensor  # [B, 2, 5]: x, y, size, tilt, mirrored
    layout: Tensor  # [B, 6]: where the place's parts are

    def __len__(self) -> int:
        return len(self.hand)

    def __getitem__(self, rows: Tensor | slice) -> Specs:
        return Specs(*(getattr(self, f.name)[rows] for f in fields(self)))

    def to(self, device: str | torch.device) -> Specs:
        return Specs(*(getattr(self, f.name).to(device) for f in fields(self)))

    def in_style_of(self, other: Specs) -> Specs:
        """The same scenes in another batch's styles."""
        return replace(self, hand=other.hand, medium=other.medium, colour=other.colour, style=other.style)

    def showing(self, other: Specs, where: Tensor) -> Specs:
        """With the subjects, relation and place of another batch in the rows `where`; poses and layouts stay."""
        mine = {"subject": where[:, None], "relation": where, "place": where}
        shown = {name: torch.where(rows, getattr(other, name), getattr(self, name)) for name, rows in mine.items()}
        return replace(self, **shown)


def joined(*parts: Specs) -> Specs:
    """The scenes of all parts, one batch after another."""
    return Specs(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Specs)))


def random_specs(
    count: int,
    dice: torch.Generator,
    hands: tuple[str, ...] = KNOWN_HANDS,
    subjects: tuple[str, ...] = KNOWN_SUBJECTS,
    media: tuple[str, ...] = KNOWN_MEDIA,
    alone: float = 0.6,
    plain: float = 0.5,
) -> Specs:
    """`count` independent scenes: a share `alone` of them of one subject, a share `plain` in no medium at all."""
    device = dice.device

    def chosen(rows: list[int], *shape: int) -> Tensor:
        which = torch.randint(len(rows), (count, *shape), generator=dice, device=device)
        return torch.tensor(rows, device=device)[which]

    def chance(share: float) -> Tensor:
        return torch.rand(count, generator=dice, device=device) < share

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=dice, device=device)

    rows = sorted(rows_of(subjects))
    first, step = chosen(rows), chosen(list(range(1, max(2, len(rows)))))
    order = torch.tensor(rows, device=device)
    second = order[(torch.searchsorted(order, first) + step) % len(rows)]  # never the first again
    hand = chosen([list(HANDS).index(name) for name in hands])
    medium = chosen([list(MEDIA).index(name) for name in media])
    one_colour = torch.isin(hand, torch.tensor([list(HANDS).index(name) for name in ONE_COLOUR], device=device))
    return Specs(
        subject=torch.stack([first, torch.where(chance(alone), NOTHING, second)], 1),
        relation=chosen(list(range(len(RELATIONS)))),
        hand=hand,
        colour=torch.where(one_colour, chosen(list(range(len(COLOURS)))), NOTHING),
        medium=torch.where(chance(plain) & (PLAIN in media), list(MEDIA).index(PLAIN), medium),
        place=torch.where(chance(0.15), NOTHING, chosen(list(range(len(PLACE_NAMES))))),
        style=uniform(len(PARAMETERS)),
        pose=uniform(2, 5),
        layout=uniform(6),
    )


class Named(NamedTuple):
    """Which parts a caption names, [B] each; the second subject and the relation go with the first."""

    subject: Tensor
    place: Tensor
    style: Tensor


def captions(specs: Specs, named: Named | None = None) -> list[str]:
    """Such as `a fox left of a teacup in the hills, blob drawing, comic style`, without the parts not to be named."""
    said = named or Named(*(torch.ones(len(specs), dtype=torch.bool) for _ in range(3)))
    rows = zip(
        specs.subject.tolist(), specs.relation.tolist(), specs.hand.tolist(), specs.colour.tolist(),
        specs.medium.tolist(), specs.place.tolist(), *(part.tolist() for part in said), strict=True,
    )  # fmt: skip
    return [_caption(*row) for row in rows]


def _caption(
    subject: list[int], relation: int, hand: int, colour: int, medium: int, place: int,
    says_subject: bool, says_place: bool, says_style: bool,
) -> str:  # fmt: skip
    first, second = subject
    paint = COLOUR_NAMES[colour] if says_style and colour > NOTHING and COLOUR_NAMES[colour] != "white" else ""
    parts = [article(f"{paint} {WORDS[first]}".strip())] if says_subject else []
    if says_subject and second > NOTHING:
        parts += [RELATIONS[relation], article(f"{paint} {WORDS[second]}".strip())]
    if says_place and place > NOTHING:
        parts += [PHRASES[PLACE_NAMES[place]]]
    text = [" ".join(parts)] if parts else []
    if says_style:
        text.append(f"{list(HANDS.values())[hand]} drawing")
        if list(MEDIA)[medium] != PLAIN:
            text.append(f"{list(MEDIA)[medium]} style")
    return ", ".join(text)


def diptych_captions(specs: Specs, says_style: Tensor) -> list[str]:
    """Of two scenes side by side in one style: `two pictures, blob drawing`."""
    silent = torch.zeros(len(specs), dtype=torch.bool)
    styles = captions(specs, Named(silent, silent, says_style))
    return [f"{DIPTYCH}, {style}" if style else DIPTYCH for style in styles]


def article(words: str) -> str:
    if words.split()[-1] in UNCOUNTED:
        return words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def all_words() -> list[str]:
    """Every word that captions are made of, and the comma."""
    names = (*WORDS, *PHRASES.values(), *RELATIONS, *HANDS.values(), *MEDIA, *COLOUR_NAMES)
    texts = [*names, DIPTYCH, "a an drawing style"]
    return sorted({word for text in texts for word in text.split()} | {","})


def unknown_words(texts: list[str]) -> list[str]:
    """Words of texts that no caption holds, in order of the texts."""
    known = set(all_words())
    return [word for text in texts for word in text.replace(",", " ").split() if word.lower() not in known]


class Scene(NamedTuple):
    picture: Tensor  # [B, 3, H, W] in [0, 1], before any medium
    masks: Tensor  # [B, 2, H, W]: how much of each pixel is the first and the second subject


def composed(specs: Specs, atlas: Atlas, small: Atlas, size: int = SIZE) -> Scene:
    """Place and subjects, the second behind the first; `small` is the atlas at half its resolution."""
    picture = grounds(specs, size)
    masks = torch.zeros(len(specs), 2, size, size, device=picture.device)
    for which in (1, 0):
        for alone in (True, False):
            rows = ((specs.subject[:, 1] == NOTHING) == alone) & (specs.subject[:, which] != NOTHING)
            rows = rows.nonzero()[:, 0]
            if len(rows):
                drawing = placed(specs[rows], which, atlas if alone else small, size)
                alpha = drawing[:, 3:]
                picture[rows] = picture[rows] * (1 - alpha) + drawing[:, :3]
                masks[rows] = masks[rows] * (1 - alpha)
                masks[rows, which] = alpha[:, 0]
    return Scene(picture, masks)


def render(specs: Specs, atlas: Atlas, small: Atlas, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Pictures [B, 3, size, size] in [0, 1] and masks [B, 2, size, size]."""
    scene = composed(specs, atlas, small, size)
    return laid(scene.picture, specs.medium, specs.style), scene.masks


def contours(scene: Scene) -> Tensor:
    """Edge maps [B, H, W] in [0, 1], white on black, of what is drawn beneath any medium."""
    return edges(scene.picture)


def edges(pictures: Tensor) -> Tensor:
    """Where the colours of pictures [B, 3, H, W] change, as lines about two pixels wide: [B, H, W] in [0, 1]."""
    padded = functional.pad(pictures, (1, 1, 1, 1), mode="replicate")
    across = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]).abs().amax(1)
    along = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]).abs().amax(1)
    return ((torch.hypot(across, along) - 0.08) / 0.12).clamp(0, 1)


def grounds(specs: Specs, size: int) -> Tensor:
    """The places [B, 3, size, size], pale, so that every hand stands out against them."""
    device = specs.hand.device
    x, y = grid(len(specs), size, device)
    coverage = torch.zeros(len(specs), len(SLOTS), size, size, device=device)
    coverage[:, 0] = 1
    for index, name in enumerate(PLACE_NAMES):
        rows = (specs.place == index).nonzero()[:, 0]
        if len(rows):
            for slot, distance in PLACES[name](x[rows], y[rows], specs.layout[rows][:, None, None, :]):
                alpha = soft(distance, 2.0 / size)
                coverage[rows] = coverage[rows] * (1 - alpha[:, None])
                coverage[rows, SLOTS.index(slot)] += alpha
    lightness, chroma, turn = palette(specs)
    colours = oklch(lightness[:, :, None], chroma[:, :, None], turn[:, :, None])  # [B, 3, 4, 1]
    return torch.einsum("bcsi,bshw->bchw", colours, coverage)


def palette(specs: Specs) -> tuple[Tensor, Tensor, Tensor]:
    """Lightness [B, 4], chroma [B, 4] and hue in turns [B, 4] of the place's roles; the lightest have least chroma."""
    levels = torch.tensor([0.93, 0.84, 0.76, 0.97], device=specs.hand.device)
    hue, gap, chroma, key = (raw(specs.style, name)[:, 0, 0] for name in ("hue", "hue_gap", "chroma", "key"))
    offsets = torch.cat([0 * gap, 0.08 + 0.1 * gap, 0.16 + 0.2 * gap, -0.1 * gap], 1)
    lightness = (levels + 0.06 * (key - 0.5)).clamp(0.03, 0.99)
    return lightness, (0.03 + 0.11 * chroma) * (1 - (2 * lightness - 1).abs() ** 3), hue + offsets


def placed(specs: Specs, which: int, atlas: Atlas, size: int) -> Tensor:
    """The first or second subject where it belongs, [B, 4, size, size]: colours times alpha, and alpha."""
    drawings = atlas.drawings[specs.hand, specs.subject[:, which]].float() / 255
    drawings = painted(drawings, specs.colour)
    alone = specs.subject[:, 1] == NOTHING
    x, y, big, tilt, mirrored = specs.pose[:, which].unbind(1)
    half = torch.where(alone, 0.58 + 0.26 * big, 0.38 + 0.08 * big)  # of the picture's half width
    at = torch.tensor(WHERE, device=drawings.device)[specs.relation] * (1 if which == 0 else -1)
    reach = torch.where(alone, 0.95 - half, 0.07)
    cx = torch.where(alone, 0.0, at[:, 0]) + reach * (2 * x - 1)
    cy = torch.where(alone, 0.0, at[:, 1]) + reach * (2 * y - 1)
    angle = 0.16 * (tilt - 0.5)
    flip = torch.where(mirrored < 0.5, 1.0, -1.0)
    cos, sin = angle.cos() / half, angle.sin() / half
    to_drawing = torch.stack(
        [torch.stack([flip * cos, flip * sin, -flip * (cos * cx + sin * cy)], 1),
         torch.stack([-sin, cos, sin * cx - cos * cy], 1)], 1,
    )  # fmt: skip
    where = functional.affine_grid(to_drawing, [len(drawings), 4, size, size], align_corners=False)
    return functional.grid_sample(drawings, where, align_corners=False)


def painted(drawings: Tensor, colour: Tensor) -> Tensor:
    """One-colour drawings on paper of their colour."""
    hue, light, chroma = torch.tensor(list(COLOURS.values()), device=drawings.device).T[:, :, None, None]
    papers = oklch(light, chroma, hue)[:, :, 0, 0]  # [colours, 3]
    tint = torch.where((colour > NOTHING)[:, None], papers[colour.clamp_min(0)], 1.0)
    return torch.cat([drawings[:, :3] * tint[:, :, None, None], drawings[:, 3:]], 1)


def latent_masks(masks: Tensor, cells: int) -> Tensor:
    """Masks [B, 2, H, W] as shares of `cells` x `cells` cells."""
    return functional.adaptive_avg_pool2d(masks, cells)
