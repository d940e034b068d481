"""An API-format prompt to look around in, and to add nodes to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .workflow import default_of

Link = list[Any]  # [node id, output slot]


class Graph:
    """A prompt that grows; `known` is what the server answers at /object_info. The given prompt is not changed."""

    def __init__(self, prompt: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        self.prompt, self.known = dict(prompt), known

    def add(self, kind: str, **inputs: Any) -> str:
        """Add a node whose other widgets have their defaults, as front ends send them; returns its id."""
        known = self.known[kind]["input"]
        defaults = {
            name: default_of(spec) for part in ("required", "optional") for name, spec in known.get(part, {}).items()
        }
        settled = {name: value for name, value in (defaults | inputs).items() if value is not None}
        name = f"added {len(self.prompt)}"
        self.prompt[name] = {"class_type": kind, "inputs": settled}
        return name

    def changed(self, node: str, **inputs: Any) -> str:
        """A copy of a node with other inputs; returns its id."""
        name = f"added {len(self.prompt)}"
        old = self.prompt[node]
        self.prompt[name] = {"class_type": old["class_type"], "inputs": old["inputs"] | inputs}
        return name

    def rebuilt(self, node: str, old: str, new: str) -> str:
        """A copy of a node, and of all between, that depends on node `new` instead of `old`; returns its id."""
        if node == old:
            return new
        between = {name for name in self.ancestors([node]) if old in self.ancestors([name])}
        if node not in between:
            return node
        inputs = self.prompt[node]["inputs"]
        links = {name: value for name, value in inputs.items() if isinstance(value, list) and value[0] in between}
        return self.changed(node, **{name: [self.rebuilt(link[0], old, new), link[1]] for name, link in links.items()})

    def choices(self, kind: str, name: str) -> list[str]:
        """What a node's list offers."""
        parts = self.known[kind]["input"].values()
        spec = next(part[name] for part in parts if name in part)
        return spec[0] if isinstance(spec[0], list) else spec[1]["options"]

    def all(self, kind: str, upstream: str | None = None, without: str | None = None) -> list[str]:
        """The nodes of a kind in order: those that depend on a node of kind `upstream`, and on none `without`."""
        found = {name: self._kinds(name) for name, node in self.prompt.items() if node["class_type"] == kind}
        return [name for name, kinds in found.items() if upstream in (None, *kinds) and without not in kinds]

    def first(self, kind: str, **conditions: str) -> str:
        return self.all(kind, **conditions)[0]

    def input(self, node: str, name: str) -> Any:
        return self.prompt[node]["inputs"][name]

    def _kinds(self, node: str) -> set[str]:
        return {self.prompt[name]["class_type"] for name in self.ancestors([node])}

    def ancestors(self, nodes: Iterable[str]) -> set[str]:
        """The nodes themselves and all that they depend on."""
        reached, waiting = set(), list(nodes)
        while waiting:
            name = waiting.pop()
            if name not in reached:
                reached.add(name)
                waiting += [value[0] for value in self.prompt[name]["inputs"].values() if isinstance(value, list)]
        return reached

    def only(self, nodes: Iterable[str]) -> dict[str, Any]:
        """The prompt of these nodes and what they depend on."""
        kept = self.ancestors(nodes)
        return {name: node for name, node in self.prompt.items() if name in kept}
