"""The list of nodes this pack adds to the menu."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import gate, profile, routes, style


class ConditionalBalance(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [*profile.NODES, *gate.NODES, *style.NODES]


async def comfy_entrypoint() -> ConditionalBalance:
    routes.offer()
    return ConditionalBalance()
