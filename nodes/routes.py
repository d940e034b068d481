"""What the layer map asks the server: a profile to draw, what the widgets select, and the text that a click writes.

Python computes and JavaScript draws, so that the map cannot show another selection than the run uses.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial, wraps
from pathlib import Path
from typing import Any

from aiohttp import web
from comfy_api.latest import io

from ..engine.grammar import edited, parse
from ..engine.layers import LayerId
from ..engine.profile import SensitivityProfile
from ..engine.profile_file import LONGEST_NAME, load
from ..engine.texts import bounded, quoted
from ..render.layer_map import profile_map, selection_map
from .gate import CBSelectLayers, chosen_layers, in_facts, in_words, problem_with
from .jobs import PRESETS
from .profile import profile_path
from .results import show_results
from .saved import renewed
from .shown import recall

PREFIX = "/conditional_balance"
BY_HAND = {"pin": (True, False), "exclude": (False, True), "free": (False, False)}
"""Whether a layer is pinned and whether it is excluded, by what a click asks for; NEXT turns to the next of these."""
NEXT = "next"
MOST_BYTES = 2**18  # of a request: two texts of the grammar at their longest, ten times over
CHUNK = 2**16
STRICT = partial(json.dumps, allow_nan=False)  # JavaScript's parser knows no NaN

Asked = Mapping[str, Any]
WIDGETS = {widget.id: widget for widget in CBSelectLayers.define_schema().inputs if isinstance(widget, io.WidgetInput)}
TYPES = {io.Float.Input: float, io.Int.Input: int, io.String.Input: str, io.Combo.Input: str}


def show_profile(asked: Asked) -> dict[str, Any]:
    """The profile as `profile_map` gives it; `asked` holds {"file": name} or {"shown": key}."""
    return profile_map(_profile(asked))


def show_selection(asked: Asked) -> dict[str, Any]:
    """What the widgets would select, as `selection_map` gives it, its `summary`, and what that says as `facts`.

    `asked` holds {"profile": {"file" or "shown"}, "values": {widget: value}}; missing values are the defaults.
    """
    profile = _profile(_part(asked, "profile"))
    values = _values(_dialled(_part(asked, "values")))
    if problem := problem_with(values):
        raise ValueError(problem)
    gate, everywhere = chosen_layers(profile, values)
    shown = selection_map(gate, profile, parse(values["pin"]), parse(values["exclude"]))
    described = (gate, everywhere, profile)
    return {**shown, "summary": in_words(*described), "facts": in_facts(*described)}


def by_hand(asked: Asked) -> dict[str, str]:
    """The texts `pin` and `exclude` after a click; `asked` holds {"profile", "pin", "exclude", "layer", "state"}."""
    layers = _profile(_part(asked, "profile")).layers
    layer, state = LayerId.parse(bounded(str(asked.get("layer")), "layer", LONGEST_NAME)), str(asked.get("state"))
    if layer not in layers or state not in (*BY_HAND, NEXT):
        raise ValueError(
            f"'{layer}' cannot be set to {quoted(state)}: the profile has no such layer, or there is no such state."
        )
    texts = {name: str(asked.get(name) or "") for name in ("pin", "exclude")}
    state = _next(texts, layer, layers) if state == NEXT else state
    return {
        name: edited(texts[name], layer, layers, chosen) for name, chosen in zip(texts, BY_HAND[state], strict=True)
    }


def _next(texts: Mapping[str, str], layer: LayerId, layers: Sequence[LayerId]) -> str:
    """From free to pinned, from pinned to excluded, from excluded to free."""
    named = {name: bool(parse(text).weights(layers)[:, layers.index(layer)].any()) for name, text in texts.items()}
    return "free" if named["exclude"] else "exclude" if named["pin"] else "pin"


ANSWERS = {"profile": show_profile, "selection": show_selection, "by_hand": by_hand, "results": show_results}


def offer() -> None:
    """Add routes and handler to ComfyUI's server, where there is one: tests and scripts use the pack without."""
    server = sys.modules.get("server")  # main.py has imported it; importing it here would start half of it in a script
    instance = getattr(getattr(server, "PromptServer", None), "instance", None)
    if instance is not None:
        register(instance.routes)
        instance.add_on_prompt_handler(renewed)


def register(routes: web.RouteTableDef) -> None:
    """Add the routes to a server's table."""
    for name, answer in ANSWERS.items():
        routes.post(f"{PREFIX}/{name}")(_answering(answer))


def _answering(answer: Callable[[Asked], dict[str, Any]]) -> Callable:
    """A handler that works in a thread, so that the server stays awake; a ValueError becomes status 400."""

    @wraps(answer)
    async def handle(request: web.Request) -> web.Response:
        try:
            asked = _object(_read(await _body(request)), "The request")
            return web.json_response(await asyncio.to_thread(answer, asked), dumps=STRICT)
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)

    return handle


async def _body(request: web.Request) -> bytes:
    """What was sent. Raises ValueError when it is too long."""
    body = bytearray()
    async for part in request.content.iter_chunked(CHUNK):
        body += part
        if len(body) > MOST_BYTES:
            raise ValueError(f"The request is longer than {MOST_BYTES >> 10} kB: shorten 'pin' and 'exclude'.")
    return bytes(body)


def _read(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError("The request is not JSON that can be read: reload the page.") from error


def _profile(asked: Asked) -> SensitivityProfile:
    if "shown" in asked:
        return recall(str(asked["shown"]))
    path = profile_path(str(asked.get("file")))
    try:
        return _loaded(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise ValueError(f"{quoted(path.name)} cannot be read ({error.strerror or error}): press R.") from error


@lru_cache(maxsize=16)
def _loaded(path: Path, changed: int) -> SensitivityProfile:
    return load(path)


def _part(asked: Asked, name: str) -> Asked:
    return _object(asked.get(name, {}), f"'{name}'")


def _object(part: Any, what: str) -> Asked:
    if not isinstance(part, dict):
        raise ValueError(f"{what} must be a JSON object.")
    return part


def _dialled(sent: Asked) -> Asked:
    """A preset wins over the slider, which stays where it was when no hand has chosen the preset."""
    amount = PRESETS.get(str(sent.get("preset")))
    return sent if amount is None else {**sent, "lambda": amount}


def _values(sent: Asked) -> dict[str, Any]:
    return {name: _value(name, sent.get(name, widget.default)) for name, widget in WIDGETS.items()}


def _value(name: str, value: Any) -> Any:
    """A value with its widget's type, as the executor converts it. Raises ValueError when it cannot be converted."""
    try:
        return TYPES[type(WIDGETS[name])](value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"'{name}' cannot be {quoted(value)}: enter another value.") from error
