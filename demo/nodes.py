"""The demo's own nodes: load its model, draw its pictures. Only `dev.py` puts them in a menu."""

from __future__ import annotations

import torch
from comfy_api.latest import ComfyExtension, io

from . import models, world


class CBLoadDemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CBLoadDemoModel",
            display_name="Load Demo Model",
            category="conditional balance/demo",
            description="Loads the small SDXL-shaped model that shows and tests this pack's nodes on any computer.",
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="The demo UNet; sample 128 x 128 pictures, 20 steps, cfg 4."),
                io.Clip.Output(tooltip="Knows captions such as 'a fish by the sea, comic style'."),
                io.Vae.Output(tooltip="Autoencoder of the demo pictures."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        with torch.inference_mode(False):  # weights made in inference mode could not be attributed by gradients later
            return io.NodeOutput(models.load_unet(), models.load_clip(), models.load_vae())


class CBDemoPictures(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CBDemoPictures",
            display_name="Draw Demo Pictures",
            category="conditional balance/demo",
            description="Draws scenes of the demo world in one style; the style seed fixes its hues, texture and line.",
            inputs=[
                io.Combo.Input(
                    "style",
                    options=list(world.FAMILY_NAMES),
                    tooltip="Style family; the last three were never shown to the demo model.",
                ),
                io.Int.Input(
                    "style_seed",
                    default=0,
                    min=0,
                    max=2**31,
                    tooltip="Fixes what the family leaves open: hues, texture size and angle, line width.",
                ),
                io.Int.Input("count", default=5, min=1, max=64, tooltip="How many pictures; five make a good cluster."),
                io.Int.Input(
                    "scene_seed",
                    default=0,
                    min=0,
                    max=2**31,
                    tooltip="Fixes subjects and backgrounds. Give all clusters the same, so that only style differs.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The pictures, 128 x 128."),
                io.Mask.Output(tooltip="Where each picture's subject is."),
                io.String.Output(tooltip="One caption per line."),
            ],
        )

    @classmethod
    def execute(cls, style: str, style_seed: int, count: int, scene_seed: int) -> io.NodeOutput:
        specs = drawn_specs(style, style_seed, count, scene_seed)
        pictures, masks = world.render(specs)
        return io.NodeOutput(pictures.movedim(1, -1), masks, "\n".join(world.captions(specs)))


def drawn_specs(style: str, style_seed: int, count: int, scene_seed: int) -> world.Specs:
    """`count` scenes in one style."""
    scenes = world.random_specs(count, torch.Generator().manual_seed(scene_seed))
    painter = world.random_specs(1, torch.Generator().manual_seed(style_seed), (style,))
    return scenes.in_style_of(painter[torch.zeros(count, dtype=torch.long)])


class DemoExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [CBLoadDemoModel, CBDemoPictures]


async def comfy_entrypoint() -> DemoExtension:
    return DemoExtension()
