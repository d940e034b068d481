"""The node that shows a picture before and after under one slider, and both beside their reference in one strip."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..engine.texts import counted
from ..render.overlay import in_rgb
from ..render.side_by_side import side_by_side
from .findings import small
from .schema import Schema, found_by
from .shown import COMPARED, summary, timed


class CBBeforeAfter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBBeforeAfter",
            display_name="Before and After (compare images)",
            category="conditional balance",
            search_aliases=found_by("compare", "image compare", "comparer", "slider", "side by side", "对比", "比較"),
            description="Shows two pictures under one slider, and puts them side by side into one picture to save.",
            is_output_node=True,
            inputs=[
                io.Image.Input(
                    "before", tooltip="The picture without the effect, such as the same seed without style."
                ),
                io.Image.Input(
                    "after",
                    tooltip="The picture with the effect. A batch is compared picture by picture, or with one "
                    "'before' for all.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="The picture that style or background came from; it stands first in the strip.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="strip",
                    tooltip="Reference, before and after side by side, at the height of 'after': save it to show "
                    "others what changed.",
                )
            ],
        )

    @classmethod
    @timed
    def execute(cls, before: torch.Tensor, after: torch.Tensor, reference: torch.Tensor | None = None) -> io.NodeOutput:
        given = {"reference": reference, "before": before, "after": after}
        pictures = {name: in_rgb(batch) for name, batch in given.items() if batch is not None}
        count = max(len(before), len(after))
        for name, batch in pictures.items():
            if len(batch) not in (1, count):
                raise ValueError(
                    f"'{name}' holds {len(batch)} pictures beside {count}: give one for all, or one for each."
                )
        files = {name: ui.PreviewImage(small(pictures[name]), cls=cls).values for name in ("before", "after")}
        words = f"{counted(count, 'picture')}, before and after."
        return io.NodeOutput(side_by_side(list(pictures.values())), ui={COMPARED: [files]} | summary(words))


NODES = [CBBeforeAfter]
