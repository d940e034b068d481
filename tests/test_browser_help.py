"""The help of every node in a real browser, in every language: its page opens and its figure shows."""

from __future__ import annotations

from typing import Any

import pytest

from devtools import face
from devtools.server import Server
from devtools.translations import PAGE_WORDS
from visits import needs_browser, visited

SCHEMAS = face.schemas()
LANGUAGES = (*face.WRITTEN_BY_HAND, "en")
WRITTEN = [
    (language, each) for language in LANGUAGES for each in SCHEMAS if face.page_of(each.node_id, language).exists()
]

pytestmark = needs_browser


@pytest.fixture(scope="module")
def seen(server: Server) -> dict[str, Any]:
    """What each node's help showed; screenshots are in out/help, to be looked at."""
    nodes = {language: [each.node_id for spoken, each in WRITTEN if spoken == language] for language in LANGUAGES}
    return visited("help", server, nodes=nodes)


@pytest.mark.parametrize("language, schema", WRITTEN, ids=lambda each: getattr(each, "node_id", each))
def test_the_help_shows_its_figure_in_the_language(seen: dict[str, Any], language: str, schema: Any) -> None:
    help_of, words = seen[language][schema.node_id], PAGE_WORDS[language]
    assert help_of["title"] == face.read_words(language)[schema.node_id]["display_name"]
    assert help_of["width"] >= 300 and help_of["shown"] > 100
    assert words.inputs in help_of["headings"] and words.not_for in help_of["headings"]
    assert "*" not in help_of["text"], "a star that is left over opens or ends no italics"
