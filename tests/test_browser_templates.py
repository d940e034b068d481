"""The template browser shows the pack's templates in the order of what people want, whatever the disk's order is."""

from __future__ import annotations

from typing import Any

import pytest

from devtools.examples import DEMOS, TITLES
from devtools.server import Server
from visits import needs_browser, visited

PACKS = {"conditional_balance": False, "conditional_balance_demo": True}

pytestmark = needs_browser


@pytest.fixture(scope="module")
def seen(server: Server) -> dict[str, Any]:
    """What one visit saw; its screenshots are in out/templates, to be looked at."""
    return visited("templates", server, packs=list(PACKS))


def in_order(demos: bool) -> list[str]:
    """Titles by number; of those of one title, the one for SDXL first. Some front ends write - as a space."""
    titles = [title.replace("-", " ") for name, title in TITLES.items() if (name in DEMOS) == demos]
    return sorted(titles, key=lambda title: (title.partition(" (")[0], not title.endswith("(SDXL)"), title))


@pytest.mark.parametrize("pack", PACKS)
def test_templates_come_in_their_order(pack: str, seen: dict[str, Any]) -> None:
    titles = list(dict.fromkeys(title.replace("-", " ") for title in seen["titles"][pack]))
    assert titles == in_order(PACKS[pack])
    assert titles[0].startswith("1 Style from a picture (")
    assert [complaint for complaint in seen["complaints"] if "conditional_balance" in complaint] == []
