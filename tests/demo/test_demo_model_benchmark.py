"""How far sharing comes is measured between no sharing and the very style."""

from __future__ import annotations

import pytest
import torch

from benchmarks.demo_model import way_gone


def test_halfway_is_halfway_and_means_come_before_the_ratio() -> None:
    assert way_gone(torch.tensor([[0.5, 0.3, 0.5, 0.1]])) == [0.5, 0.0]
    none, half, same = (0.9, 0.1), (0.5, 0.1), (0.1, 0.1)  # the second reference leaves nothing to gain
    assert way_gone(torch.tensor([none, half, same]).T) == pytest.approx([0.5])
