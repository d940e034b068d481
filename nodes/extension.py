"""The list of nodes this pack adds to the menu."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import (
    adapter,
    attribution_preview,
    before_after,
    contrast,
    gate,
    gradsam,
    jobs,
    lora,
    measured,
    metadata,
    noise_blend,
    profile,
    projection,
    prompts,
    ranking,
    routes,
    structure,
    style,
    subject,
    suggest,
    trajectory,
)


class ConditionalBalance(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        modules = (
            jobs,
            profile,
            gate,
            style,
            trajectory,
            structure,
            subject,
            gradsam,
            attribution_preview,
            before_after,
            suggest,
            lora,
            adapter,
            metadata,
            projection,
            contrast,
            noise_blend,
            prompts,
            ranking,
            measured,
        )
        return [node for module in modules for node in module.NODES]


async def comfy_entrypoint() -> ConditionalBalance:
    routes.offer()
    return ConditionalBalance()
