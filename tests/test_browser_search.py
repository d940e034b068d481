"""Artists find the nodes by their own words, typed into the search of the front end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from conditional_balance.nodes.extension import ConditionalBalance
from devtools.server import Server
from visits import needs_browser, visited

SCHEMAS = [node.GET_SCHEMA() for node in asyncio.run(ConditionalBalance().get_node_list())]
BY_NAME = {
    "style transfer": "CBStyleFromPicture",
    "style from": "CBStyleFromPicture",
    "style injection": "CBStyleInjection",
    "style from image": "CBStyleReference",
    "keep subject": "CBKeepSubject",
    "controlnet style": "CBStyleAndStructure",
    "before after": "CBBeforeAfter",
    "background": "CBGradSAMBlend",
    "segment": "CBGradSAMMask",
    "lambda": "CBSelectLayers",
    "style amount": "CBSelectLayers",
    "structure amount": "CBGateControlNet",
}
"""Words that stand early in display names: 1.32 searches nothing else, and only their first 30 letters."""
BY_ALIAS = {
    "ipadapter": "CBStyleInjection",
    "stylealigned": "CBStyleInjection",
    "conditional balance": "CBStyleInjection",
    "replace background": "CBGradSAMBlend",
    "clipseg": "CBGradSAMMask",
    "风格迁移": "CBStyleInjection",
}
"""Words that only front ends find which search aliases; 1.32 does not."""


@pytest.fixture(scope="module")
def seen(server: Server) -> dict[str, Any]:
    """What one visit saw; its screenshot is in out/search, to be looked at."""
    return visited("search", server, words=[*BY_NAME, *BY_ALIAS], names=[schema.display_name for schema in SCHEMAS])


@needs_browser
@pytest.mark.parametrize("word", [*BY_NAME, *BY_ALIAS])
def test_a_word_finds_its_node(word: str, seen: dict[str, Any]) -> None:
    if word in BY_ALIAS and not seen["aliases"]:
        pytest.skip("This front end searches names only.")
    wanted = (BY_NAME | BY_ALIAS)[word]
    (name,) = (schema.display_name for schema in SCHEMAS if schema.node_id == wanted)
    assert name in seen["found"][word]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.node_id)
def test_every_node_has_words_to_be_found_by(schema: Any, object_info: dict) -> None:
    aliases = object_info[schema.node_id]["search_aliases"]
    assert aliases[0] == "conditional balance" and len(aliases) > 1
