"""Node schemas that front ends find by the words people type, on every ComfyUI that this pack serves."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from comfy_api.latest import io

if "search_aliases" in {each.name for each in fields(io.Schema)}:  # since ComfyUI 0.11
    Schema = io.Schema  # pyright: ignore[reportAssignmentType] - which branch is taken depends on ComfyUI
else:

    @dataclass
    class _Info(io.NodeInfoV1):
        search_aliases: list[str] = field(default_factory=list)

    @dataclass
    class Schema(io.Schema):
        """A schema with `search_aliases`, which an older server hands on to whatever front end it shows."""

        search_aliases: list[str] = field(default_factory=list)

        def get_v1_info(self, cls: type[io.ComfyNode]) -> io.NodeInfoV1:
            return _Info(**vars(super().get_v1_info(cls)), search_aliases=self.search_aliases)


def found_by(*words: str) -> list[str]:
    """`search_aliases`: the words by which people look for a node besides its name, and the pack's own name."""
    return ["conditional balance", *words]
