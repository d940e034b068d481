"""Whose a function is that another pack has put into a model, in words for its user."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

PACK = __name__.partition(".runtime.")[0]
OURS = "another node of Conditional Balance"


def whose(function: Any) -> str:
    """Such as "Attn2Replace of ComfyUI_IPAdapter_plus", or "self_attention of ComfyUI's nodes_pag"."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    if (named.__module__ or "").startswith(f"{PACK}."):
        return OURS
    name = named.__qualname__.replace("<locals>.", "").replace("<lambda>", "a function")
    return f"{name} of {_pack(named.__module__ or '')}"


def who_patched(options: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    """Whose patches of a kind stand in a run's transformer_options, ours aside."""
    patches = options.get("patches", {}).get(kind, ())
    return tuple(name for name in dict.fromkeys(map(whose, patches)) if name != OURS)


def _pack(module: str) -> str:
    """The pack that a module belongs to: ComfyUI names those of custom nodes by their folder's path."""
    folder = re.search(r"custom_nodes[/\\.]([^/\\.]+)", module)
    if folder:
        return folder[1].replace("_x_", ".")
    root, _, rest = module.partition(".")
    if root in ("comfy", "comfy_extras", "nodes"):
        return f"ComfyUI's {rest.rpartition('.')[2] or root}"
    return root
