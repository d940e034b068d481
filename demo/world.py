"""The demo world: pictures whose subject, background, style and subject mask are known exactly.

A picture is a *scene* (what is where: `draw_scene`) painted in a *style* (how: `paint`). A style is a family, which the
caption may name, and ten open parameters in [0, 1] that no caption tells: hues, contrast, texture frequency and angle,
line width and so on. A batch is drawn as one tensor program on any device.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .hands import PLAIN, Hand
from .shapes import BACKGROUNDS, SLOTS, SUBJECTS

SIZE = 128
SUBJECT_NAMES = tuple(SUBJECTS)
BACKGROUND_NAMES = tuple(BACKGROUNDS)
PLACES = dict(
    hills="in the hills",
    city="in the city",
    sea="by the sea",
    mountains="in the mountains",
    forest="in the forest",
    room="in a room",
)
COLOURS = ("hue", "hue_gap", "spread", "chroma", "contrast", "key")
STROKES = ("frequency", "angle", "line", "amount")
PARAMETERS = COLOURS + STROKES


class Family(NamedTuple):
    """How a style family paints. Pairs are (low, high): the range its open parameter moves in."""

    texture: str
    is_ink: bool = False  # two colours, the texture's share is the tone; else the tone itself varies with the texture
    dark: bool = False  # dark ground, light figures
    chroma: tuple[float, float] = (0.08, 0.15)
    contrast: tuple[float, float] = (0.8, 1.15)
    frequency: tuple[float, float] = (2.0, 3.2)  # texture cycles per unit; the picture is two units wide
    angle: tuple[float, float] = (0.0, 1.0)  # half turns
    line: tuple[float, float] = (0.02, 0.04)  # half width of outlines; 0 draws none
    line_light: float = 0.18  # lightness of outlines
    amount: tuple[float, float] = (0.05, 0.1)  # lightness swing of the texture
    hue_swing: float = 0.0  # hue swing of the texture, in turns
    glows: bool = False  # outlines are halos
    wobble: float = 0.0  # how far an unsteady hand strays


FAMILIES: dict[str, Family] = {
    "comic": Family("dots", chroma=(0.13, 0.19), line=(0.03, 0.05), amount=(0.07, 0.12)),
    "engraving": Family("stripes", is_ink=True, chroma=(0.02, 0.1), line=(0.012, 0.022)),
    "watercolor": Family(
        "blobs",
        chroma=(0.05, 0.11),
        contrast=(0.5, 0.8),
        frequency=(1.6, 3.0),
        line=(0, 0),
        amount=(0.08, 0.14),
        hue_swing=0.05,
        wobble=0.03,
    ),
    "stained glass": Family(
        "cells",
        chroma=(0.12, 0.19),
        frequency=(1.8, 2.8),
        line=(0.025, 0.04),
        line_light=0.1,
        amount=(0.08, 0.15),
        hue_swing=0.04,
    ),
    "neon": Family("flat", glows=True, dark=True, chroma=(0.14, 0.2), line=(0.025, 0.045), amount=(0.1, 0.2)),
    "mosaic": Family(
        "tiles", chroma=(0.08, 0.16), frequency=(1.6, 2.6), line=(0, 0), amount=(0.08, 0.14), hue_swing=0.04
    ),
    "woodcut": Family("waves", is_ink=True, dark=True, chroma=(0.03, 0.12), line=(0.016, 0.028), line_light=0.95),
    "poster": Family("flat", chroma=(0.1, 0.18), contrast=(1.0, 1.3), line=(0.03, 0.055), line_light=0.97),
    "knitted": Family(
        "zigzag", chroma=(0.07, 0.14), frequency=(1.8, 2.8), angle=(0.4, 0.6), line=(0, 0), amount=(0.08, 0.14)
    ),
    "contour": Family("rings", chroma=(0.06, 0.14), frequency=(2.4, 3.6), line=(0.012, 0.022), amount=(0.08, 0.14)),
    "chalk": Family(
        "hatch", is_ink=True, dark=True, chroma=(0.02, 0.09), line=(0.016, 0.03), line_light=0.92, wobble=0.02
    ),
    "brick": Family(
        "bricks",
        chroma=(0.06, 0.14),
        frequency=(1.8, 2.8),
        angle=(0.44, 0.56),
        line=(0, 0),
        amount=(0.08, 0.14),
        hue_swing=0.03,
    ),
}
FAMILY_NAMES = tuple(FAMILIES)
TEXTURE_TRAITS = ("texture", "is_ink", "glows", "frequency", "angle", "amount", "hue_swing")
LINE_TRAITS = ("line", "line_light", "wobble")
HELD_OUT = ("contour", "chalk", "brick")
KNOWN = tuple(name for name in FAMILY_NAMES if name not in HELD_OUT)


@dataclass
class Specs:
    """What a batch of B pictures shows. Integer tensors index the name tuples; the rest is in [0, 1]."""

    subject: Tensor
    background: Tensor
    family: Tensor  # [B, 3]: the families that texture, colour and line come from; one family unless remixed
    style: Tensor  # [B, 10], see PARAMETERS
    pose: Tensor  # [B, 5]: x, y, size, tilt, mirrored
    layout: Tensor  # [B, 6]: where the background's parts are

    def __len__(self) -> int:
        return len(self.subject)

    def __getitem__(self, rows: Tensor | slice) -> Specs:
        return Specs(*(getattr(self, f.name)[rows] for f in fields(self)))

    def to(self, device: str | torch.device) -> Specs:
        return Specs(*(getattr(self, f.name).to(device) for f in fields(self)))

    def in_style_of(self, other: Specs) -> Specs:
        """The same scenes in another batch's styles."""
        return replace(self, family=other.family, style=other.style)


