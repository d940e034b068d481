"""The help of every node in a real browser: its page opens and its figure shows."""

from __future__ import annotations

from typing import Any

import pytest

from devtools import face
from devtools.server import Server
from visits import needs_browser, visited

SCHEMAS = face.schemas()

pytestmark = needs_browser


@pytest.fixture(scope="module")
def seen(server: Server) -> dict[str, Any]:
    """What each node's help showed; a screenshot is in out/help, to be looked at."""
    return visited("help", server, nodes=[schema.node_id for schema in SCHEMAS])


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.node_id)
def test_the_help_shows_its_figure(seen: dict[str, Any], schema: Any) -> None:
    help_of = seen[schema.node_id]
    assert help_of["title"] == schema.display_name
    assert help_of["width"] >= 300 and help_of["shown"] > 100
    assert "When not to use it" in help_of["text"]
