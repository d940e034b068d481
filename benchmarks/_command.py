"""What every benchmark shares: its command line and its results as JSON."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any


def command_line(about: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with `--json FILE` and one option for each default, of the default's type."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here")
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    return parser


def keep(results: dict[str, Any], chosen: argparse.Namespace) -> str:
    """Results as JSON, also written where `--json` says, whole or not at all."""
    text = json.dumps(results, indent=1)
    if chosen.json:
        replaced(chosen.json, text + "\n")
    return text


def replaced(path: Path, text: str) -> None:
    """Write a file whole or leave it as it is."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
