"""What a gate selects, for people: a picture of layers over noise levels, and a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..engine.gates import LayerGate, ToSigma
from ..engine.layers import LETTERS, UNET_BLOCKS, LayerId, in_forward_order, spans, spelled
from ..engine.noise import LOG, back, evenly_spaced, variable
from ..engine.profile import FEATURES, SensitivityProfile

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
COLUMNS = 64
CELL_WIDTH, TALLEST_ROW, TALLEST = 13, 24, 900
PAPER, INK, GRID = (255, 255, 255), (38, 42, 48), (228, 231, 235)
CLOSED = np.array((241, 243, 245), float)
QUERY, KEY, BOTH = np.array((74, 133, 214), float), np.array((238, 158, 62), float), np.array((34, 112, 84), float)


def standard_sigma(percent: float) -> float:
    """Sigma at a percent of Stable Diffusion's own schedule (scaled linear, 1000 levels), as ComfyUI counts it."""
    if percent <= 0 or percent >= 1:
        return float("inf") if percent <= 0 else 0.0
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    levels = (((1 - kept) / kept) ** 0.5).log()
    place = (1 - percent) * 999
    low = int(place)
    return float(torch.lerp(levels[low], levels[min(low + 1, 999)], place - low).exp())


def schedule_of(profile: SensitivityProfile) -> ToSigma:
    """Sigma at a percent of the schedule that a profile was measured on; a file that names none: the usual one."""
    percents = profile.provenance.get("percents", ())
    if len(percents) != len(profile.sigmas) or len(percents) < 2:
        return standard_sigma if profile.noise == LOG else _standard_flow
    knots = variable(profile.sigmas, profile.noise).numpy()

    def to_sigma(percent: float) -> float:
        if percent <= percents[0] or percent >= percents[-1]:
            return float("inf") if percent <= 0 else 0.0 if percent >= 1 else float(profile.sigmas[-(percent > 0.5)])
        return float(back(float(np.interp(percent, percents, knots)), profile.noise))

    return to_sigma


def _standard_flow(percent: float) -> float:
    """Sigma at a percent of a flow model's schedule with shift 3, SD3's and Z-Image's."""
    return 3 * (1 - percent) / (1 + 2 * (1 - percent)) if 0 < percent < 1 else float("inf") if percent <= 0 else 0.0


def sampled(
    gate: LayerGate, layers: Sequence[LayerId], sigmas: Sequence[float], to_sigma: ToSigma = standard_sigma
) -> torch.Tensor:
    """A gate's weights [T, 3, L] at noise levels of a schedule."""
    return torch.stack([gate.weights(sigma, layers, to_sigma) for sigma in sigmas])


def spread_sigmas(highest: float, lowest: float, noise: str = LOG) -> list[float]:
    """COLUMNS noise levels from the highest to the lowest, even in the variable `noise`."""
    return evenly_spaced(highest, lowest, COLUMNS, noise).tolist()


class Facts(NamedTuple):
    """What there is to say of a gate: how many layers `some` of `of` share attention, and in which blocks `mostly`.

    `each` noise level opens to so many where they differ, and `always` to these.
    """

    some: str
    of: int
    mostly: list[tuple[str, str]]
    each: str | None = None
    always: str | None = None


def facts(weights: torch.Tensor, layers: Sequence[LayerId]) -> Facts:
    """Of weights [T, 3, L]; `some` is "0" for a gate that is closed at every noise level."""
    counts = [(weights[:, FEATURES.index(feature)] > 0).sum(1) for feature in ("q", "k")]
    shared = (weights[:, :2] > 0).any(1)
    if not shared.any():
        return Facts("0", len(layers), [])
    found = Facts(_range(torch.cat(counts)), len(layers), _busiest(weights, layers))
    if all(torch.equal(row, shared[0]) for row in shared):
        return found
    return found._replace(each=_range(shared.sum(1)), always=_named(shared.all(0), layers))


def summary(found: Facts) -> str:
    """One sentence or two, such as "30 of 70 layers, mostly output 1-2."."""
    if not found.mostly:
        return f"0 of {found.of} layers: the gate is closed at every noise level."
    text = f"{found.some} of {found.of} layers, mostly {' and '.join(map(' '.join, found.mostly))}."
    if found.each:
        text += f" At one noise level {found.each} share attention; {found.always} always do."
    return text


