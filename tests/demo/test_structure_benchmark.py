"""The structure benchmark's own arithmetic: edge agreement and the comparison with a weaker ControlNet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import structure
from benchmarks.structure import TOLERANCE, edge_f1


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


def setting(subject: float, distance: float, rather: float, triples: int = 4) -> torch.Tensor:
    """The same measures for every triple, [triples, MEASURES]."""
    row = torch.zeros(len(structure.MEASURES))
    row[structure.SUBJECT], row[structure.TO_B], row[structure.RATHER] = subject, distance, rather
    return row.expand(triples, -1)


def measured(**changed: torch.Tensor) -> dict[str, torch.Tensor]:
    """Strength keeps subject and style at odds along a straight line; every gate lies on it unless changed."""
    names = {name for policy in structure.POLICIES for name in structure.curve(policy)}
    strengths = {name: place for place, name in enumerate(structure.curve("strength"))}
    shares = {name: strengths.get(name, 2) / 4 for name in names}
    line = {name: setting(share, 0.3 + 0.2 * share, 0.8 - 0.4 * share) for name, share in shares.items()}
    return {**line, **changed}


def test_a_gate_is_compared_with_the_strength_that_keeps_as_many_subjects() -> None:
    found = structure.gains(measured(**{"paper 0.5": setting(0.6, 0.32, 0.66)}), structure.SUBJECT)
    level = {"mean": 0.0, "low": 0.0, "high": 0.0}
    nearer, more = (found["paper 0.5"][name] for name in structure.GAINED)
    assert nearer == pytest.approx({"mean": 0.1, "low": 0.1, "high": 0.1}, abs=1e-4)  # 0.42 by strength
    assert more == pytest.approx({"mean": 0.1, "low": 0.1, "high": 0.1}, abs=1e-4)  # 0.56 by strength
    assert found["ranked 0.34"][structure.GAINED[0]] == pytest.approx(level, abs=1e-4)
    assert found["paper, mean"][structure.GAINED[0]]["mean"] == pytest.approx(0.1 / 3, abs=1e-4)


def test_intervals_come_from_triples() -> None:
    spread = torch.cat([setting(0.5, distance, 0.6, 10) for distance in (0.3, 0.5)])
    constant = {name: values[:1].expand(20, -1) for name, values in measured().items()}
    found = structure.gains({**constant, "paper 0": spread}, structure.SUBJECT)["paper 0"][structure.GAINED[0]]
    assert found["mean"] == pytest.approx(0, abs=1e-4)
    assert -0.06 < found["low"] < -0.02 and 0.02 < found["high"] < 0.06  # two standard errors: 0.045


def test_beyond_its_ends_the_curve_of_strengths_stays_level() -> None:
    strengths = torch.stack([setting(0.2, 0.3, 0.8)[0], setting(0.9, 0.5, 0.4)[0]]).numpy()
    gates = torch.stack([setting(0.1, 0.3, 0.8)[0], setting(1.0, 0.4, 0.4)[0]]).numpy()
    found = structure.gained(gates, strengths, structure.SUBJECT)
    np.testing.assert_allclose(found, [[0, 0], [0.1, 0]], atol=1e-6)


def test_weights_rise_from_the_finest_slots_to_the_coarsest() -> None:
    assert structure.rising(0.5, 6).written == ((0.5, 0.5, 0.75, 0.75, 1, 1), 1)


def test_the_chart_marks_what_could_be_reached(tmp_path: Path) -> None:
    point = {name: {"mean": 0.4} for name in structure.MEASURES}
    names = {name for policy in structure.POLICIES for name in structure.curve(policy)}
    results = {"settings": dict.fromkeys(names, point), "anchors": dict.fromkeys(structure.ANCHORS, point)}
    structure.plot(results, tmp_path / "chart.png")
    assert Image.open(tmp_path / "chart.png").size[0] > 1000
