"""The places behind subjects: signed distances of their parts, in units where the picture spans [-1, 1] (y down).

A place is a function of coordinates x, y ([B, H, W]) and of `u`, [B, 1, 1, 6] numbers in [0, 1] that put its parts
where they are; it gives a distance for each part, negative inside, and the part's colour role.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SLOTS = ("sky", "far", "near", "light")  # colour roles


def circle(x: Tensor, y: Tensor, cx: float | Tensor, cy: float | Tensor, r: float | Tensor) -> Tensor:
    return torch.hypot(x - cx, y - cy) - r


def box(x: Tensor, y: Tensor, cx: float | Tensor, cy: float | Tensor, hw: float | Tensor, hh: float | Tensor) -> Tensor:
    dx, dy = (x - cx).abs() - hw, (y - cy).abs() - hh
    return torch.hypot(dx.clamp_min(0), dy.clamp_min(0)) + torch.maximum(dx, dy).clamp_max(0)


def union(*parts: Tensor) -> Tensor:
    result = parts[0]
    for part in parts[1:]:
        result = torch.minimum(result, part)
    return result


def hills(x: Tensor, y: Tensor, u: Tensor) -> list[tuple[str, Tensor]]:
    far = 0.02 + 0.2 * torch.sin(2.8 * x + 6.3 * u[..., 0]) - y
    near = 0.5 + 0.16 * torch.sin(2.2 * x + 6.3 * u[..., 1]) - y
    return [("light", circle(x, y, 1.4 * u[..., 2] - 0.7, -0.62, 0.24)), ("far", 0.75 * far), ("near", 0.85 * near)]


def city(x: Tensor, y: Tensor, u: Tensor) -> list[tuple[str, Tensor]]:
    towers, windows = torch.full_like(x, 9.0), torch.full_like(x, 9.0)
    for i in range(4):
        cx = -0.78 + 0.52 * i + 0.06 * (u[..., i] - 0.5)
        top = -0.3 - 0.5 * torch.frac(u[..., i] * 7.3 + 0.37 * i)
        towers = torch.minimum(towers, box(x, y, cx, 1.0, 0.2, 1.0 - top))
        rows = torch.remainder(y - top - 0.04, 0.36) - 0.18
        windows = torch.minimum(windows, torch.maximum(box(x, rows, cx, 0.0, 0.1, 0.09), top + 0.06 - y))
    return [("far", towers), ("light", windows), ("near", 0.62 + 0 * x - y)]


def sea(x: Tensor, y: Tensor, u: Tensor) -> list[tuple[str, Tensor]]:
    horizon = 0.1 * (u[..., 0] - 0.5) - 0.05 - y
    crests = (
        0.3 + 0.07 * torch.sin(9 * x + 6.3 * u[..., 1]) - y,
        0.72 + 0.07 * torch.sin(9 * x + 6.3 * u[..., 2]) - y,
    )
    bands = union(*((c + 0.08).abs() - 0.07 for c in crests))
    return [("light", circle(x, y, 1.4 * u[..., 3] - 0.7, -0.3, 0.34)), ("far", horizon), ("near", 0.85 * bands)]


def mountains(x: Tensor, y: Tensor, u: Tensor) -> list[tuple[str, Tensor]]:
    def ridge(period: float, shift: Tensor, top: float, height: float) -> Tensor:
        return top + height * 2 * (torch.remainder(x / period + shift, 1.0) - 0.5).abs() - y

    far = ridge(1.1, u[..., 0], -0.75, 0.8)
    snow = torch.maximum(far, y + 0.42)
    return [("far", -0.62 * -far), ("light", 0.62 * snow), ("near", 0.7 * ridge(1.6, u[..., 1], 0.2, 0.6))]


def forest(x: Tensor, y: Tensor, u: Tensor) -> list[tuple[str, Tensor]]:
    trunks = torch.full_like(x, 9.0)
    for i in range(4):
        cx = -0.78 + 0.52 * i + 0.12 * (u[..., i] - 0.5)
        trunks = torch.minimum(trunks, (x - cx).abs() - 0.1)
    leaves = y + 0.45 + 0.16 * torch.sin(5 * x + 6.3 * u[..., 4]).abs()
    return [("far", trunks), ("light", 0.75 * leaves), ("near", 0.68 + 0.05 * torch.sin(5 * x + 6.3 * u[..., 5]) - y)]


def room(x: Tensor, y: Tensor, u: Tensor) -> list[tuple[str, Tensor]]:
    cx = 0.9 * u[..., 0] - 0.45
    frame = box(x, y, cx, -0.42, 0.5, 0.42)
    pane = union(*(box(x, y, cx + dx, -0.42 + dy, 0.18, 0.15) for dx in (-0.23, 0.23) for dy in (-0.19, 0.19)))
    return [("far", frame), ("light", pane), ("near", 0.42 + 0 * x - y)]


PLACES: dict[str, Callable[[Tensor, Tensor, Tensor], list[tuple[str, Tensor]]]] = {
    f.__name__: f for f in (hills, city, sea, mountains, forest, room)
}
PHRASES = {
    "hills": "in the hills",
    "city": "in the city",
    "sea": "by the sea",
    "mountains": "in the mountains",
    "forest": "in the forest",
    "room": "in a room",
}


def grid(count: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    axis = (torch.arange(size, device=device) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x.expand(count, -1, -1), y.expand(count, -1, -1)


def soft(distance: Tensor, pixel: float) -> Tensor:
    """Anti-aliased inside of a signed distance: a ramp two pixels wide."""
    return (0.5 - distance / (2 * pixel)).clamp(0, 1)