def draw(weights: torch.Tensor, layers: Sequence[LayerId], sigmas: Sequence[float]) -> Image.Image:
    """A map of weights [T, 3, L]: noise falls from left to right, layers run down in forward order, grouped by block.

    Blue where only the queries are selected, orange where only the keys, green where both; paler for lower weights.
    """
    forward = in_forward_order(layers)
    cells = weights[:, :, [layers.index(layer) for layer in forward]].numpy()
    height = max(4, min(TALLEST_ROW, TALLEST // len(forward)))
    font = ImageFont.load_default(12)
    left, top, right, bottom = 86, 34, 16, 44
    image = Image.new("RGB", (left + CELL_WIDTH * len(sigmas) + right, top + height * len(forward) + bottom), PAPER)
    colours = _colours(cells[:, FEATURES.index("q")].T, cells[:, FEATURES.index("k")].T)
    grid = Image.fromarray(colours).resize((CELL_WIDTH * len(sigmas), height * len(forward)), Image.Resampling.NEAREST)
    image.paste(grid, (left, top))
    pen = ImageDraw.Draw(image)
    _label_blocks(pen, font, forward, left, top, height, grid.width)
    _label_sigmas(pen, font, sigmas, left, top + grid.height)
    _legend(pen, font, left)
    return image


def _colours(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Colours [L, T, 3] of query and key weights [L, T]."""
    both = np.minimum(q, k)
    q, k = q - both, k - both
    rest = 1 - both - q - k
    mixed = sum(weight[..., None] * colour for weight, colour in ((both, BOTH), (q, QUERY), (k, KEY), (rest, CLOSED)))
    return np.clip(mixed, 0, 255).astype(np.uint8)


def _label_blocks(
    pen: ImageDraw.ImageDraw,
    font: Font,
    layers: Sequence[LayerId],
    left: int,
    top: int,
    height: int,
    width: int,
) -> None:
    y, free = float(top), float(top)
    for name, group in groupby(layers, key=_row_title):
        rows = height * len(list(group))
        if y + rows / 2 - 6 >= free:
            pen.text((left - 8, y + rows / 2), name, fill=INK, font=font, anchor="rm")
            free = y + rows / 2 + 6
        y += rows
        if rows >= 6:
            pen.line((left - 6, y, left + width, y), fill=PAPER, width=min(2, int(rows // 6)))


def _row_title(layer: LayerId) -> str:
    """One title for a UNet's block, one for every layer of a transformer."""
    return f"{layer.block} {layer.number}" if layer.block in UNET_BLOCKS else str(layer)


def _label_sigmas(pen: ImageDraw.ImageDraw, font: Font, sigmas: Sequence[float], left: int, y: int) -> None:
    for column in np.linspace(0, len(sigmas) - 1, 7).round().astype(int):
        x = left + CELL_WIDTH * (column + 0.5)
        pen.line((x, y, x, y + 4), fill=INK)
        pen.text((x, y + 6), f"{sigmas[column]:.3g}", fill=INK, font=font, anchor="mt")
    pen.text((left + CELL_WIDTH * len(sigmas) / 2, y + 24), "noise level (sigma)", fill=INK, font=font, anchor="mt")


def _legend(pen: ImageDraw.ImageDraw, font: Font, x: float) -> None:
    for label, colour in (("queries and keys", BOTH), ("queries only", QUERY), ("keys only", KEY), ("closed", CLOSED)):
        pen.rectangle((x, 11, x + 12, 23), fill=tuple(colour.astype(int)), outline=GRID)
        pen.text((x + 18, 17), label, fill=INK, font=font, anchor="lm")
        x += 34 + pen.textlength(label, font=font)


def _range(counts: torch.Tensor) -> str:
    low, high = int(counts.min()), int(counts.max())
    return str(high) if low == high else f"{low}-{high}"


def _busiest(weights: torch.Tensor, layers: Sequence[LayerId]) -> list[tuple[str, str]]:
    """The fewest blocks that hold half of all the weight, consecutive ones run together: ("output", "1-2")."""
    mass = weights[:, :2].mean((0, 1))
    blocks: dict[tuple[str, int], float] = {}
    for layer, weight in zip(layers, mass.tolist(), strict=True):
        blocks[layer[:2]] = blocks.get(layer[:2], 0.0) + weight
    chosen, held = [], 0.0
    for block in sorted(blocks, key=blocks.__getitem__, reverse=True):
        if held < float(mass.sum()) / 2:
            chosen.append(block)
            held += blocks[block]
    parts = ((part, [number for name, number in sorted(chosen) if name == part]) for part in LETTERS)
    return [(part, spans(numbers)) for part, numbers in parts if numbers]


def _named(chosen: torch.Tensor, layers: Sequence[LayerId]) -> str:
    """The chosen layers in the gate grammar, "o1.4-9, o2.0-6"; "none" without any."""
    return spelled(layer for layer, is_chosen in zip(layers, chosen.tolist(), strict=True) if is_chosen)
