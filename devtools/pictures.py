"""Makes every picture that the repository ships from runs on the demo model: `python dev.py pictures [WORKFLOW ...]`.

- docs/NAME.png, where README shows it or it is there already, from the demo workflow that saves `demo_NAME`;
- a .jpg beside every example workflow: its own result, or for a checkpoint's workflow its demo twin's;
- js/docs/figures/NODE.webp for every node's help page (devtools/figures/).

Pictures in docs/ carry their workflow: dragged into ComfyUI they open it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from devtools import comfyui, face, files, server, workflow
from devtools.comfyui import ROOT
from devtools.contact import stacked
from devtools.examples import DEMOS, EXAMPLES
from devtools.figures import FIGURES, OVERVIEWS
from devtools.graph import Graph
from devtools.steps import Failed
from devtools.studio import Studio, opened
from devtools.thumbnails import ROWS, square_of

DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
README_WIDTH, FIGURE_WIDTH, THUMBNAIL, LABEL, LABEL_WIDTH = 798, 1216, 512, 24, 280  # pixels
PAINTER = "painted by the pack's small demo model"


class Gallery:
    """Writes pictures, each file whole or not at all, and remembers what it wrote."""

    def __init__(self) -> None:
        self.written: list[Path] = []

    def write(self, path: Path, data: bytes) -> None:
        files.replace(path, data)
        self.written.append(path)

    def __str__(self) -> str:
        lines = [f"  {path.stat().st_size / 1000:6.0f} kB  {path.relative_to(ROOT)}" for path in self.written]
        return "\n".join([f"wrote {len(lines)} pictures:", *lines])


def main(arguments: Sequence[str]) -> int:
    """Remake all pictures; 1 when a node has no figure."""
    parser = argparse.ArgumentParser(prog="dev.py pictures")
    parser.add_argument("--cpu", action="store_true", help="run ComfyUI on the processor")
    parser.add_argument("--node", action="append", default=[], help="only the figure of this node; may be repeated")
    parser.add_argument("workflow", nargs="*", help="only the pictures of these demo workflows")
    given, start, gallery = parser.parse_args(arguments), time.monotonic(), Gallery()
    comfy, base = Path(os.environ["COMFYUI_PATH"]), comfyui.CACHE / "pictures"
    shutil.rmtree(base, ignore_errors=True)  # so that nothing of an earlier run is found
    with server.started(Path(sys.executable), comfy, base, given.cpu) as running:
        studio = Studio(running, json.loads(running.get("/object_info")), _teller())
        if given.node:
            _figures_of(studio, gallery, given.node)
        for name, path in _chosen(given.workflow).items() if not given.node else ():
            _workflow(studio, gallery, name, path)
        if not given.workflow and not given.node:
            _figures(studio, gallery, {}, None)
    print(f"\n{gallery}\nin {time.monotonic() - start:.0f} s")
    return _complain_of_nodes_without_figure()


def _chosen(names: Sequence[str]) -> dict[str, Path]:
    """The demo workflows that are asked for, all without a name. Raises Failed for one that does not exist."""
    found = {name: path for name, path in EXAMPLES.items() if name in DEMOS}
    if unknown := set(names) - set(found):
        raise Failed(f"There is no demo workflow {', '.join(sorted(unknown))}; there are {', '.join(found)}.")
    return {name: path for name, path in found.items() if not names or name in names}


def _teller() -> Callable[[str], None]:
    """Prints lines with the seconds since now, each once while it repeats."""
    start, last = time.monotonic(), ""

    def tell(line: str) -> None:
        nonlocal last
        if line != last:
            print(f"  {time.monotonic() - start:3.0f} s  {line}", flush=True)
        last = line

    return tell


def _workflow(studio: Studio, gallery: Gallery, example: str, path: Path) -> None:
    """Run a demo workflow; write what it saves, the thumbnails of its family, and the figures that build on it."""
    graph = json.loads(path.read_text(encoding="utf-8"))
    prompt = workflow.to_prompt(graph, studio.known)
    studio.tell(f"running {example}")
    shown = _saved(studio, prompt, graph)
    shown |= _overviews(studio, Graph(prompt, studio.known), example, next(iter(shown.values())).info)
    for name, picture in shown.items():
        if name in OVERVIEWS or (DOCS / f"{name}.png").exists() or f"docs/{name}.png" in README:
            _write_doc(gallery, name, picture)
    square = square_of(studio, Graph(prompt, studio.known), list(shown.values())[-1], ROWS.get(example))
    _write_thumbnails(gallery, example, square)
    _figures(studio, gallery, prompt, example)


def _saved(studio: Studio, prompt: Mapping[str, Any], graph: Mapping[str, Any]) -> dict[str, Image.Image]:
    """Run a workflow: what it saves as `demo_NAME`, by name, in the order of its nodes; a batch becomes one picture."""
    outputs = studio.server.run(prompt, tell=studio.tell, workflow=graph)
    found: dict[str, Image.Image] = {}
    for node in prompt:
        files = [each for each in outputs.get(node, {}).get("images", []) if each["type"] == "output"]
        if files:
            pictures = [opened(studio.server.fetch(each)) for each in files]
            joined = stacked(pictures, pictures[0].width) if len(pictures) > 1 else pictures[0]
            joined.info = pictures[0].info
            found[re.sub(r"^demo_|_\d+_\.png$", "", files[0]["filename"])] = joined
    return found


def _overviews(studio: Studio, graph: Graph, of: str, carried: dict[str, str]) -> dict[str, Image.Image]:
    """Pictures of a whole workflow, by name; they carry it as well."""
    drawn = {each: overview.draw(studio, graph) for each, overview in OVERVIEWS.items() if overview.of == of}
    for picture in drawn.values():
        picture.info = carried
    return drawn


def _write_doc(gallery: Gallery, name: str, picture: Image.Image) -> None:
    """A picture at README size, in 256 colours (a third of the bytes), with its workflow inside."""
    carried = PngImagePlugin.PngInfo()
    for key in ("prompt", "workflow"):
        carried.add_text(key, picture.info[key])
    data = BytesIO()
    small = _within(picture, README_WIDTH, picture.height).quantize(256)
    small.save(data, "PNG", pnginfo=carried, optimize=True)
    gallery.write(DOCS / f"{name}.png", data.getvalue())


def _write_thumbnails(gallery: Gallery, demo: str, picture: Image.Image) -> None:
    """The picture in the template browser: of the demo workflow and, saying so, of its twins for real checkpoints."""
    for name, path in EXAMPLES.items():
        if name.rpartition("_")[0] == demo.removesuffix("_demo"):
            data = BytesIO()
            shown = _within(picture, THUMBNAIL, THUMBNAIL) if name in DEMOS else _labelled(picture)
            shown.save(data, "JPEG", quality=88)
            gallery.write(path.with_suffix(".jpg"), data.getvalue())


def _labelled(picture: Image.Image) -> Image.Image:
    """A thumbnail with a line beneath it that says which model painted it: not the one that the template is for."""
    small = _within(picture, THUMBNAIL, THUMBNAIL - LABEL)
    page = Image.new("RGB", (max(small.width, LABEL_WIDTH), small.height + LABEL), "white")
    page.paste(small, ((page.width - small.width) // 2, 0))
    middle = (page.width / 2, small.height + LABEL / 2)
    ImageDraw.Draw(page).text(middle, PAINTER, fill="#333", font=ImageFont.load_default(LABEL / 2 + 1), anchor="mm")
    return page


def _within(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The picture scaled down, if need be, to fit."""
    small = picture.copy()
    small.thumbnail((width, height), Image.Resampling.LANCZOS)
    return small


