"""The layer map's routes: what they answer is what a run selects, and bad requests get a sentence."""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from comfy_api.latest import io
from hypothesis import given, settings
from hypothesis import strategies as st

from conditional_balance.engine.gates import POLICIES
from conditional_balance.engine.grammar import Term
from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.profile import FEATURES
from conditional_balance.engine.profile_file import load, save
from conditional_balance.nodes import routes, shown
from conditional_balance.nodes.gate import CBSelectLayers
from conditional_balance.nodes.profile import FOLDER, CBLoadSensitivityProfile, profile_path
from conditional_balance.render.gate_map import standard_sigma

PUBLISHED = "sdxl-base-1.0.style.published.safetensors"
DEFAULTS = {
    widget.id: widget.default for widget in CBSelectLayers.define_schema().inputs if isinstance(widget, io.WidgetInput)
}


def post(path: str, body: Any) -> tuple[int, dict]:
    """Status and answer of the routes in a server of their own; text is sent as it is."""

    async def ask() -> tuple[int, dict]:
        table, app = web.RouteTableDef(), web.Application()
        routes.register(table)
        app.add_routes(table)
        async with TestClient(TestServer(app)) as client:
            sent = {"data": body} if isinstance(body, str) else {"json": body}
            answer = await client.post(f"/conditional_balance/{path}", **sent)
            return answer.status, await answer.json()

    return asyncio.run(ask())


def run(values: dict[str, Any]) -> tuple[Any, str]:
    """Gate and summary of a real run of the node on the published profile."""
    out = CBSelectLayers.execute(profile=load(profile_path(PUBLISHED)), **{**DEFAULTS, **values})
    return out.args[0], out.args[2]


@settings(max_examples=25)
@given(
    st.fixed_dictionaries(
        {
            "lambda": st.floats(0, 1) | st.integers(2, 80).map(float),
            "policy": st.sampled_from(sorted(set(POLICIES) - {"content", "style, low content"})),
            "softness": st.floats(0, 1),
            "start_percent": st.floats(0, 0.5),
            "end_percent": st.floats(0.5, 1),
            "pin": st.sampled_from(["", "o1.4-9", "q:i4", "m0.3:0.5"]),
            "exclude": st.sampled_from(["", "o2", "-m", "k:o1"]),
            "random_seed": st.integers(0, 2**53 - 1),
        }
    )
)
def test_the_map_shows_what_a_run_selects(values: dict[str, Any]) -> None:
    asked = json.loads(json.dumps({"profile": {"file": PUBLISHED}, "values": values}))
    gate, words = run(values)
    answer = routes.show_selection(asked)
    assert answer["summary"] == words
    facts = answer["facts"]
    assert words.startswith(f"{facts['some']} of {facts['of']} layers")
    assert all(f"{part} {numbers}" in words for part, numbers in facts["mostly"])
    assert ("start" in facts) == ("Only from" in words)
    assert (facts["each"] is not None) == ("At one noise level" in words)
    layers = [LayerId.parse(name) for name in routes.show_profile({"file": PUBLISHED})["layers"]]
    for row, sigma in enumerate(load(profile_path(PUBLISHED)).sigmas.tolist()):
        weights = gate.weights(sigma, layers, standard_sigma)
        for feature in ("q", "k"):
            drawn = torch.tensor(answer["weights"][feature][row], dtype=torch.float64)
            assert torch.allclose(drawn, weights[FEATURES.index(feature)], atol=1e-4)


def test_missing_values_are_the_nodes_defaults() -> None:
    status, answer = post("selection", {"profile": {"file": PUBLISHED}})
    assert status == 200 and answer["summary"] == run({})[1] and answer["summary"].startswith("30 of 70 layers")
    assert sum(answer["weights"]["q"][0]) == 30


def test_a_profile_that_a_node_showed_can_be_asked_for_after_the_run() -> None:
    out = CBLoadSensitivityProfile.execute(PUBLISHED)
    status, answer = post("profile", {"shown": out.ui["cb_profile"][0]})
    assert status == 200 and answer == post("profile", {"file": PUBLISHED})[1] and len(answer["layers"]) == 70


