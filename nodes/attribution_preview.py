"""The node that shows what a blend measured while the sampler ran, as one strip of windows beneath itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..render.coverage import coverage
from ..render.overlay import heat
from ..runtime.attribution.measured import Attribution, Measured
from .findings import enlarged, enlarged_mask, report, small, with_mask
from .gradsam import Attributed
from .schema import Schema, found_by
from .shown import STRIP, summary, timed
from .subject import CATEGORY


class CBAttributionPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBAttributionPreview",
            display_name="Attribution Preview",
            category=CATEGORY,
            search_aliases=found_by("show mask", "preview mask", "attention map", "heat map"),
            description="Shows what Grad-SAM Blend found while the sampler ran: for every window the map, the mask "
            "and the mask over the picture.",
            is_output_node=True,
            inputs=[
                Attributed.Input("attribution", tooltip="From Grad-SAM Blend."),
                io.Latent.Input(
                    "after",
                    tooltip="The sampler's latent, before any node that changes it. What that run measured is shown.",
                ),
                io.Image.Input(
                    "image", optional=True, tooltip="The decoded result, for the overlay. Without it the map is shown."
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="mask", tooltip="The last window's mask, one for each picture, 1 on the subject."
                ),
                io.Image.Output(
                    display_name="windows", tooltip="One picture for each window and image: map, mask, overlay."
                ),
                io.String.Output(display_name="report", tooltip="Noise level, method and coverage of every window."),
            ],
        )

    @classmethod
    @timed
    def execute(
        cls, attribution: Attribution, after: dict[str, torch.Tensor], image: torch.Tensor | None = None
    ) -> io.NodeOutput:
        run = attribution.of(after["samples"])
        if not run.windows:
            raise ValueError(f"This run measured nothing. {' '.join(run.warnings)}")
        windows, cell = run.windows, attribution.cell
        drawn = [_drawn(each, image, cell) for each in windows]
        text = "\n".join((*(f"{each.window}, {_in_words(each)}" for each in windows), *run.warnings))
        strip = {STRIP: [_tile(*each, cls) for each in zip(windows, drawn, strict=True)]}
        words = " ".join((_in_short(windows), *run.warnings))
        shown = strip | ui.PreviewText(text).as_dict() | summary(words)
        panels = torch.cat([torch.cat(list(views.values()), 2) for views in drawn])
        return io.NodeOutput(enlarged_mask(windows[-1].mask, image, cell), panels, text, ui=shown)


def _drawn(window: Measured, image: torch.Tensor | None, cell: int) -> dict[str, torch.Tensor]:
    """A window's pictures [B, H, W, 3] by view; the map is the strongest subject's."""
    maps, mask = enlarged(window.maps, image, cell), enlarged_mask(window.mask, image, cell)
    return {
        "map": heat(maps.amax(0)),
        "mask": mask[..., None].expand(-1, -1, -1, 3),
        "overlay": with_mask(image, maps, mask),
    }


def _tile(window: Measured, drawn: dict[str, torch.Tensor], node: type[io.ComfyNode]) -> dict[str, Any]:
    """A window's part of the strip: what to write at it, and by view the files of its pictures."""
    files = {view: ui.PreviewImage(small(pictures), cls=node).values for view, pictures in drawn.items()}
    return {"window": _in_percent(window), "words": _in_words(window), **files}


def _in_percent(found: Measured) -> str:
    start, end = found.window
    return f"{start:.0%}" if end is None else f"{start:.0%} to {end:.0%}"


def _in_words(found: Measured) -> str:
    return f"sigma {found.sigma:.2f}: {report(found.method, found.note, found.mask)}"


def _in_short(windows: Sequence[Measured]) -> str:
    count = len(windows)
    covered = f"the mask covers {coverage(windows[-1].mask)} of the picture."
    return f"1 window; {covered}" if count == 1 else f"{count} windows; at the last {covered}"


NODES = [CBAttributionPreview]
