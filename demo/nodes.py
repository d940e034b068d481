"""The demo's own nodes: load its model, draw its pictures. Only `dev.py` puts them in a menu."""

from __future__ import annotations

from itertools import zip_longest

import numpy as np
import torch
from comfy_api.latest import ComfyExtension, io
from PIL import Image, ImageDraw, ImageFont

from . import models, world
from .hands import HANDS

SHEET_ROWS = 6
GAP = 6  # pixels between pictures of a sheet


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
                io.Model.Output(tooltip="The demo UNet; sample 128 x 128 pictures, 20 steps, cfg 2."),
                io.Clip.Output(tooltip="Knows captions such as 'a fish by the sea, comic style'."),
                io.Vae.Output(tooltip="Autoencoder of the demo pictures."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        with torch.inference_mode(False):  # weights made in inference mode could not be attributed by gradients later
            return io.NodeOutput(models.load_unet(), models.load_clip(), models.load_vae())


class CBLoadDemoControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CBLoadDemoControlNet",
            display_name="Load Demo ControlNet",
            category="conditional balance/demo",
            description="Loads the ControlNet of the demo model. It follows edge maps, white lines on black.",
            inputs=[],
            outputs=[io.ControlNet.Output(tooltip="Give Apply ControlNet an edge map from Draw Demo Pictures.")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        with torch.inference_mode(False):
            return io.NodeOutput(models.load_control_net())


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
                io.Combo.Input(
                    "hand",
                    options=list(HANDS),
                    default="plain",
                    optional=True,
                    tooltip="How shapes are drawn: the same scene in another geometry. plain is the demo model's own.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The pictures, 128 x 128."),
                io.Mask.Output(tooltip="Where each picture's subject is."),
                io.String.Output(tooltip="One caption per line."),
                io.Image.Output(display_name="edges", tooltip="The scenes' true contours, white on black."),
            ],
        )

    @classmethod
    def execute(cls, style: str, style_seed: int, count: int, scene_seed: int, hand: str = "plain") -> io.NodeOutput:
        specs = drawn_specs(style, style_seed, count, scene_seed)
        scene = world.draw_scene(specs, world.SIZE, HANDS[hand])
        pictures, edges = world.paint(scene, specs).movedim(1, -1), world.contours(scene)
        captions = "\n".join(world.captions(specs))
        return io.NodeOutput(pictures, scene.mask, captions, edges[..., None].repeat(1, 1, 1, 3))


def drawn_specs(style: str, style_seed: int, count: int, scene_seed: int) -> world.Specs:
    """`count` scenes in one style."""
    scenes = world.random_specs(count, torch.Generator().manual_seed(scene_seed))
    painter = world.random_specs(1, torch.Generator().manual_seed(style_seed), (style,))
    return scenes.in_style_of(painter[torch.zeros(count, dtype=torch.long)])


class CBDemoSheet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        rows = [
            io.Image.Input(f"row_{i}", optional=i > 1, tooltip=f"Pictures of row {i}.")
            for i in range(1, SHEET_ROWS + 1)
        ]
        return io.Schema(
            node_id="CBDemoSheet",
            display_name="Contact Sheet",
            category="conditional balance/demo",
            description="Puts batches of pictures under one another, each row beside its label and one picture on top.",
            inputs=[
                io.Image.Input("reference", tooltip="Shown at the top, labelled with the first line."),
                io.String.Input(
                    "labels",
                    multiline=True,
                    default="reference",
                    tooltip="One label per line: the reference's, then the rows'.",
                ),
                *rows,
            ],
            outputs=[io.Image.Output(tooltip="The sheet at twice the pictures' size.")],
        )

    @classmethod
    def execute(cls, reference: torch.Tensor, labels: str, **rows: torch.Tensor) -> io.NodeOutput:
        batches = [reference[:1], *(rows[name] for name in sorted(rows) if rows[name] is not None)]
        return io.NodeOutput(contact_sheet(batches, labels.splitlines()))


def contact_sheet(batches: list[torch.Tensor], labels: list[str], scale: int = 2, margin: int = 150) -> torch.Tensor:
    """[B, H, W, 3] pictures of equal size, a row for each batch, as one picture [1, H', W', 3]."""
    height, width = (scale * side for side in batches[0].shape[1:3])
    columns = max(len(batch) for batch in batches)
    sheet = Image.new("RGB", (margin + columns * (width + GAP), len(batches) * (height + GAP)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(20)
    for row, (batch, label) in enumerate(zip_longest(batches, labels[: len(batches)], fillvalue="")):
        top = row * (height + GAP)
        pen.multiline_text((8, top + height / 2), label.replace(", ", ",\n"), fill="black", font=font, anchor="lm")
        for column, picture in enumerate(batch):
            tile = Image.fromarray((255 * picture.clamp(0, 1)).round().byte().cpu().numpy())
            sheet.paste(tile.resize((width, height), Image.Resampling.LANCZOS), (margin + column * (width + GAP), top))
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)[None]


class DemoExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [CBLoadDemoModel, CBLoadDemoControlNet, CBDemoPictures, CBDemoSheet]


async def comfy_entrypoint() -> DemoExtension:
    return DemoExtension()
