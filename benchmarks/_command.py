"""What every benchmark shares: its command line and its results as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from devtools import files


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
        files.replace(chosen.json, f"{text}\n".encode())
    return text
