"""Visits to the front end in a real browser, by the scripts of tests/browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from devtools import browser
from devtools.server import ROOT, Server

RENDERERS = ["litegraph", "nodes2"]

needs_browser = pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))


def visited(script: str, server: Server, **orders: Any) -> dict[str, Any]:
    """What SCRIPT.mjs saw; its screenshots, and what it saw as JSON, are in out/SCRIPT, to be looked at."""
    pictures = ROOT / "out" / script
    pictures.mkdir(parents=True, exist_ok=True)
    seen = browser.visited(
        Path(__file__).parent / "browser" / f"{script}.mjs", url=server.url, pictures=str(pictures), **orders
    )
    (pictures / "seen.json").write_text(seen, encoding="utf-8")
    return json.loads(seen)
