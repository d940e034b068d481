"""Results of benchmarks replace a file whole or leave it alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks._command import command_line, keep


def test_results_are_written_where_asked_and_leave_nothing_else(tmp_path: Path) -> None:
    chosen = command_line("about", steps=3).parse_args(["--json", str(tmp_path / "found.json"), "--steps", "5"])
    assert chosen.steps == 5
    assert json.loads(keep({"ratio": 1.5}, chosen)) == {"ratio": 1.5}
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8")) == {"ratio": 1.5}
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


def test_earlier_results_outlive_a_failed_write(tmp_path: Path) -> None:
    (tmp_path / "found.json").mkdir()  # which no file can replace
    chosen = command_line("about").parse_args(["--json", str(tmp_path / "found.json")])
    with pytest.raises(OSError):
        keep({"ratio": 1.5}, chosen)
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


def test_the_published_tables_are_what_the_kept_results_say() -> None:
    page = tables.PAGE.read_text(encoding="utf-8")
    names = [found["name"] for found in tables.BLOCK.finditer(page)]
    assert sorted(names) == sorted(tables.TABLES)
    assert tables.with_tables(page) == page, "run `python dev.py bench tables`"
