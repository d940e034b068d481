"""The balance benchmark's own arithmetic: what it paints, and how policies are compared at equal style."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from torch import Tensor

from benchmarks import balance
from benchmarks.balance import ALL, MEASURES, NONE, SETTINGS, STYLE, SWEEP

CONTENT = MEASURES.index("content")
KNOWN = SETTINGS["known hands"].policies


def way(style: float, content: float, references: int = 6) -> Tensor:
    """The same measures for both scenes of every reference, [references, 2, MEASURES]."""
    row = torch.zeros(len(MEASURES))
    row[STYLE], row[CONTENT] = style, content
    return row.expand(references, 2, -1).clone()


def measured(**changed: Tensor) -> dict[str, Tensor]:
    """All policies lie on one straight line from none (0.5, 90 %) to all (0.3, 50 %), unless changed."""
    line = {f"{policy} {amount:g}": way(0.5 - 0.2 * amount, 0.9 - 0.4 * amount) for policy in KNOWN for amount in SWEEP}
    return {NONE: way(0.5, 0.9), **line, ALL: way(0.3, 0.5), **changed}


def test_policies_on_one_line_keep_the_same_at_equal_style() -> None:
    for found in balance.at_equal_style(measured(), KNOWN).values():
        assert found["content"] == pytest.approx({"mean": 0, "low": 0, "high": 0}, abs=1e-4)


def test_a_policy_that_loses_more_for_the_same_style_is_told_from_one_that_reaches_it_with_more_layers() -> None:
    slow = {f"random {amount:g}": way(0.5 - 0.1 * amount, 0.9 - 0.2 * amount) for amount in SWEEP}
    costly = {f"reversed {amount:g}": way(0.5 - 0.2 * amount, 0.5) for amount in SWEEP}
    found = balance.at_equal_style(measured(**slow, **costly), KNOWN)
    assert found["ranked over random"]["content"]["mean"] == pytest.approx(0, abs=1e-4)
    assert found["ranked over reversed"]["content"]["low"] > 0.1


def test_intervals_come_from_references() -> None:
    rows = measured()
    for amount in SWEEP:
        rows[f"random {amount:g}"][::2, :, CONTENT] -= 0.3
        rows[f"random {amount:g}"][1::2, :, CONTENT] += 0.3
    found = balance.at_equal_style(rows, KNOWN)["ranked over random"]["content"]
    assert found["mean"] == pytest.approx(0, abs=1e-3)
    assert found["low"] < -0.05 and found["high"] > 0.05


def test_differences_at_equal_amount_are_paired() -> None:
    noise = torch.randn(6, 2, 1)
    rows = measured(**{"ranked 0.2": way(0.45, 0.8) + noise, "static 0.2": way(0.42, 0.8) + noise})
    found = balance.at_equal_amount(rows, "ranked", "static")["0.2"]["style distance"]
    assert found == pytest.approx({"mean": 0.03, "low": 0.03, "high": 0.03}, abs=1e-3)


def test_every_reference_is_painted_in_all_ways_before_the_next() -> None:
    jobs = list(balance.planned(Namespace(references=2, unseen=1, only="")))
    ways = [job.way for job in jobs if job.setting == "known hands" and job.index == 0]
    assert ways == [job.way for job in jobs[: len(ways)]]
    assert len(set(ways)) == len(ways) == 2 + len(KNOWN) * len(SWEEP)
    assert len({job.name for job in jobs}) == len(jobs)
    unseen = {job.policy for job in jobs if job.setting == "unseen hands"}
    assert unseen == {NONE, ALL, *SETTINGS["unseen hands"].policies}


def test_few_policies_can_be_tried_beside_the_ranking() -> None:
    jobs = balance.planned(Namespace(references=1, unseen=1, only="measured"))
    assert {job.policy for job in jobs} == {NONE, ALL, "ranked", "measured", "measured, low content"}
    found = balance.at_equal_style(measured(), balance.tried("known hands", "low content"))
    assert list(found) == ["ranked over measured, low content"]