def random_specs(
    count: int, generator: torch.Generator, families: tuple[str, ...] = KNOWN, remixed: bool = False
) -> Specs:
    """Draw `count` independent pictures with the given style families, or with styles remixed from several of them."""
    device = generator.device

    def integers(high: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator, device=device)

    def uniform(width: int) -> Tensor:
        return torch.rand(count, width, generator=generator, device=device)

    allowed = torch.tensor([FAMILY_NAMES.index(name) for name in families], device=device)
    parts = [allowed[integers(len(families))] for _ in range(3)] if remixed else [allowed[integers(len(families))]] * 3
    return Specs(
        subject=integers(len(SUBJECT_NAMES)),
        background=integers(len(BACKGROUND_NAMES)),
        family=torch.stack(parts, 1),
        style=uniform(len(PARAMETERS)),
        pose=uniform(5),
        layout=uniform(6),
    )


def captions(specs: Specs, named_style: bool = True) -> list[str]:
    """`a fish by the sea, comic style`, or without the style words."""
    rows = zip(specs.subject.tolist(), specs.background.tolist(), specs.family[:, 0].tolist(), strict=True)
    return [
        caption(SUBJECT_NAMES[s], BACKGROUND_NAMES[b], FAMILY_NAMES[f] if named_style else None) for s, b, f in rows
    ]


def caption(subject: str | None, background: str | None, family: str | None = None) -> str:
    """Any part may be left out; with nothing named the caption is empty."""
    if subject is None and background is None and family is None:
        return ""
    article = "an" if subject and subject[0] in "aeiou" else "a"
    text = f"{article} {subject or 'picture'}"
    text += f" {PLACES[background]}" if background else ""
    return f"{text}, {family} style" if family else text


def diptych_caption(family: str | None) -> str:
    """Of two scenes side by side in one style: `two pictures, comic style`."""
    return f"two pictures, {family} style" if family else "two pictures"


class Scene(NamedTuple):
    coverage: Tensor  # [B, 6, H, W] share of each colour role, summing to 1
    edge: Tensor  # [B, H, W] distance to the nearest visible contour, >= 0
    mask: Tensor  # [B, H, W] the subject, in [0, 1]


def render(specs: Specs, size: int = SIZE, hand: Hand = PLAIN) -> tuple[Tensor, Tensor]:
    """Pictures [B, 3, size, size] in [0, 1] and their subject masks [B, size, size]."""
    scene = draw_scene(specs, size, hand)
    return paint(scene, specs), scene.mask


def contours(scene: Scene) -> Tensor:
    """Edge maps [B, H, W] in [0, 1]: the scene's true contours as lines about two pixels wide, white on black."""
    pixel = 2.0 / scene.edge.shape[-1]
    return soft(scene.edge - pixel, pixel)