def test_clicks_pin_exclude_and_free_a_layer() -> None:
    asked = {"profile": {"file": PUBLISHED}, "pin": "o1.4-9", "exclude": "", "layer": "o1.5"}
    assert post("by_hand", {**asked, "state": "exclude"})[1] == {"pin": "o1.4-9, -o1.5", "exclude": "o1.5"}
    assert post("by_hand", {**asked, "layer": "i4.0", "state": "pin"})[1] == {"pin": "o1.4-9, i4.0", "exclude": ""}
    assert post("by_hand", {**asked, "exclude": "o1.5", "state": "free"})[1] == {"pin": "o1.4-9, -o1.5", "exclude": ""}


def test_one_click_after_another_pins_excludes_and_frees() -> None:
    texts, seen = {"pin": "", "exclude": ""}, []
    for _ in range(3):
        texts = post("by_hand", {"profile": FILE, **texts, "layer": "o1.5", "state": "next"})[1]
        seen.append((texts["pin"], texts["exclude"]))
    assert seen == [("o1.5", ""), ("", "o1.5"), ("", "")]


FILE = {"file": PUBLISHED}


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        ("profile", "{", "not JSON"),
        ("profile", [], "must be a JSON object"),
        ("profile", {}, "'profile': there is no 'None'"),
        ("profile", {"file": "../../secret.safetensors"}, "'profile': there is no"),
        ("profile", {"file": "/etc/passwd"}, "'profile': there is no"),
        ("profile", {"shown": "0" * 32}, "run the workflow once"),
        ("selection", {"profile": "x"}, "'profile' must be a JSON object"),
        ("selection", {"profile": FILE, "values": {"pin": "nonsense"}}, "'pin': Expected a layer"),
        ("selection", {"profile": FILE, "values": {"exclude": "i1"}}, "no layer like the one named"),
        ("selection", {"profile": FILE, "values": {"lambda": "many"}}, "'lambda' cannot be"),
        ("selection", {"profile": FILE, "values": {"lambda": None}}, "'lambda' cannot be 'None'"),
        ("selection", {"profile": FILE, "values": {"policy": "best"}}, "'policy': there is no 'best'"),
        ("selection", {"profile": FILE, "values": {"start_percent": 0.9, "end_percent": 0.1}}, "swap them"),
        ("by_hand", {"profile": FILE, "layer": "o9.9", "state": "pin"}, "no such layer"),
        ("by_hand", {"profile": FILE, "layer": "o1.5", "state": "love"}, "no such state"),
        ("by_hand", {"profile": FILE, "layer": "nonsense", "state": "pin"}, "not a layer name"),
    ],
)
def test_a_bad_request_gets_a_sentence(path: str, body: Any, sentence: str) -> None:
    status, answer = post(path, body)
    assert status == 400 and sentence in answer["error"]


DEEP = "[" * 100_000 + "]" * 100_000
HOSTILE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(
        [FILE, "x" * 20_000, 10**400, "o1," * 4000, "k\n:all", "q:o1.4-9", "-m0", "\u0130", "\ud800", "\0",
         "next", "pin", "o1.5", math.nan, math.inf, -math.inf, 1e308, "1e999", "nan", "9" * 5000, 2**64]
    ),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3),
    max_leaves=5,
)  # fmt: skip
WIDGET_VALUES = st.fixed_dictionaries({}, optional={name: HOSTILE for name in DEFAULTS})


def any_of(**parts: st.SearchStrategy) -> st.SearchStrategy:
    """An object with some of these parts, or something else."""
    return st.fixed_dictionaries({"profile": st.just(FILE)}, optional=parts) | HOSTILE


ASKED = {
    "profile": st.fixed_dictionaries({}, optional={"file": HOSTILE, "shown": HOSTILE}) | HOSTILE,
    "selection": any_of(values=WIDGET_VALUES | HOSTILE),
    "by_hand": any_of(pin=HOSTILE, exclude=HOSTILE, layer=st.just("o1.5") | HOSTILE, state=st.just("next") | HOSTILE),
}


def strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


async def sound(client: TestClient, path: str, body: Any, headers: dict[str, str] | None = None) -> None:
    """The answer is 200 or 400, JSON in either case, and an error is short."""
    answer = await client.post(f"/conditional_balance/{path}", data=body, headers=headers)
    content = strict(await answer.text())
    assert answer.status in (200, 400), content
    assert answer.status == 200 or 0 < len(content["error"]) < 700, content


