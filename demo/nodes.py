"""The demo's own nodes: load its models, paint its pictures. Only `dev.py` puts them in a menu."""

from __future__ import annotations

from itertools import zip_longest

import numpy as np
import torch
from comfy_api.latest import ComfyExtension, io
from PIL import Image, ImageDraw, ImageFont

from . import models, painting
from .world.media import KNOWN_MEDIA, PLAIN
from .world.scenes import edges, unknown_words
from .world.sets import HANDS, KNOWN_HANDS
from .world.subjects import WORDS

SHEET_ROWS = 6
GAP, MARGIN = 6, 150  # pixels between pictures of a sheet, and left of them for labels


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
                io.Model.Output(tooltip="The demo UNet; sample 192 x 192 pictures, 12 to 20 steps, cfg 3."),
                io.Clip.Output(tooltip="Knows captions such as 'a fox in the forest, ink drawing, comic style'."),
                io.Vae.Output(tooltip="Autoencoder of the demo pictures."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        with torch.inference_mode(False):  # weights made in inference mode could not be attributed by gradients later
            return io.NodeOutput(models.load_unet(), models.load_clip(), models.load_vae())


class CBLoadDemoTransformer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CBLoadDemoTransformer",
            display_name="Load Demo Transformer",
            category="conditional balance/demo",
            description="Loads the demo transformer, in Flux form. Its text encoder and autoencoder are those of "
            "Load Demo Model.",
            inputs=[],
            outputs=[io.Model.Output(tooltip="The demo transformer; sample 192 x 192 pictures, 20 steps, cfg 3.")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        with torch.inference_mode(False):
            return io.NodeOutput(models.load_transformer())


class CBLoadDemoControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CBLoadDemoControlNet",
            display_name="Load Demo ControlNet",
            category="conditional balance/demo",
            description="Loads the ControlNet of the demo model. It follows edge maps, white lines on black.",
            inputs=[],
            outputs=[io.ControlNet.Output(tooltip="Give Apply ControlNet an edge map from Paint Demo Pictures.")],
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
            display_name="Paint Demo Pictures",
            category="conditional balance/demo",
            description="Paints scenes in one style with the demo model, each from a noise of its own; another hand or "
            "medium paints the same scenes anew.",
            inputs=[
                io.Combo.Input(
                    "hand",
                    options=[HANDS[name] for name in KNOWN_HANDS],
                    default="flat",
                    tooltip="Whose drawing: one of the eight studios that the demo model has learnt from.",
                ),
                io.Combo.Input(
                    "medium",
                    options=list(KNOWN_MEDIA),
                    default=PLAIN,
                    tooltip="What the drawing is laid down with: its texture and palette.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**31,
                    tooltip="Fixes what words leave open: poses, colours of the place, grain.",
                ),
                io.String.Input(
                    "scenes",
                    multiline=True,
                    default="a fox in the forest",
                    tooltip="One picture for each line, such as 'a fox left of a teacup by the sea'. Give all clusters "
                    "the same, so that only style differs.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The pictures, 192 x 192."),
                io.String.Output(tooltip="The prompts they were painted with, one on each line."),
                io.Image.Output(display_name="edges", tooltip="Where their colours change, white on black."),
            ],
        )

    @classmethod
    def execute(cls, hand: str, medium: str, seed: int, scenes: str) -> io.NodeOutput:
        lines = [line.strip() for line in scenes.splitlines() if line.strip()]
        captions = [painting.caption(line, hand, medium) for line in lines or [""]]
        if unknown := unknown_words(captions):
            raise ValueError(
                f"The demo model has never seen the word '{unknown[0]}': change 'scenes', 'hand' or 'medium' to words "
                f"such as {', '.join(WORDS[:8])}."
            )
        pictures = painting.painted(captions, seed)
        lines_of = edges(pictures.movedim(-1, 1))[..., None].expand(-1, -1, -1, 3)
        return io.NodeOutput(pictures, "\n".join(captions), lines_of)


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
            outputs=[io.Image.Output(tooltip="The sheet.")],
        )

    @classmethod
    def execute(cls, reference: torch.Tensor, labels: str, **rows: torch.Tensor) -> io.NodeOutput:
        batches = [reference[:1], *(rows[name] for name in sorted(rows) if rows[name] is not None)]
        return io.NodeOutput(contact_sheet(batches, labels.splitlines()))


def contact_sheet(batches: list[torch.Tensor], labels: list[str]) -> torch.Tensor:
    """Batches of pictures [B, H, W, 3], a row for each, as one picture [1, H', W', 3]; all in the first one's size."""
    height, width = batches[0].shape[1:3]
    columns = max(len(batch) for batch in batches)
    sheet = Image.new("RGB", (MARGIN + columns * (width + GAP), len(batches) * (height + GAP)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(20)
    for row, (batch, label) in enumerate(zip_longest(batches, labels[: len(batches)], fillvalue="")):
        top = row * (height + GAP)
        pen.multiline_text((8, top + height / 2), label.replace(", ", ",\n"), fill="black", font=font, anchor="lm")
        for column, picture in enumerate(batch):
            tile = Image.fromarray((255 * picture.clamp(0, 1)).round().byte().cpu().numpy())
            sheet.paste(tile.resize((width, height), Image.Resampling.LANCZOS), (MARGIN + column * (width + GAP), top))
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)[None]


class DemoExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [CBLoadDemoModel, CBLoadDemoTransformer, CBLoadDemoControlNet, CBDemoPictures, CBDemoSheet]


async def comfy_entrypoint() -> DemoExtension:
    return DemoExtension()
