"""Which ranking of layers a model gets when nobody has chosen one."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

from ...engine.grammar import GrammarError, parse
from ...engine.layers import LayerId
from ...engine.noise import evenly_spaced
from ...engine.profile import LayersDiffer, SensitivityProfile
from ...engine.profile_file import load
from ...engine.texts import shortened
from ..arch.base import Architecture
from ..arch.fingerprint import fingerprint_of
from ..arch.flux import Flux
from ..arch.registry import architecture_of
from ..runs.loaded import sampling_of
from .profiling import noise_of

MOST_FILES = 64
"""Profiles of the user that are looked into, the newest first."""
SD15, UNETS = ("o5-6", "o4", "o7", "o3", "o8", "o9-11", "m", "i"), ("o1", "o2", "o0", "o", "m", "i")
"""Where style lies in UNets nobody has measured: SD1.5's six layers first, else the decoder as in SDXL's ranking."""
FLUX = ("s", "j")
"""AlignedGen (arXiv 2509.17088) shares attention in Flux's single blocks only."""
LAST = 2
"""Of SD3.5 Large's published ranking, the first third of the blocks and the last two lead; taken for others too."""


@dataclass(frozen=True)
class Choice:
    """A ranking for a model, and a sentence that says where it comes from."""

    profile: SensitivityProfile
    words: str


def choose_profile(model: ModelPatcher, own: Sequence[Path], shipped: Sequence[Path]) -> Choice:
    """The first there is: measured on this checkpoint; published for its family; yours of its family; a guess.

    `own` are the user's files, newest first. Only profiles of style are taken; files that cannot be read are named in
    the log. Raises ValueError for a model of an unknown family.
    """
    architecture, mark = architecture_of(model), fingerprint_of(model)
    fitting = {path: profile for path, profile in _read([*own[:MOST_FILES], *shipped]) if _fits(profile, architecture)}
    for path, profile in fitting.items():
        if (profile.provenance.get("model") or {}).get("weights") == mark["weights"]:
            return Choice(profile, f"Layers by {_name(path)}, measured on this checkpoint.")
    for path in shipped:
        if path in fitting and "weights" not in (fitting[path].provenance.get("model") or {}):
            family = fitting[path].provenance.get("name", _name(path))
            return Choice(fitting[path], f"Layers by the published ranking of {family}.")
    for path in own:
        if path in fitting and _of_family(fitting[path].provenance.get("model") or {}, mark):
            return Choice(fitting[path], f"Layers by {_name(path)}, measured on another checkpoint of this family.")
    return _guessed(model, architecture)


def _of_family(measured: Mapping[str, Any], mark: Mapping[str, Any]) -> bool:
    """Whether a model is another checkpoint of the kind that was measured.

    SD2 has SD1.5's layers at SD1.5's widths, and reads text of another. Older files do not hold that width.
    """
    return measured.get("widths") == mark["widths"] and measured.get("text", mark.get("text")) == mark.get("text")


def _name(path: Path) -> str:
    return shortened(path.stem)


def _read(paths: Iterable[Path]) -> Iterable[tuple[Path, SensitivityProfile]]:
    """The profiles of style among the files."""
    for path in paths:
        try:
            profile = _loaded(path, path.stat().st_mtime_ns)
        except (ValueError, OSError) as error:
            logging.warning("Conditional Balance leaves out the profile %s: %s", _name(path), error)
            continue
        if "style" in str(profile.provenance.get("what", "")).lower():
            yield path, profile


@functools.lru_cache(maxsize=MOST_FILES)
def _loaded(path: Path, changed: int) -> SensitivityProfile:
    return load(path)


def _fits(profile: SensitivityProfile, architecture: Architecture) -> bool:
    try:
        profile.aligned(architecture.layers)
    except LayersDiffer:
        return False
    return bool(profile.scores.isfinite().all())


def _guessed(model: ModelPatcher, architecture: Architecture) -> Choice:
    """Layers that other work has named, as a ranking, so that an amount can choose among them."""
    order = guessed_order(architecture)
    first = ", ".join(map(str, order[:3]))
    words = f"Layers by a guess ({first} first), because no profile fits: measure your checkpoint to know better."
    return Choice(_ranking(model, architecture.layers, order), words)


def guessed_order(architecture: Architecture) -> list[LayerId]:
    """The layers of a model that nobody has measured, those that likely hold style first."""
    layers = architecture.layers
    if layers[0].block in ("input", "middle", "output"):
        singles = {LayerId("output", number) for number in range(3, 9)} <= set(layers)
        return _in_order(layers, SD15 if singles and len(layers) == 16 else UNETS)
    if isinstance(architecture, Flux):
        return _in_order(layers, FLUX)
    third = max(1, len(layers) // 3)
    return list(dict.fromkeys((*layers[:third], *layers[-LAST:], *layers)))


def _in_order(layers: Sequence[LayerId], entries: Sequence[str]) -> list[LayerId]:
    chosen = [layer for entry in entries for layer in _named(entry, layers)]
    return list(dict.fromkeys((*chosen, *layers)))


def _named(entry: str, layers: Sequence[LayerId]) -> list[LayerId]:
    """The layers of an entry; none in a model that lacks them, as SDXL's refiner and pruned SDXLs lack some blocks."""
    try:
        opened = parse(entry).weights(layers)[0] > 0
    except GrammarError:
        return []
    return [layer for layer, is_open in zip(layers, opened.tolist(), strict=True) if is_open]


def _ranking(model: ModelPatcher, layers: Sequence[LayerId], order: Sequence[LayerId]) -> SensitivityProfile:
    """Ranks as scores, the same at every noise level."""
    sampling, noise = sampling_of(model), noise_of(model)
    high, low = (float(sampling.percent_to_sigma(percent)) for percent in (0.02, 0.98))
    sigmas = evenly_spaced(high, low, 2, noise)
    ranks = torch.tensor([order.index(layer) + 1 for layer in layers], dtype=torch.float64) / len(layers)
    facts: Mapping[str, Any] = {"what": "style", "name": "a guess", "estimator": "layers named by hand"}
    return SensitivityProfile(
        tuple(layers), ("q", "k"), sigmas, ranks.expand(2, 2, -1).clone(), provenance=facts, noise=noise
    )
