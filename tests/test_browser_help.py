"""The help of every node in a real browser, and of some in other languages: its page opens and its figure shows."""

from __future__ import annotations

from typing import Any

import pytest

from devtools import face
from devtools.server import Server
from devtools.translations import PAGE_WORDS
from visits import needs_browser, visited

NODES = [schema.node_id for schema in face.schemas()]
FIRST = ["CBGateToText", "CBKeepSubject", "CBStyleAndStructure", "CBSuggestAmount", "CBStyleFromPicture"]
OPENED = {**dict.fromkeys(face.WRITTEN_BY_HAND, FIRST), "en": NODES}

pytestmark = needs_browser


@pytest.fixture(scope="module")
def seen(server: Server) -> dict[str, Any]:
    """What each node's help showed; screenshots are in out/help, to be looked at."""
    return visited("help", server, nodes=OPENED)


@pytest.mark.parametrize("language, node", [(language, node) for language, nodes in OPENED.items() for node in nodes])
def test_the_help_shows_its_figure_in_the_language(seen: dict[str, Any], language: str, node: str) -> None:
    help_of, words = seen[language][node], PAGE_WORDS[language]
    assert help_of["title"] == face.read_words(language)[node]["display_name"]
    assert help_of["width"] >= 300 and help_of["shown"] > 100
    assert words.inputs in help_of["headings"] and words.not_for in help_of["headings"]
    assert "*" not in help_of["text"], "a star that is left over opens or ends no italics"
