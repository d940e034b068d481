"""The demo world: a procedural picture generator, small models trained on it, and nodes that offer both.

As a custom node folder of its own it gives ComfyUI the demo nodes; `dev.py` links it there.
"""


async def comfy_entrypoint():
    from .nodes import comfy_entrypoint as entry

    return await entry()
