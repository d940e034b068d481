"""The pack's nodes speak the user's language in the front end: titles, sockets and widgets."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from devtools import face
from devtools.server import Server
from visits import needs_browser, visited

NODES = ["CBStyleFromPicture", "CBKeepSubject", "CBStyleAndStructure", "CBSuggestAmount", "CBSelectLayers"]
LANGUAGES = ["zh", "ja"]
PUBLISHED = "sdxl-base-1.0.style.published.safetensors"

pytestmark = needs_browser


@pytest.fixture(scope="module")
def seen(server: Server) -> dict[str, Any]:
    """What one visit saw; its screenshots are in out/language, to be looked at."""
    return visited("language", server, languages=LANGUAGES, nodes=NODES, profile=PUBLISHED)


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("language", [*LANGUAGES, "en"])
def test_a_node_has_its_names_in_the_language(seen: dict[str, Any], language: str, node: str) -> None:
    words, shown = face.read_words(language)[node], seen[language][node]
    assert shown["title"] == words["display_name"]
    names = {name: each["name"] for name, each in words["inputs"].items()}
    assert {name: shown["inputs"][name] for name in names} == names
    widgets = shown["widgets"].keys() & names.keys()
    assert {name: shown["widgets"][name] for name in widgets} == {name: names[name] for name in widgets}
    assert shown["fields"] == {name: names[name] for name in shown["fields"]}
    assert ("shows" in shown["fields"]) == ("shows" in names)
    assert shown["outputs"] == [words["outputs"][str(slot)]["name"] for slot in range(len(shown["outputs"]))]


@pytest.mark.parametrize("language", [*LANGUAGES, "en"])
def test_the_layer_map_says_its_choice_in_the_language(seen: dict[str, Any], language: str) -> None:
    words = json.loads((face.ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))
    said = words["conditionalBalance"]["chosen"]
    assert re.match(re.sub(r"\\{\w+\\}", ".+", re.escape(said)), seen[language]["line"]), seen[language]["line"]
