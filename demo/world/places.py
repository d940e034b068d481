"""Signed distances of the demo world's subjects and backgrounds, in units where the picture spans [-1, 1] (y down).

A shape is a function of coordinates x, y ([B, H, W]); negative means inside. A background also takes `u`, [B, 1, 1, 6]
numbers in [0, 1] that place its parts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Shape = Callable[[Tensor, Tensor], Tensor]

# Colour roles, the order of `Scene.coverage`.
SLOTS = ("sky", "far", "near", "light", "body", "detail")


def circle(x: Tensor, y: Tensor, cx: float | Tensor, cy: float | Tensor, r: float | Tensor) -> Tensor:
    return torch.hypot(x - cx, y - cy) - r


def ellipse(x: Tensor, y: Tensor, cx: float, cy: float, rx: float, ry: float) -> Tensor:
    """First-order distance: exact on the contour, which is where it is used."""
    px, py = (x - cx) / rx, (y - cy) / ry
    k = torch.hypot(px, py)
    slope = torch.hypot(px / rx, py / ry).clamp_min(1e-4)
    return k * (k - 1) / slope


def box(x: Tensor, y: Tensor, cx: float | Tensor, cy: float | Tensor, hw: float | Tensor, hh: float | Tensor) -> Tensor:
    dx, dy = (x - cx).abs() - hw, (y - cy).abs() - hh
    return torch.hypot(dx.clamp_min(0), dy.clamp_min(0)) + torch.maximum(dx, dy).clamp_max(0)


def capsule(x: Tensor, y: Tensor, ax: float, ay: float, bx: float, by: float, r: float) -> Tensor:
    dx, dy = bx - ax, by - ay
    t = (((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    return torch.hypot(x - ax - t * dx, y - ay - t * dy) - r


def polygon(x: Tensor, y: Tensor, points: list[tuple[float, float]]) -> Tensor:
    """Distance to a simple polygon: nearest edge, sign by crossing number."""
    distance = torch.full_like(x, 1e3)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        distance = torch.minimum(distance, capsule(x, y, ax, ay, bx, by, 0.0))
        if ay != by:
            crosses = ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
            inside = inside ^ crosses
    return torch.where(inside, -distance, distance)


def union(*parts: Tensor) -> Tensor:
    result = parts[0]
    for part in parts[1:]:
        result = torch.minimum(result, part)
    return result


def minus(a: Tensor, b: Tensor) -> Tensor:
    return torch.maximum(a, -b)


def fish(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    tail = polygon(x, y, [(0.42, 0.0), (0.92, -0.42), (0.8, 0.0), (0.92, 0.42)])
    fin = polygon(x, y, [(-0.25, -0.38), (0.15, -0.72), (0.3, -0.3)])
    return union(ellipse(x, y, -0.15, 0.0, 0.72, 0.46), tail, fin), circle(x, y, -0.5, -0.1, 0.11)


def house(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    walls = box(x, y, 0.0, 0.35, 0.62, 0.5)
    roof = polygon(x, y, [(-0.85, -0.12), (0.0, -0.85), (0.85, -0.12)])
    chimney = box(x, y, 0.48, -0.55, 0.1, 0.25)
    return union(walls, roof, chimney), union(box(x, y, -0.2, 0.55, 0.16, 0.3), box(x, y, 0.3, 0.3, 0.15, 0.15))


def tree(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    crown = union(
        *(
            polygon(x, y, [(-w, b), (0.0, t), (w, b)])
            for w, t, b in ((0.45, -0.95, -0.35), (0.6, -0.6, 0.1), (0.75, -0.2, 0.55))
        )
    )
    return crown, box(x, y, 0.0, 0.75, 0.13, 0.22)


def star(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    angles = torch.arange(10) * torch.pi / 5
    radii = [0.95 if i % 2 == 0 else 0.42 for i in range(10)]
    points = [(float(r * a.sin()), float(-r * a.cos())) for r, a in zip(radii, angles, strict=True)]
    return polygon(x, y, points), circle(x, y, 0.0, 0.0, 0.2)


def mushroom(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    cap = torch.maximum(ellipse(x, y, 0.0, 0.0, 0.85, 0.8), y - 0.08)
    spots = union(circle(x, y, -0.35, -0.3, 0.15), circle(x, y, 0.15, -0.5, 0.14), circle(x, y, 0.45, -0.18, 0.12))
    return union(cap, box(x, y, 0.0, 0.45, 0.22, 0.42)), spots


def car(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    cabin = polygon(x, y, [(-0.52, -0.05), (-0.32, -0.5), (0.3, -0.5), (0.55, -0.05)])
    wheels = union(circle(x, y, -0.5, 0.42, 0.22), circle(x, y, 0.5, 0.42, 0.22))
    window = polygon(x, y, [(-0.36, -0.08), (-0.24, -0.38), (0.22, -0.38), (0.38, -0.08)])
    return union(cabin, box(x, y, 0.0, 0.18, 0.93, 0.25), wheels), union(
        window, circle(x, y, -0.5, 0.42, 0.1), circle(x, y, 0.5, 0.42, 0.1)
    )


def boat(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    hull = polygon(x, y, [(-0.9, 0.35), (0.9, 0.35), (0.6, 0.8), (-0.6, 0.8)])
    sail = polygon(x, y, [(0.06, -0.9), (0.8, 0.2), (0.06, 0.2)])
    jib = polygon(x, y, [(-0.06, -0.7), (-0.06, 0.2), (-0.6, 0.2)])
    return union(hull, capsule(x, y, 0.0, -0.9, 0.0, 0.4, 0.05)), union(sail, jib)


def cat(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    ears = union(
        polygon(x, y, [(-0.42, -0.35), (-0.4, -0.9), (-0.08, -0.58)]),
        polygon(x, y, [(0.42, -0.35), (0.4, -0.9), (0.08, -0.58)]),
    )
    body = union(circle(x, y, 0.0, -0.35, 0.4), ellipse(x, y, 0.0, 0.45, 0.5, 0.48), ears)
    tail = union(capsule(x, y, 0.4, 0.75, 0.85, 0.55, 0.09), capsule(x, y, 0.85, 0.55, 0.82, 0.1, 0.09))
    return union(body, tail), union(
        circle(x, y, -0.16, -0.4, 0.085), circle(x, y, 0.16, -0.4, 0.085), ellipse(x, y, 0.0, 0.5, 0.22, 0.26)
    )


SUBJECTS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    f.__name__: f for f in (fish, house, tree, star, mushroom, car, boat, cat)
}


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


BACKGROUNDS: dict[str, Callable[[Tensor, Tensor, Tensor], list[tuple[str, Tensor]]]] = {
    f.__name__: f for f in (hills, city, sea, mountains, forest, room)
}
