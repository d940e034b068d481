"""The demo world: scenes of real drawings by many hands, small models trained on them, and nodes that offer these.

As a custom node folder of its own it gives ComfyUI the demo nodes; `dev.py` links it there.
"""


async def comfy_entrypoint():
    from .nodes import comfy_entrypoint as entry

    return await entry()
