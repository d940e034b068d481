"""The list of nodes this pack adds to the menu."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import gate, gradsam, profile, style, subject


class ConditionalBalance(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [*profile.NODES, *gate.NODES, *style.NODES, *subject.NODES, *gradsam.NODES]


async def comfy_entrypoint() -> ConditionalBalance:
    return ConditionalBalance()
