"""The layer map in a real browser, in both renderers: what it shows, what a click writes, and what the prompt sends."""

from __future__ import annotations

from typing import Any

import pytest
from comfy_api.latest import io

from conditional_balance.nodes import routes
from conditional_balance.nodes.gate import CBSelectLayers
from devtools.server import Server
from visits import RENDERERS, needs_browser, visited

PUBLISHED = "sdxl-base-1.0.style.published.safetensors"
WIDGETS = [each.id for each in CBSelectLayers.define_schema().inputs if isinstance(each, io.WidgetInput)]

pytestmark = needs_browser


@pytest.fixture(scope="module")
def seen(server: Server) -> dict[str, Any]:
    """What one visit saw; its screenshots are in out/layer_map, to be looked at."""
    return visited("layer_map", server, profile=PUBLISHED)


def selected(state: dict[str, Any]) -> str:
    """What a run with exactly the prompt's values would select, in words."""
    values = {name: state["inputs"][name] for name in WIDGETS}
    return routes.show_selection({"profile": {"file": PUBLISHED}, "values": values})["summary"]


def test_our_scripts_do_not_complain(seen: dict[str, Any]) -> None:
    assert [complaint for complaint in seen["complaints"] if "conditional_balance" in complaint] == []


@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_visit_went_to_its_end(seen: dict[str, Any], renderer: str) -> None:
    assert "problem" not in seen[renderer], seen[renderer]["problem"]


@pytest.mark.parametrize("moment", ["first", "changed", "window", "reloaded", "pasted", "subgraph"])
@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_map_shows_what_the_prompt_will_select(seen: dict[str, Any], renderer: str, moment: str) -> None:
    state = seen[renderer][moment]
    assert state["words"] == selected(state)
    assert set(state["inputs"]) == {*WIDGETS, "profile"}


@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_map_follows_the_widgets_before_any_run(seen: dict[str, Any], renderer: str) -> None:
    assert seen[renderer]["first"]["words"].startswith("30 of 70 layers")
    assert seen[renderer]["changed"]["words"].startswith("14 of 70 layers")
    assert "Only from 50% to 100%" in seen[renderer]["window"]["words"]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_pointing_tells_name_rank_and_score(seen: dict[str, Any], renderer: str) -> None:
    shown = routes.show_profile({"file": PUBLISHED})
    column = shown["layers"].index("o1.5")
    rank, score = shown["ranks"][0][0][column], shown["scores"][0][0][column]
    assert seen[renderer]["hover"].startswith(f"o1.5 · rank {rank} of 70 · score {score:.3f} · Queries")


@pytest.mark.parametrize("renderer", RENDERERS)
def test_clicks_and_keys_write_the_widgets(seen: dict[str, Any], renderer: str) -> None:
    states = [seen[renderer][moment] for moment in ("pinned", "excluded", "freed", "kept")]
    assert states == [["o1.5", ""], ["", "o1.5"], ["", ""], ["o1.5", ""]]
    assert seen[renderer]["stillThere"] == 4  # Delete frees the layer and leaves the node


def test_nodes_2_shows_the_text_that_a_click_wrote(seen: dict[str, Any]) -> None:
    assert "o1.5" in seen["nodes2"]["shown"]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_pins_are_saved_with_the_workflow(seen: dict[str, Any], renderer: str) -> None:
    reloaded = seen[renderer]["reloaded"]
    assert reloaded["inputs"]["pin"] == "o1.5" and len(reloaded["saved"]) == len(WIDGETS)
    assert seen[renderer]["pasted"]["inputs"]["lambda"] == 0.6 and seen[renderer]["pasted"]["inputs"]["pin"] == "o1.5"


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_subgraph_that_does_not_list_the_map_shows_none(seen: dict[str, Any], renderer: str) -> None:
    assert seen[renderer]["subgraph"]["unasked"] == 0


@pytest.mark.parametrize("renderer", RENDERERS)
def test_every_node_that_ran_says_so_in_words(seen: dict[str, Any], renderer: str) -> None:
    assert seen[renderer]["end"]["event"] == "execution_success"
    words = " ".join(seen[renderer]["summaries"])
    assert "70 layers at" in words and "of 70 layers" in words