def _figures(studio: Studio, gallery: Gallery, prompt: Mapping[str, Any], of: str | None) -> None:
    """The figures that build on a workflow, or on none."""
    for node in (node for node, figure in FIGURES.items() if figure.of == of):
        _figure(studio, gallery, prompt, node)


def _figures_of(studio: Studio, gallery: Gallery, nodes: Sequence[str]) -> None:
    """The figures of some nodes alone. Raises Failed for a node without one."""
    if unknown := set(nodes) - set(FIGURES):
        raise Failed(f"There is no figure of {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}.")
    for node in nodes:
        prompt: Mapping[str, Any] = {}
        if of := FIGURES[node].of:
            prompt = workflow.to_prompt(json.loads(EXAMPLES[of].read_text(encoding="utf-8")), studio.known)
        _figure(studio, gallery, prompt, node)


def _figure(studio: Studio, gallery: Gallery, prompt: Mapping[str, Any], node: str) -> None:
    studio.tell(f"figure of {node}")
    drawn = FIGURES[node].draw(studio, Graph(prompt, studio.known))
    gallery.write(face.figure_of(node), _packed(drawn))


def _packed(picture: Image.Image) -> bytes:
    """WebP no wider than a help page, without loss where that is smaller, as it is for charts."""
    tries, shown = [], _within(picture, FIGURE_WIDTH, picture.height)
    for how in ({"lossless": True}, {"quality": 80}):
        data = BytesIO()
        shown.save(data, "WEBP", method=6, **how)
        tries.append(data.getvalue())
    return min(tries, key=len)


def _complain_of_nodes_without_figure() -> int:
    lacking = [schema.node_id for schema in face.schemas() if schema.node_id not in FIGURES]
    for node in lacking:
        print(f"{node} has no figure: write one in devtools/figures/", file=sys.stderr)
    return 1 if lacking else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Failed as failure:
        sys.exit(f"\ndev.py stopped. {failure}")