def grid(count: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    axis = (torch.arange(size, device=device) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x.expand(count, -1, -1), y.expand(count, -1, -1)


def draw_scene(specs: Specs, size: int, hand: Hand = PLAIN) -> Scene:
    """What is where, drawn by a hand; the plain one is the world's own."""
    count, device = len(specs), specs.subject.device
    x, y = grid(count, size, device)
    x, y = hand.warp(*unsteady(x, y, specs), 6.28 * specs.layout[:, :, None, None])
    pixel = 2.0 / size
    coverage = torch.zeros(count, len(SLOTS), size, size, device=device)
    coverage[:, 0] = 1
    edge = torch.full((count, size, size), 9.0, device=device)
    mask = torch.zeros(count, size, size, device=device)
    for index, name in enumerate(BACKGROUND_NAMES):
        rows = (specs.background == index).nonzero()[:, 0]
        if len(rows):
            u = specs.layout[rows][:, None, None, :]
            for slot, distance in BACKGROUNDS[name](x[rows], y[rows], u):
                lay(coverage, edge, rows, SLOTS.index(slot), hand.shape(distance), pixel)
    for index, name in enumerate(SUBJECT_NAMES):
        rows = (specs.subject == index).nonzero()[:, 0]
        if len(rows):
            px, py, scale = posed(x[rows], y[rows], specs.pose[rows])
            body, detail = (hand.shape(part * scale) for part in SUBJECTS[name](px, py))
            mask[rows] = soft(torch.minimum(body, detail), pixel)
            lay(coverage, edge, rows, SLOTS.index("body"), body, pixel)
            lay(coverage, edge, rows, SLOTS.index("detail"), detail, pixel)
    return Scene(coverage, hand.trace(edge), mask)


def soft(distance: Tensor, pixel: float) -> Tensor:
    """Anti-aliased inside of a signed distance: a ramp two pixels wide."""
    return (0.5 - distance / (2 * pixel)).clamp(0, 1)


def lay(coverage: Tensor, edge: Tensor, rows: Tensor, slot: int, distance: Tensor, pixel: float) -> None:
    """Put one flat shape over what is there; contours beneath it disappear."""
    alpha = soft(distance, pixel)
    coverage[rows] = coverage[rows] * (1 - alpha[:, None])
    coverage[rows, slot] += alpha
    edge[rows] = torch.where(distance < 0, -distance, torch.minimum(edge[rows], distance))


def posed(x: Tensor, y: Tensor, pose: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Picture coordinates to the subject's own, and the subject's size."""
    cx, cy, size, tilt, mirrored = (p[:, None, None] for p in pose.unbind(1))
    scale = 0.62 + 0.1 * size
    angle = 0.2 * (tilt - 0.5)
    dx, dy = x - 0.3 * (cx - 0.5), y - 0.15 - 0.2 * (cy - 0.5)
    px, py = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
    return torch.where(mirrored < 0.5, px, -px) / scale, py / scale, scale


def unsteady(x: Tensor, y: Tensor, specs: Specs) -> tuple[Tensor, Tensor]:
    """The hand's tremor as a smooth warp of the drawing coordinates."""
    reach = pick(specs, "wobble")
    phase = 6.28 * specs.layout[:, :, None, None]
    dx = torch.sin(7.1 * y + phase[:, 0]) + 0.6 * torch.sin(13.7 * y + 5.2 * x + phase[:, 1])
    dy = torch.sin(6.3 * x + phase[:, 2]) + 0.6 * torch.sin(12.1 * x - 6.4 * y + phase[:, 3])
    return x + reach * dx, y + reach * dy


def pick(specs: Specs, trait: str, entry: int | None = None) -> Tensor:
    """A family trait (or one end of its range) per picture, [B, 1, 1]."""
    part = "texture" if trait in TEXTURE_TRAITS else "line" if trait in LINE_TRAITS else "colour"
    values = [getattr(f, trait) if entry is None else getattr(f, trait)[entry] for f in FAMILIES.values()]
    family = specs.family[:, ("texture", "colour", "line").index(part)]
    return torch.tensor(values, dtype=torch.float32, device=family.device)[family][:, None, None]


def opened(specs: Specs, name: str) -> Tensor:
    """A style parameter moved into its family's range, [B, 1, 1]."""
    low, high = pick(specs, name, 0), pick(specs, name, 1)
    return low + (high - low) * raw(specs, name)


def raw(specs: Specs, name: str) -> Tensor:
    return specs.style[:, PARAMETERS.index(name)][:, None, None]


def paint(scene: Scene, specs: Specs) -> Tensor:
    """Colour a scene: palette by role, texture, then outlines."""
    lightness, chroma, hue = palette(specs)
    light = torch.einsum("bs,bshw->bhw", lightness, scene.coverage)
    swing, cell = texture(scene, specs)
    is_ink = pick(specs, "is_ink") > 0
    toned = light + opened(specs, "amount") * swing
    turn = hue_of(scene.coverage, hue) + pick(specs, "hue_swing") * (2 * cell - 1)
    inked = ink(light, swing, specs)
    paper_turn = hue[:, :1, None] + 0.08 * inked
    shade, tint = torch.where(is_ink, inked, toned), torch.where(is_ink, paper_turn, turn)
    picture = oklch(shade, chroma * torch.where(is_ink, 0.6, 1.0), tint)
    return outline(picture, scene, specs, chroma, turn)


def hue_of(coverage: Tensor, hue: Tensor) -> Tensor:
    """Blend hues on the circle, so that no third hue appears between two."""
    angle = 2 * torch.pi * hue
    mixed = [torch.einsum("bs,bshw->bhw", part, coverage) for part in (angle.sin(), angle.cos())]
    return torch.atan2(*mixed) / (2 * torch.pi)


def palette(specs: Specs) -> tuple[Tensor, Tensor, Tensor]:
    """Lightness [B, 6], chroma [B, 1, 1] and hue [B, 6] in turns, one entry per colour role."""
    device = specs.family.device
    bright = torch.tensor([0.9, 0.76, 0.64, 0.96, 0.4, 0.84], device=device)
    dim = torch.tensor([0.2, 0.33, 0.26, 0.52, 0.78, 0.42], device=device)
    dark = pick(specs, "dark")[:, :, 0]
    levels = torch.where(dark > 0, dim, bright)
    middle = levels.mean(1, keepdim=True)
    lightness = middle + (levels - middle) * opened(specs, "contrast")[:, 0] + 0.12 * (raw(specs, "key")[:, 0] - 0.5)
    spread = 0.03 + 0.1 * raw(specs, "spread")[:, 0]
    gap = 0.25 + 0.5 * raw(specs, "hue_gap")[:, 0]
    offsets = torch.cat([0 * spread, spread, 2 * spread, -1.5 * spread, gap, gap + 1.5 * spread], 1)
    return lightness.clamp(0.08, 0.97), opened(specs, "chroma"), raw(specs, "hue")[:, 0] + offsets


def oklch(lightness: Tensor, chroma: Tensor, turn: Tensor) -> Tensor:
    """OKLCH (hue in turns) to sRGB [B, 3, H, W] in [0, 1]; Ottosson 2020."""
    lightness = lightness.clamp(0.03, 0.99)
    chroma = chroma * (1 - (2 * lightness - 1).abs().pow(3))
    a, b = chroma * torch.cos(2 * torch.pi * turn), chroma * torch.sin(2 * torch.pi * turn)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    red = 4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short
    green = -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short
    blue = -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short
    linear = torch.stack([red, green, blue], 1).clamp(0, 1)
    return torch.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear.clamp_min(1e-6) ** (1 / 2.4) - 0.055)


def ink(light: Tensor, swing: Tensor, specs: Specs) -> Tensor:
    """Two-tone lightness: the further the tone from the ground, the more of each period is marked."""
    dark = pick(specs, "dark") > 0
    ground, mark = torch.where(dark, 0.16, 0.93), torch.where(dark, 0.9, 0.25)
    away = torch.where(dark, light - 0.4, 0.62 - light)
    return ground + (mark - ground) * torch.sigmoid(8 * (0.8 * swing + 4 * away))


def outline(picture: Tensor, scene: Scene, specs: Specs, chroma: Tensor, turn: Tensor) -> Tensor:
    width = opened(specs, "line")
    pixel = 2.0 / picture.shape[-1]
    drawn = soft(scene.edge - width, pixel) * (width > 0)
    glows = pick(specs, "glows")
    halo = torch.exp(-scene.edge / (1.6 * width.clamp_min(1e-3))) * glows
    light = torch.where(glows > 0, 0.82, pick(specs, "line_light"))
    stroke = oklch(light.expand_as(turn), torch.where(glows > 0, chroma, 0.3 * chroma), turn)
    alpha = torch.maximum(drawn * (1 - glows), halo)[:, None]
    return picture * (1 - alpha) + stroke * alpha


def texture(scene: Scene, specs: Specs) -> tuple[Tensor, Tensor]:
    """Lightness swing in [-1, 1] and a value per cell in [0, 1], both [B, H, W]."""
    swing, cell = torch.zeros_like(scene.edge), torch.full_like(scene.edge, 0.5)
    x, y = grid(len(specs), scene.edge.shape[-1], scene.edge.device)
    angle = torch.pi * opened(specs, "angle")
    frequency = opened(specs, "frequency")
    a = (x * angle.cos() + y * angle.sin()) * frequency
    b = (y * angle.cos() - x * angle.sin()) * frequency
    for index, family in enumerate(FAMILIES.values()):
        rows = (specs.family[:, 0] == index).nonzero()[:, 0]
        if len(rows) and family.texture in TEXTURES:
            swing[rows], cell[rows] = TEXTURES[family.texture](a[rows], b[rows], scene.edge[rows] * frequency[rows])
    return swing, cell


def wave(t: Tensor) -> Tensor:
    return torch.sin(2 * torch.pi * t)


def noise(i: Tensor, j: Tensor) -> Tensor:
    """A repeatable number in [0, 1) per integer cell."""
    return torch.frac((torch.sin(i * 12.9898 + j * 78.233) * 437.585).abs())


def half(t: Tensor) -> tuple[Tensor, Tensor]:
    return t, torch.full_like(t, 0.5)


def cells(a: Tensor, b: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
    """Voronoi cells of a jittered lattice, dark along their borders."""
    nearest, second, cell = (torch.full_like(a, 9.0), torch.full_like(a, 9.0), torch.zeros_like(a))
    for di in (-1, 0, 1):
        for dj in (-1, 0, 1):
            i, j = a.floor() + di, b.floor() + dj
            d = torch.hypot(a - i - 0.15 - 0.7 * noise(i, j), b - j - 0.15 - 0.7 * noise(j + 31, i))
            second = torch.minimum(second, torch.maximum(nearest, d))
            cell = torch.where(d < nearest, noise(i + 7, j), cell)
            nearest = torch.minimum(nearest, d)
    lead = torch.sigmoid(40 * (0.06 - (second - nearest)))
    return (2 * cell - 1) * (1 - lead) - 4 * lead, cell


def tiles(a: Tensor, b: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
    cell = noise(a.floor(), b.floor())
    rim = torch.maximum((torch.frac(a.abs()) - 0.5).abs(), (torch.frac(b.abs()) - 0.5).abs())
    grout = torch.sigmoid(40 * (rim - 0.43))
    return (2 * cell - 1) * (1 - grout) + 1.4 * grout, cell


def bricks(a: Tensor, b: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
    row = (2 * a).floor()
    along = b + 0.5 * torch.remainder(row, 2)
    cell = noise(along.floor(), row)
    joint = torch.maximum(0.5 * (torch.remainder(2 * a, 1) - 0.5).abs() + 0.25, (torch.remainder(along, 1) - 0.5).abs())
    mortar = torch.sigmoid(50 * (joint - 0.445))
    return (2 * cell - 1) * (1 - mortar) - 1.6 * mortar, cell


def blobs(a: Tensor, b: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
    wash = torch.sin(2.1 * a + 1.7 * torch.sin(1.3 * b)) * torch.sin(1.9 * b + 1.3 * torch.sin(1.7 * a + 2))
    rim = torch.exp(-edge / 0.12)
    return 0.9 * wash - 1.1 * rim + 0.3, 0.5 + 0.5 * wash


def hatch(a: Tensor, b: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
    return half(torch.maximum(wave(a), wave(b)) * 1.2 - 0.35)


TEXTURES = {
    "stripes": lambda a, b, edge: half(wave(a)),
    "waves": lambda a, b, edge: half(wave(a + 0.35 * torch.sin(1.6 * b))),
    "zigzag": lambda a, b, edge: half(wave(a + 0.9 * (torch.remainder(0.6 * b, 1) - 0.5).abs())),
    "rings": lambda a, b, edge: half(wave(edge)),
    "dots": lambda a, b, edge: half(torch.tanh(2.2 * (wave(a) * wave(b)))),
    "hatch": hatch,
    "cells": cells,
    "tiles": tiles,
    "bricks": bricks,
    "blobs": blobs,
}
