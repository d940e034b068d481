"""The sensitivity profile: scores by feature, noise level and layer, read at any sigma."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialised

from .layers import LayerId

FEATURES = ("q", "k", "v")
FORMAT = "conditional-balance.sensitivity-profile"
VERSION = 1


@dataclass(frozen=True)
class SensitivityProfile:
    """Scores of a model's self-attention layers. **Lower = more sensitive.**

    `sigmas` is [T], descending; `scores` is [F, T, L] in float64 with F along `features` and L along `layers`.
    `low` and `high` are the bootstrap interval of `scores`, same shape, or None for published ranks.
    `provenance` holds what the file's header says, in JSON types: model fingerprint, clusters, estimator, seed, time.
    """

    layers: tuple[LayerId, ...]
    features: tuple[str, ...]
    sigmas: torch.Tensor
    scores: torch.Tensor
    low: torch.Tensor | None = None
    high: torch.Tensor | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def at(self, sigma: float, feature: str) -> torch.Tensor:
        """Scores [L] of one feature at one noise level: linear in log sigma between knots, clamped outside."""
        scores = self.scores[self.features.index(feature)]
        if len(self.sigmas) == 1 or sigma >= self.sigmas[0]:
            return scores[0]
        if sigma <= self.sigmas[-1]:
            return scores[-1]
        below = int((self.sigmas > sigma).sum())
        upper, lower = self.sigmas[below - 1].double().log(), self.sigmas[below].double().log()
        share = (upper - torch.tensor(sigma, dtype=torch.float64).log()) / (upper - lower)
        return torch.lerp(scores[below - 1], scores[below], share)


def check_layers(profile: SensitivityProfile, layers: Iterable[LayerId]) -> None:
    """Raises ValueError when a profile's layers are not those of a model: it was measured on another architecture."""
    mine, theirs = set(profile.layers), set(layers)
    if mine == theirs:
        return
    example = str(min(mine ^ theirs))
    raise ValueError(
        f"'profile' was measured on {len(mine)} attention layers and 'model' has {len(theirs)} ({example} is in one "
        "only): pick a profile of this architecture, or measure one with Profile Sensitivity."
    )


def note_on_model(profile: SensitivityProfile, fingerprint: Mapping[str, Any]) -> str:
    """A sentence when a profile that fits was measured on another finetune or at other widths, else nothing."""
    measured = profile.provenance.get("model") or {}
    if "weights" not in measured:
        return f"Measured on {measured.get('name', 'a model that it does not name')}; no fingerprint to compare."
    if measured["weights"] == fingerprint["weights"]:
        return ""
    return "Measured on another finetune of this architecture: rankings usually carry over, measure again to be sure."


def save(profile: SensitivityProfile, path: str | os.PathLike[str]) -> None:
    """Write a profile as safetensors with a JSON header, whole or not at all: a temporary file replaces the old one.

    Raises ValueError when the scores are not finite numbers.
    """
    path = Path(path)
    _check(profile, path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(serialised(_tensors(profile), metadata=_header(profile)))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load(path: str | os.PathLike[str]) -> SensitivityProfile:
    """Read a profile. Raises ValueError for a file that is corrupt, of another format or not finite."""
    name = Path(path).name
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"'{name}' cannot be read ({error}): it is damaged, save or download it again.") from error
    _check_format(header, name)
    try:
        profile = _read(json.loads(header["profile"]), tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"'{name}' is incomplete ({error}): save or download it again.") from error
    _check(profile, name)
    return profile


def digest(profile: SensitivityProfile) -> str:
    """A name for exactly this profile, 32 hex digits: equal for equal scores, layers, noise levels and provenance."""
    content = hashlib.sha256(json.dumps(_header(profile), sort_keys=True).encode())
    for name, tensor in _tensors(profile).items():
        content.update(name.encode() + tensor.numpy().tobytes())
    return content.hexdigest()[:32]


def _header(profile: SensitivityProfile) -> dict[str, str]:
    described = {
        "layers": [str(layer) for layer in profile.layers],
        "features": list(profile.features),
        "provenance": dict(profile.provenance),
    }
    return {"format": FORMAT, "version": str(VERSION), "profile": json.dumps(described, ensure_ascii=False)}


def _tensors(profile: SensitivityProfile) -> dict[str, torch.Tensor]:
    named = {"sigmas": profile.sigmas, "scores": profile.scores, "low": profile.low, "high": profile.high}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items() if tensor is not None}


def _check_format(header: Mapping[str, str], name: str) -> None:
    if header.get("format") != FORMAT:
        raise ValueError(f"'{name}' is no sensitivity profile: pick a file made by Save Sensitivity Profile.")
    if header.get("version") != str(VERSION):
        raise ValueError(
            f"'{name}' has format version {header.get('version')} and this pack reads {VERSION}: update the pack."
        )


def _read(described: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> SensitivityProfile:
    return SensitivityProfile(
        layers=tuple(LayerId.parse(name) for name in described["layers"]),
        features=tuple(described["features"]),
        sigmas=tensors["sigmas"],
        scores=tensors["scores"].double(),
        low=tensors.get("low"),
        high=tensors.get("high"),
        provenance=described["provenance"],
    )


def _check(profile: SensitivityProfile, name: str) -> None:
    shape = (len(profile.features), len(profile.sigmas), len(profile.layers))
    tensors = _tensors(profile)
    sigmas = tensors.pop("sigmas")
    if any(tensor.shape != shape for tensor in tensors.values()) or min(shape) == 0:
        raise ValueError(f"'{name}' does not hold one score for each feature, noise level and layer: measure it again.")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (*tensors.values(), sigmas)):
        raise ValueError(f"'{name}' holds scores that are not numbers (NaN or infinite): measure it again.")
    if not bool((sigmas[:-1] > sigmas[1:]).all()) or sigmas[-1] <= 0:
        raise ValueError(f"'{name}' does not hold falling noise levels above zero: measure it again.")
