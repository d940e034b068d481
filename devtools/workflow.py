"""Turns a workflow as the front end saves it into the prompt that the server runs, as the front end itself would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .steps import Failed

MUTED, BYPASSED = 2, 4
INSIDE, OUTSIDE = -10, -20  # the front end's ids of a subgraph's left and right border
SILENT = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}  # live in the front end only
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}

Node = Mapping[str, Any]


def to_prompt(workflow: Mapping[str, Any], object_info: Mapping[str, Any]) -> dict[str, Any]:
    """The API-format prompt of a UI-format workflow; `object_info` is what the server answers at /object_info.

    Nodes inside a subgraph are named as the front end names them: "12:3" is node 3 of the subgraph of node 12.
    Raises Failed when the workflow names a node that the server lacks.
    """
    return _Graph(workflow, workflow.get("definitions", {}).get("subgraphs", [])).prompt(object_info)


class _Graph:
    """The nodes of a workflow by id, and its links by id as (source node, source slot).

    A subgraph knows the node that `holds` it and the graph `around` that.
    """

    def __init__(
        self,
        workflow: Mapping[str, Any],
        subgraphs: Sequence[Mapping[str, Any]],
        around: _Graph | None = None,
        holds: Node | None = None,
    ) -> None:
        self.around, self.holds = around, holds
        self.name = f"{around.name}{holds['id']}:" if around and holds else ""
        self.nodes = {node["id"]: node for node in workflow["nodes"]}
        self.links = dict(map(_link, workflow["links"]))
        self.outputs = [output["linkIds"][0] for output in workflow.get("outputs", [])]
        kinds = {each["id"]: each for each in subgraphs}
        held = {number: node for number, node in self.nodes.items() if node["type"] in kinds}
        self.inside = {number: _Graph(kinds[node["type"]], subgraphs, self, node) for number, node in held.items()}

    def prompt(self, object_info: Mapping[str, Any]) -> dict[str, Any]:
        prompt = {}
        for node in self.nodes.values():
            if node["type"] in SILENT or node.get("mode") in (MUTED, BYPASSED):
                continue
            if node["id"] in self.inside:
                prompt |= self.inside[node["id"]].prompt(object_info)
                continue
            if node["type"] not in object_info:
                raise Failed(f"The workflow needs the node '{node['type']}', which this ComfyUI does not have.")
            inputs = {**_widgets(node, object_info[node["type"]]), **self.linked(node)}
            prompt[f"{self.name}{node['id']}"] = {"class_type": node["type"], "inputs": inputs}
        return prompt

    def linked(self, node: Node) -> dict[str, Any]:
        """What flows into the node's connected inputs: [node id, slot], or the value of a primitive."""
        found = {}
        for entry in node.get("inputs", []):
            source = self._source(entry.get("link"))
            if source is not None:
                found[entry["name"]] = source
        return found

    def _source(self, link: int | None) -> Any:
        if link is None:
            return None
        origin, slot = self.links[link]
        if origin == INSIDE:
            return self._from_outside(slot)
        if origin in self.inside:
            inside = self.inside[origin]
            return inside._source(inside.outputs[slot])
        node = self.nodes[origin]
        if node["type"] == "PrimitiveNode":
            return node["widgets_values"][0]
        if node["type"] == "Reroute":
            return self._source(node["inputs"][0].get("link"))
        if node.get("mode") == MUTED:
            return None
        if node.get("mode") == BYPASSED:
            return self._source(_passed_on(node, slot))
        return [f"{self.name}{origin}", slot]

    def _from_outside(self, slot: int) -> Any:
        """What flows into an input of the node that holds this subgraph, or the value of its widget."""
        entry = self.holds["inputs"][slot]
        if entry.get("link") is not None:
            return self.around._source(entry["link"])
        names = [name for owner, name in self.holds["properties"].get("proxyWidgets", ()) if owner == "-1"]
        return dict(zip(names, self.holds.get("widgets_values", ()), strict=False)).get(entry["name"])


def _link(link: list[Any] | Mapping[str, Any]) -> tuple[int, tuple[int, int]]:
    """Its id, and where it comes from; subgraphs keep links as dictionaries."""
    if isinstance(link, Mapping):
        return link["id"], (link["origin_id"], link["origin_slot"])
    return link[0], (link[1], link[2])


def _passed_on(node: Node, slot: int) -> int | None:
    """The link that a bypassed node hands through to this output: the input opposite, else the first of its type."""
    inputs, kind = node.get("inputs", []), node["outputs"][slot]["type"]
    opposite = inputs[slot : slot + 1]
    return next((entry.get("link") for entry in [*opposite, *inputs] if entry["type"] in (kind, "*")), None)


def _widgets(node: Node, info: Mapping[str, Any]) -> dict[str, Any]:
    """The node's widget values by input name. A saved list also has values of widgets that are no inputs."""
    saved = node.get("widgets_values") or []
    names = list(_widget_names(node, info))
    pairs = saved.items() if isinstance(saved, Mapping) else zip(names, saved, strict=False)
    return {name: _as_value(value) for name, value in pairs if name in names and name is not None}


def _widget_names(node: Node, info: Mapping[str, Any]) -> Iterator[str | None]:
    """Names in the order of the saved values; None stands for a widget of the front end only."""
    entries = {entry["name"]: entry for entry in node.get("inputs", [])}
    for part in ("required", "optional"):
        specs = info["input"].get(part, {})
        for name in info["input_order"].get(part, []):
            kind, options = spec_of(specs[name])
            if _is_widget(kind, options, entries.get(name)):
                yield name
                yield from companions(name, kind, options)
        if any(spec_of(spec)[1].get("image_upload") for spec in specs.values()):
            yield None  # the upload button


def spec_of(spec: list[Any]) -> tuple[str, Mapping[str, Any]]:
    kind = "COMBO" if isinstance(spec[0], list) else spec[0]
    return kind, spec[1] if len(spec) > 1 else {}


def default_of(spec: list[Any], otherwise: Any = None) -> Any:
    """A widget's own default, else the first choice of a list."""
    _, options = spec_of(spec)
    choices = spec[0] if isinstance(spec[0], list) else options.get("options")
    return options.get("default", choices[0] if choices else otherwise)


def _is_widget(kind: str, options: Mapping[str, Any], entry: Mapping[str, Any] | None) -> bool:
    """Sockets are listed among the node's inputs; what is not, or is marked there as a widget, has a saved value."""
    if options.get("forceInput"):
        return False
    return entry is None or "widget" in entry or (kind in WIDGET_TYPES and entry.get("link") is None)


def companions(name: str, kind: str, options: Mapping[str, Any]) -> list[None]:
    """The front end adds 'control after generate' to seeds, and a filter besides to lists that have it."""
    if kind == "INT" and options.get("control_after_generate", name in ("seed", "noise_seed")):
        return [None]
    if kind == "COMBO" and options.get("control_after_generate"):
        return [None, None]
    return []


def _as_value(value: Any) -> Any:
    """A bare list would be read as a link."""
    return {"__value__": value} if isinstance(value, list) else value
