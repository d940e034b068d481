"""How far sharing comes is measured between no sharing and the very style."""

from __future__ import annotations

import pytest
import torch

from benchmarks.demo_model import halfway, taking, way_gone
from demo import world


def test_halfway_is_halfway_and_means_come_before_the_ratio() -> None:
    assert way_gone(torch.tensor([[0.5, 0.3, 0.5, 0.1]])) == [0.5, 0.0]
    none, half, same = (0.9, 0.1), (0.5, 0.1), (0.1, 0.1)  # the second reference leaves nothing to gain
    assert way_gone(torch.tensor([none, half, same]).T) == pytest.approx([0.5])


def test_colours_and_strokes_are_taken_apart() -> None:
    dice = torch.Generator().manual_seed(0)
    scenes, references = (world.random_specs(3, dice) for _ in range(2))
    mixed = taking(world.STROKES, scenes, references)
    colours = len(world.COLOURS)
    assert torch.equal(mixed.style[:, :colours], scenes.style[:, :colours])
    assert torch.equal(mixed.style[:, colours:], references.style[:, colours:])
    assert torch.equal(mixed.subject, scenes.subject)


def test_halfway_takes_hue_the_short_way_round() -> None:
    dice = torch.Generator().manual_seed(0)
    scenes, references = (world.random_specs(1, dice) for _ in range(2))
    scenes.style[:], references.style[:] = 0.9, 0.1
    middle = halfway(scenes, references).style
    assert middle[0].tolist() == pytest.approx([1.0] + 9 * [0.5])
