"""Results of benchmarks replace a file whole or leave it alone."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from benchmarks import everything, tables
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


def test_every_kept_result_has_a_command_that_makes_it_again() -> None:
    kept = {path.stem for path in (tables.PAGE.parent / "results").glob("*.json")}
    assert {command.result for command in everything.commands()} == kept
    scripts = {path.stem for path in tables.PAGE.parent.glob("[a-z]*.py")}
    assert {command.benchmark for command in everything.commands()} <= scripts


def test_the_page_tells_the_same_commands() -> None:
    """Those that it tells whole; of the others it says in what they differ."""
    page = re.sub(r"\\\n", " ", tables.PAGE.read_text(encoding="utf-8"))
    spans = re.findall(r"`python dev.py bench ([^`]*--json [^`]*)`", page)
    spans += re.findall(r"^    python dev.py bench (.*--json .*)$", page, re.MULTILINE)
    told = [sorted(shlex.split(span.replace("FOLDER", "REPEATED"))) for span in spans]
    made = [sorted((command.benchmark, *command.arguments)) for command in everything.commands()]
    assert len(told) > 20
    for each in told:
        assert each in made, f"benchmarks/everything.py does not run: {' '.join(each)}"
