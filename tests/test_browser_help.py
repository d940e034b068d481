"""The help of every node in a real browser: its page opens and its figure shows."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from devtools import browser, face
from devtools.server import ROOT, Server

SCHEMAS = face.schemas()

pytestmark = pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))


@pytest.fixture(scope="module")
def seen(server: Server) -> dict[str, Any]:
    """What each node's help showed; a screenshot is in out/help, to be looked at."""
    pictures = ROOT / "out" / "help"
    pictures.mkdir(parents=True, exist_ok=True)
    orders = {
        "playwright": str(browser.PLAYWRIGHT_MODULE), "browser": browser.find_browser(), "url": server.url,
        "nodes": [schema.node_id for schema in SCHEMAS], "pictures": str(pictures),
    }  # fmt: skip
    script = Path(__file__).parent / "browser" / "help.mjs"
    done = subprocess.run(["node", script, json.dumps(orders)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.node_id)
def test_the_help_shows_its_figure(seen: dict[str, Any], schema: Any) -> None:
    help_of = seen[schema.node_id]
    assert help_of["title"] == schema.display_name
    assert help_of["width"] >= 300 and help_of["shown"] > 100
    assert "When not to use it" in help_of["text"]