def with_client(visit: Any) -> None:
    async def ask() -> None:
        table, app = web.RouteTableDef(), web.Application()
        routes.register(table)
        app.add_routes(table)
        async with TestClient(TestServer(app)) as client:
            await visit(client)

    asyncio.run(ask())


@settings(max_examples=60)
@given(st.data())
def test_any_request_gets_json_and_a_short_error(data: st.DataObject) -> None:
    asked = [(path, json.dumps(data.draw(strategy))) for path, strategy in ASKED.items()]

    async def visit(client: TestClient) -> None:
        for path, body in asked:
            await sound(client, path, body)

    with_client(visit)


@pytest.mark.parametrize("path", sorted(ASKED))
def test_bodies_that_are_no_json_get_one_sentence(path: str) -> None:
    bodies = [
        b"",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        DEEP.encode(),
        b'{"a":' * 50_000,
        b"9" * 5000,
        b"x" * 2**20,
        b"\0" * 99,
    ]
    headers = [None, {"Content-Type": "application/json; charset=klingon"}]

    async def visit(client: TestClient) -> None:
        for body in bodies:
            for header in headers:
                await sound(client, path, body, header)

    with_client(visit)


@pytest.mark.parametrize("value", [math.inf, math.nan, -1, 1e9, "inf", 10**400])
@pytest.mark.parametrize("widget", ["lambda", "softness", "start_percent", "random_seed", "number_of_layers"])
def test_numbers_that_the_node_would_refuse_are_refused(widget: str, value: Any) -> None:
    if widget != "random_seed" or value != 1e9:
        status, answer = post("selection", json.dumps({"profile": FILE, "values": {widget: value}}))
        assert status == 400 and answer["error"].startswith(f"'{widget}'") and len(answer["error"]) < 200


def test_a_pin_of_two_thousand_terms_is_matched_once_and_not_at_every_noise_level(monkeypatch) -> None:
    matched = []
    real = Term.matches
    monkeypatch.setattr(Term, "matches", lambda term, layer: matched.append(1) or real(term, layer))
    status, answer = post("selection", {"profile": FILE, "values": {"pin": "o1.8," * 2000}})
    assert status == 200 and all(answer["weights"]["q"][row][answer_index()] == 1 for row in range(14))
    assert len(matched) <= 2 * 2000 * 70  # pins are read for the gate and for the drawing
    status, answer = post("selection", {"profile": FILE, "values": {"pin": "o1.8," * 2001}})
    assert status == 400 and "after 10,000 characters" in answer["error"] and len(answer["error"]) < 400


def answer_index() -> int:
    return routes.show_profile(FILE)["layers"].index("o1.8")


def test_a_file_that_goes_away_meanwhile_is_said(monkeypatch) -> None:
    monkeypatch.setattr(routes, "profile_path", lambda name: Path("/nowhere/gone.safetensors"))
    status, answer = post("profile", FILE)
    assert status == 400 and "'gone.safetensors' cannot be read" in answer["error"]


def test_a_file_that_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = profile_path(PUBLISHED)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, FOLDER, ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    target, first = tmp_path / "mine.safetensors", load(shipped)
    save(first, target)
    before = routes.show_profile({"file": "mine.safetensors"})
    save(type(first)(first.layers, first.features, first.sigmas, first.scores.flip(-1)), target)
    os.utime(target, ns=(time.time_ns(), target.stat().st_mtime_ns + 1))
    after = routes.show_profile({"file": "mine.safetensors"})
    folder_paths.filename_list_cache.clear()
    assert before["layers"] == after["layers"] and before["scores"] != after["scores"]


def test_only_so_many_shown_profiles_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown, "KEPT", 2)
    first = load(profile_path(PUBLISHED))
    others = [type(first)(first.layers, first.features, first.sigmas, first.scores + n) for n in range(3)]
    keys = [shown.remember(each) for each in others]
    with pytest.raises(ValueError, match="run the workflow once"):
        shown.recall(keys[0])
    assert shown.recall(keys[1]) is others[1] and shown.recall(keys[2]) is others[2]


def test_a_summary_tells_the_seconds_that_anybody_would_notice() -> None:
    said = shown.summary("4 layers.")
    assert shown.with_seconds(said, 0.04) == {"cb_summary": ["4 layers."]}
    assert shown.with_seconds(said, 0.44) == {"cb_summary": ["4 layers; 0.4 s"]}
