"""Node schemas that front ends find by the words people type, and whose choices core checks, on every ComfyUI."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from comfy_api.latest import io

COMBO = "COMBO"

if "search_aliases" in {each.name for each in fields(io.Schema)}:  # since ComfyUI 0.11
    Schema = io.Schema  # pyright: ignore[reportAssignmentType] - which branch is taken depends on ComfyUI
else:

    class Choices(list[Any]):
        """A dropdown's options in the place of its type, where older servers look for values that they may refuse.

        To links it is still the type COMBO.
        """

        def __eq__(self, other: object) -> bool:
            return COMBO in map(str.strip, other.split(",")) if isinstance(other, str) else super().__eq__(other)

        def __ne__(self, other: object) -> bool:
            return not self == other

        def __hash__(self) -> int:  # type: ignore[override] - a list has none
            return hash(COMBO)

    @dataclass
    class _Info(io.NodeInfoV1):
        search_aliases: list[str] = field(default_factory=list)

    @dataclass
    class Schema(io.Schema):
        """A schema with `search_aliases`, which an older server hands on to whatever front end it shows.

        Such a server takes any value for a dropdown of a node of version 3: it gets them as those of older nodes.
        """

        search_aliases: list[str] = field(default_factory=list)

        def get_v1_info(self, cls: type[io.ComfyNode]) -> io.NodeInfoV1:
            told = vars(super().get_v1_info(cls))
            for kind in ("required", "optional"):
                named = told["input"].get(kind, {})
                named |= {
                    name: (Choices(about["options"]), about) for name, (of, about) in named.items() if of == COMBO
                }
            return _Info(**told, search_aliases=self.search_aliases)


def found_by(*words: str) -> list[str]:
    """`search_aliases`: the words by which people look for a node besides its name, and the pack's own name."""
    return ["conditional balance", *words]


def patched_model() -> io.Output:
    """The model of a node that changes what a sampler does with it."""
    return io.Model.Output(display_name="model", tooltip="Connect to the sampler. The input model stays as it is.")
