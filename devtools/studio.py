"""Where pictures are taken: the running server, and the figures and overviews that functions draw with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

from PIL import Image

from .graph import Graph, Link
from .server import Server


@dataclass(frozen=True)
class Studio:
    """The running server and what it knows."""

    server: Server
    known: Mapping[str, Any]
    tell: Callable[[str], None]

    def shoot(self, graph: Graph, *links: Link) -> list[list[Image.Image]]:
        """The pictures that flow out of these outputs of a prompt."""
        # Each under a name of its own: ComfyUI does not tell again what it has told, when nothing has changed.
        shown = [graph.add("SaveImage", images=link, filename_prefix=f"shots/{uuid4().hex}") for link in links]
        outputs = self.server.run(graph.only(shown), tell=self.tell)
        return [[opened(self.server.fetch(each)) for each in outputs[name]["images"]] for name in shown]

    def report(self, graph: Graph, node: str) -> str:
        """The text that a node shows on itself."""
        return self.server.run(graph.only([node]), tell=self.tell)[node]["text"][0]

    @property
    def profiles(self) -> Path:
        return self.server.base / "models" / "sensitivity_profiles"


def opened(data: bytes) -> Image.Image:
    """A picture file's contents as RGB; `info` still has the workflow that it carries."""
    picture = Image.open(BytesIO(data))
    return picture if picture.mode == "RGB" else picture.convert("RGB")


@dataclass(frozen=True)
class Figure:
    """How one node's figure is made; `of` names the workflow whose prompt it builds on."""

    draw: Callable[[Studio, Graph], Image.Image]
    of: str | None


FIGURES: dict[str, Figure] = {}  # by node
OVERVIEWS: dict[str, Figure] = {}  # by the file in docs/ that shows a whole workflow


def figure(node: str, of: str | None = None) -> Callable:
    """Names the node that a function draws the figure of."""

    def note(draw: Callable[[Studio, Graph], Image.Image]) -> Callable[[Studio, Graph], Image.Image]:
        FIGURES[node] = Figure(draw, of)
        return draw

    return note


def overview(name: str, of: str) -> Callable:
    """Names the picture docs/NAME.png that a function draws of a workflow, where no single output shows it."""

    def note(draw: Callable[[Studio, Graph], Image.Image]) -> Callable[[Studio, Graph], Image.Image]:
        OVERVIEWS[name] = Figure(draw, of)
        return draw

    return note
