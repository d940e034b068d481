"""From weights of layers to weights of a model's parameters, by their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def parameter_weights(names: Iterable[str], known: Mapping[str, float]) -> dict[str, float]:
    """A weight for every parameter name, from those that are `known`.

    Any other parameter takes the mean over the known ones with which it shares the most of its path, such as a block's
    convolutions that of the block's attention layers, and the mean over all where it shares nothing.
    """
    groups = _means_by_path(known)
    return {name: known[name] if name in known else _nearest(name, groups) for name in names}


def _means_by_path(known: Mapping[str, float]) -> dict[str, float]:
    """The mean weight under every path that begins a known name; the empty path holds them all."""
    found: dict[str, list[float]] = {}
    for name, weight in known.items():
        for path in _paths(name):
            found.setdefault(path, []).append(weight)
    return {path: sum(weights) / len(weights) for path, weights in found.items()}


def _nearest(name: str, groups: Mapping[str, float]) -> float:
    return next((groups[path] for path in _paths(name) if path in groups), 0.0)


def _paths(name: str) -> Iterable[str]:
    """a.b.c: a.b, a and the empty path."""
    while name:
        name = name.rpartition(".")[0]
        yield name
