"""The list of nodes this pack adds to the menu."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class ConditionalBalance(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return []


async def comfy_entrypoint() -> ConditionalBalance:
    return ConditionalBalance()
