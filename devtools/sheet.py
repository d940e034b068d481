"""Writes workflows and subgraph blueprints in the front end's format, from the schemas that a server answers."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import files, workflow

WIDTH, GAP, ROW = 330, 50, 90  # columns and the space around nodes; above each one stands its title
HEAD, LINE, FIELD = 36, 26, 70  # heights: a node without lines, a line, what a field of several lines adds
SUMMARY = 50  # the words beneath a node of ours once it ran
LAYER_MAP = 320
JOBS = ("CBStyleFromPicture", "CBStyleAndStructure")
WITH_LAYER_MAP = ("CBSelectLayers", "CBProfileSensitivity", "CBLoadSensitivityProfile", *JOBS)
FRAME_HEAD, FRAME_EDGE = 90, 18  # a column's frame; its head holds its own title and the first node's
CORNER, SCREEN = (75, 135), (1080, 620)  # pixels that menus leave of 1400 x 900; Nodes 2.0 spreads nodes by a fifth
SMALLEST = 0.6  # the scale below which the canvas draws no text
APART = 100  # nodes, links and groups of a subgraph are numbered after this: newer front ends renumber what clashes

Source = tuple[int, int]  # node id, output slot


class Sheet:
    """A workflow under construction: nodes in columns, links by (node, output slot)."""

    base = 0  # numbers of nodes, links and groups begin after it

    def __init__(self, known: Mapping[str, Any]) -> None:
        self.known, self.nodes, self.links, self.groups = known, [], [], []
        self.left, self.width, self.ceiling, self.top = 0, 0, 0, 0
        self.extent, self.seen = (0, 0), None
        self.folded: list[Blueprint] = []

    def next_column(self, title: str, width: int = WIDTH) -> None:
        """Begin a column with a frame around the nodes that follow."""
        self.left += self.width + GAP if self.width else 0
        self.width, self.top = width, self.ceiling
        frame = [self.left - FRAME_EDGE, self.top - FRAME_HEAD, width + 2 * FRAME_EDGE, FRAME_HEAD + FRAME_EDGE]
        self.groups.append(
            {"id": self._next(self.groups), "title": title, "bounding": frame, "color": "#3f789e", "font_size": 24,
             "flags": {}}
        )  # fmt: skip

    def next_band(self) -> None:
        """Go on below all columns so far, which are then what the opened workflow shows."""
        self.seen = self.seen or self.extent
        self.left, self.width, self.ceiling = 0, 0, self.extent[1] + FRAME_HEAD + 2 * GAP

    def add(self, kind: str, title: str | None = None, tall: int | None = None, **inputs: Any) -> int:
        """Place a node under the last one; an input is a value for a widget or (node id, slot) for any input."""
        info, number = self.known[kind], self._next(self.nodes)
        sockets, values = self._inputs(kind, inputs)
        outputs = [
            {"name": name, "type": kind_of, "links": [], "slot_index": slot}
            for slot, (name, kind_of) in enumerate(zip(info["output_name"], info["output"], strict=True))
        ]
        node = {"type": kind, "inputs": sockets, "outputs": outputs, "widgets_values": values}
        self._place(node | {"properties": {"Node name for S&R": kind}}, tall or _height(kind, info, len(values)), title)
        self._connect(number, sockets)
        return number

    def fold(self, inside: Blueprint, sources: Sequence[Source]) -> int:
        """Place a node that holds a whole subgraph; the sources flow into its sockets in order."""
        number, node, waiting = self._next(self.nodes), inside.holder(), iter(sources)
        self.folded.append(inside)
        for socket in node["inputs"]:
            socket["from"] = None if "widget" in socket else next(waiting)
        self._place(node, inside.tall(), inside.name)
        self._connect(number, node["inputs"])
        return number

    def kind_of(self, source: Source) -> str:
        """The type of what flows out of a node."""
        number, slot = source
        return self._node(number)["outputs"][slot]["type"]

    def join(self, source: Source, node: int, name: str) -> None:
        """Connect an input of a node that was placed before its source."""
        sockets = self._node(node)["inputs"]
        slot = next(slot for slot, socket in enumerate(sockets) if socket["name"] == name)
        sockets[slot]["link"] = self._link(source, node, slot, sockets[slot]["type"])

    def note(self, text: str, tall: int = 260) -> None:
        """A Markdown note for the reader."""
        note = {"type": "MarkdownNote", "inputs": [], "outputs": [], "properties": {}, "widgets_values": [text]}
        self._place(note | {"color": "#432", "bgcolor": "#653"}, tall, "Read me")

    def _next(self, numbered: Sequence[Any]) -> int:
        return self.base + len(numbered) + 1

    def _node(self, number: int) -> dict[str, Any]:
        return self.nodes[number - self.base - 1]

    def _place(self, node: dict[str, Any], height: int, title: str | None) -> None:
        node |= {
            "id": self._next(self.nodes), "pos": [self.left, self.top], "size": [self.width, height], "flags": {},
            "order": len(self.nodes), "mode": 0,
        }  # fmt: skip
        self.nodes.append(node | ({"title": title} if title else {}))
        frame, bottom = self.groups[-1]["bounding"], self.top + height
        frame[3] = bottom + FRAME_EDGE - frame[1]
        self.extent = max(self.extent[0], self.left + self.width), max(self.extent[1], bottom)
        self.top = bottom + ROW

    def _inputs(self, kind: str, given: dict[str, Any]) -> tuple[list[dict[str, Any]], list[Any]]:
        """A node's inputs in the order that the front end makes, sockets before widgets, and its widgets' values."""
        info, sockets, widgets, values, given = self.known[kind], [], [], [], dict(given)
        for part in ("required", "optional"):
            for name in info["input_order"].get(part, []):
                spec, options = workflow.spec_of(info["input"][part][name])
                given_here = given.pop(name, None)
                source, value = (given_here, None) if isinstance(given_here, tuple) else (None, given_here)
                entry = {"name": name, "type": spec, "link": None, "from": source}
                if spec not in workflow.WIDGET_TYPES:
                    sockets.append(entry)
                    continue
                widgets.append(entry | {"widget": {"name": name}})
                if value is None:
                    value = workflow.default_of(info["input"][part][name], "" if spec == "STRING" else None)
                values.append(value)
                values += ["fixed"] * len(workflow.companions(name, spec, options))
                values += ["image"] * bool(options.get("image_upload"))  # the upload button
        if given:
            raise KeyError(f"{kind} has no input {', '.join(given)}")
        return sockets + widgets, values

    def _connect(self, number: int, sockets: list[dict[str, Any]]) -> None:
        for slot, socket in enumerate(sockets):
            source = socket.pop("from")
            if source is not None:
                socket["link"] = self._link(source, number, slot, socket["type"])

    def _link(self, source: Source, target: int, slot: int, kind: str) -> int:
        link, (origin, origin_slot) = self._next(self.links), source
        self._outlet(origin, origin_slot).append(link)
        self.links.append([link, origin, origin_slot, target, slot, kind])
        return link

    def _outlet(self, origin: int, slot: int) -> list[int]:
        """The links that leave an output, to be added to."""
        return self._node(origin)["outputs"][slot]["links"]

    def graph(self) -> dict[str, Any]:
        """The workflow; opened, its first band is seen whole unless that makes it too small to read."""
        width, height = self.seen or self.extent
        scale = max(SMALLEST, min(1, SCREEN[0] / (width + GAP), SCREEN[1] / (height + FRAME_HEAD + GAP)))
        offset = [round(CORNER[0] / scale + FRAME_EDGE), round(CORNER[1] / scale + FRAME_HEAD)]
        return {
            **self._last(), "nodes": self.nodes, "links": self.links,
            "groups": self.groups, "config": {}, "extra": {"ds": {"scale": round(scale, 2), "offset": offset}},
            "version": 0.4,
        } | self._definitions()  # fmt: skip

    def _last(self) -> dict[str, int]:
        """The highest numbers in the file."""
        whole = [self, *self.folded]
        return {
            "last_node_id": max(each.base + len(each.nodes) for each in whole),
            "last_link_id": max(each.base + len(each.links) for each in whole),
        }

    def _definitions(self) -> dict[str, Any]:
        return {"definitions": {"subgraphs": [each.definition() for each in self.folded]}} if self.folded else {}


class Blueprint(Sheet):
    """A subgraph under construction: a sheet with borders, published as a node that any workflow can place."""

    base = APART

    def __init__(self, known: Mapping[str, Any], name: str, about: str) -> None:
        super().__init__(known)
        self.name, self.about, self.ins, self.outs = name, about, [], []
        self.shown: list[tuple[str, str]] = []
        self.id = str(uuid.uuid5(uuid.NAMESPACE_URL, name))  # the same at every build

    def input(self, name: str, kind: str, value: Any = None) -> Source:
        """A slot on the left border; one of a widget's type is a widget of the node, holding `value` at first."""
        self.ins.append(self._slot(name, kind, len(self.ins)) | {"value": value})
        return workflow.INSIDE, len(self.ins) - 1

    def output(self, name: str, kind: str, source: Source) -> None:
        """A slot on the right border."""
        slot = len(self.outs)
        self.outs.append(self._slot(name, kind, slot))
        self.outs[slot]["linkIds"].append(self._link(source, workflow.OUTSIDE, slot, kind))

    def show(self, node: int, widget: str) -> None:
        """Let a widget of a node inside stand on the blueprint's face; only front ends know those of our scripts."""
        self.shown.append((str(node), widget))

    def prune(self) -> list[str]:
        """Take away the inputs that nothing inside takes; the names of those that are left."""
        left = [slot for slot, each in enumerate(self.ins) if each["linkIds"]]
        for link in self.links:
            if link[1] == workflow.INSIDE:
                link[2] = left.index(link[2])
        self.ins = [self.ins[slot] | {"pos": [0, LINE * place]} for place, slot in enumerate(left)]
        return [each["name"] for each in self.ins]

    def _slot(self, name: str, kind: str, place: int) -> dict[str, Any]:
        number = str(uuid.uuid5(uuid.UUID(self.id), f"{name} {kind}"))
        return {"id": number, "name": name, "type": kind, "linkIds": [], "pos": [0, LINE * place]}

    def _outlet(self, origin: int, slot: int) -> list[int]:
        return self.ins[slot]["linkIds"] if origin == workflow.INSIDE else super()._outlet(origin, slot)

    def graph(self) -> dict[str, Any]:
        """A workflow of one node, whose type is the subgraph: the form in which the front end publishes them."""
        place = {"id": 1, "pos": [0, 0], "size": [WIDTH, self.tall()], "flags": {}, "order": 0, "mode": 0}
        return {
            "revision": 0, **self._last(), "nodes": [place | self.holder()], "links": [],
            "definitions": {"subgraphs": [self.definition()]}, "extra": {"BlueprintDescription": self.about},
            "version": 0.4,
        }  # fmt: skip

    def holder(self) -> dict[str, Any]:
        """The node whose type is the subgraph; where it stands is not said."""
        return {
            "type": self.id, "title": self.name,
            "inputs": [self._outer(each) for each in self.ins],
            "outputs": [{"name": each["name"], "type": each["type"], "links": []} for each in self.outs],
            "properties": {
                "proxyWidgets": [*(["-1", each["name"]] for each in self._widgets()), *map(list, self.shown)]
            },
            "widgets_values": [each["value"] for each in self._widgets()],
        }  # fmt: skip

    def tall(self) -> int:
        """Room for its slots, fields and maps."""
        fields = FIELD * sum(each["type"] == "STRING" for each in self.ins)
        return HEAD + LINE * len(self.ins) + fields + LAYER_MAP * len(self.shown)

    def _widgets(self) -> list[dict[str, Any]]:
        return [each for each in self.ins if each["type"] in workflow.WIDGET_TYPES]

    def _outer(self, slot: Mapping[str, Any]) -> dict[str, Any]:
        outer = {"name": slot["name"], "type": slot["type"], "link": None}
        return outer | ({"widget": {"name": slot["name"]}} if slot["type"] in workflow.WIDGET_TYPES else {})

    def definition(self) -> dict[str, Any]:
        """What the node holds."""
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        right = self.extent[0] + 3 * GAP
        return {
            "id": self.id, "version": 1, "revision": 0, "config": {}, "name": self.name, "widgets": [], "extra": {},
            "state": {
                "lastGroupId": self.base + len(self.groups), "lastNodeId": self.base + len(self.nodes),
                "lastLinkId": self.base + len(self.links), "lastRerouteId": 0
            },
            "inputNode": {"id": workflow.INSIDE, "bounding": [-4 * GAP, 0, 140, 60 + 20 * len(self.ins)]},
            "outputNode": {"id": workflow.OUTSIDE, "bounding": [right, 0, 140, 60 + 20 * len(self.outs)]},
            "inputs": [{key: value for key, value in each.items() if key != "value"} for each in self.ins],
            "outputs": self.outs, "nodes": self.nodes, "groups": self.groups,
            "links": [dict(zip(names, link, strict=True)) for link in self.links],
        }  # fmt: skip


def save(graph: Mapping[str, Any], target: Path) -> None:
    """Write a graph; the file is replaced whole."""
    files.replace(target, f"{json.dumps(graph, indent=1)}\n".encode())


def _height(kind: str, info: Mapping[str, Any], widgets: int) -> int:
    """Room for every slot and widget, and for what our scripts add beneath."""
    specs = [
        workflow.spec_of(spec) for part in ("required", "optional") for spec in info["input"].get(part, {}).values()
    ]
    sockets = sum(kind_of not in workflow.WIDGET_TYPES for kind_of, _ in specs)
    fields = sum(bool(options.get("multiline")) for _, options in specs)
    ours = LAYER_MAP if kind in WITH_LAYER_MAP else SUMMARY * kind.startswith("CB")
    return HEAD + LINE * (max(sockets, len(info["output"])) + widgets) + FIELD * fields + ours
