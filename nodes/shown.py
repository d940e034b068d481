"""What a node shows beneath itself after it ran: a sentence, and the profile that its layer map draws."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import wraps
from threading import Lock
from typing import Any

from comfy_api.latest import io

from ..engine.profile import SensitivityProfile
from ..engine.profile_file import digest
from .widgets import brought, not_offered

SUMMARY, PROFILE, STRIP = "cb_summary", "cb_profile", "cb_strip"  # keys of the `ui` output that js/ reads
COMPARED, SUGGESTED = "cb_compared", "cb_suggested"
WARNING, ERROR, ABOUT = "cb_warning", "cb_error", "cb_about"
TOLD = "cb_told"  # what samplers said later; the page and nodes/results.py put it there
KEPT = 32
NOTICEABLE = 0.1  # seconds; below, a summary does not mention them

_profiles: OrderedDict[str, SensitivityProfile] = OrderedDict()
_lock = Lock()


def summary(words: str) -> dict[str, list[str]]:
    """A `ui` output that puts plain words beneath the node."""
    return {SUMMARY: [words]}


def warning(words: str | None) -> dict[str, list[str]]:
    """A `ui` output that puts a warning before the words beneath the node.

    It is there without a warning too: core takes what several runs of a node show by the names of the first.
    """
    return {WARNING: [words] if words else []}


def about(words: str) -> dict[str, list[str]]:
    """A `ui` output whose words stay before those of the layer map, whatever its widgets say since."""
    return {ABOUT: [words]}


def layer_map(profile: SensitivityProfile) -> dict[str, list[str]]:
    """A `ui` output that lets the node's layer map ask for this profile."""
    return {PROFILE: [remember(profile)]}


Check = Callable[[type[io.ComfyNode], Mapping[str, Any]], str | None]


def timed(execute: Callable[..., io.NodeOutput], check: Check = not_offered) -> Callable[..., io.NodeOutput]:
    """An execute() that is not run with values that `check` refuses or without a needed one, and whose summary ends in
    the seconds it took.

    Only where anybody would notice them.
    """

    @wraps(execute)
    def run(cls: type[io.ComfyNode], *args: Any, **kwargs: Any) -> io.NodeOutput:
        given = brought(cls, kwargs)
        if problem := check(cls, given):
            raise ValueError(problem)
        start = time.perf_counter()
        output = execute(cls, *args, **given)
        shown = output.ui if isinstance(output.ui, Mapping) else output.ui.as_dict() if output.ui else {}
        output.ui = with_seconds(shown, time.perf_counter() - start)
        return output

    return run


def with_seconds(shown: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """A `ui` output whose summary "4 layers." reads "4 layers; 0.4 s" where it took a noticeable time."""
    if seconds < NOTICEABLE:
        return dict(shown)
    return {**shown, SUMMARY: [f"{words.rstrip('.')}; {seconds:.1f} s" for words in shown[SUMMARY]]}


def remember(profile: SensitivityProfile) -> str:
    """Keep a profile that a node has shown, so that its map can be drawn after a page reload; returns its key."""
    key = digest(profile)
    with _lock:
        _profiles[key] = profile
        _profiles.move_to_end(key)
        while len(_profiles) > KEPT:
            _profiles.popitem(last=False)
    return key


def recall(key: str) -> SensitivityProfile:
    """The profile of a key. Raises ValueError when it was shown too long ago, or before the server started."""
    with _lock:
        if key not in _profiles:
            raise ValueError("The measured profile is no longer in memory: run the workflow once to see its map.")
        _profiles.move_to_end(key)
        return _profiles[key]
