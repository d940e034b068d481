"""The structure benchmark's own arithmetic: edge agreement and the comparison of two curves."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.structure import TOLERANCE, between, edge_f1
from demo import world


def lines(*columns: int) -> torch.Tensor:
    edges = torch.zeros(1, 32, 32, dtype=torch.bool)
    edges[:, :, list(columns)] = True
    return edges


def test_edges_agree_within_the_tolerance_and_not_beyond() -> None:
    assert float(edge_f1(lines(10), lines(10))) == pytest.approx(1)
    assert float(edge_f1(lines(10 + TOLERANCE), lines(10))) == pytest.approx(1)
    assert float(edge_f1(lines(11 + TOLERANCE), lines(10))) == 0
    assert float(edge_f1(lines(10, 25), lines(10))) == pytest.approx(2 / 3)  # half right, nothing missed
    assert float(edge_f1(lines(10), lines(10, 25))) == pytest.approx(2 / 3)  # all right, half missed
    assert float(edge_f1(lines(), lines(10))) == 0


def test_a_scene_agrees_with_its_own_edges_better_than_with_anothers() -> None:
    specs = world.random_specs(12, torch.Generator().manual_seed(1))
    edges = world.contours(world.draw_scene(specs, world.SIZE)) > 0.5
    assert float(edge_f1(edges, edges).mean()) == pytest.approx(1)
    assert float(edge_f1(edges, edges.roll(1, 0)).mean()) < 0.6


def curve(subject: list[float], distance: list[float], recognised: list[float]) -> torch.Tensor:
    flat = torch.zeros(len(subject))
    return torch.stack([flat, torch.tensor(subject), flat, torch.tensor(distance), torch.tensor(recognised)], 1)


def test_curves_are_compared_at_equal_subject_recognition() -> None:
    theirs = curve([0.2, 0.6, 1.0], [0.3, 0.4, 0.5], [0.8, 0.6, 0.4])
    ours = curve([0.5, 0.9], [0.3, 0.4], [0.75, 0.55])
    nearer, more = between(ours, theirs)
    assert nearer == pytest.approx(0.075, abs=1e-6) and more == pytest.approx(0.1, abs=1e-6)
    assert between(theirs, theirs) == pytest.approx((0, 0))
    assert all(math.isnan(value) for value in between(curve([0.1, 0.15], [0, 0], [0, 0]), theirs))
