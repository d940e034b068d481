"""Files of sensitivity profiles: all are read and checked here, so that a loaded profile can be trusted.

A file is safetensors. It holds float tensors `sigmas` [T] and `scores` [F, T, L], and may hold `low` and `high` like
`scores`, and `content`, `content_low` and `content_high` of a crossed series; its metadata are `format`, `version` and
`profile`, a JSON object of `layers`, `features`, `provenance` and, unless it is log sigma, `noise`. Tensors, JSON keys
and facts by other names are kept out of the check, so that the format can grow.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import save as serialised

from .files import write
from .layers import LayerId
from .noise import LOG, LOGIT, NOISES
from .profile import FEATURES, SensitivityProfile
from .scoring import Scores
from .texts import quoted

FORMAT = "conditional-balance.sensitivity-profile"
VERSION = 1
CONTENT = ("content", "content_low", "content_high")

MOST_BYTES = 32 * 2**20
MOST_LAYERS = 512  # the largest transformers have some 120
MOST_LEVELS = 256  # Profile Sensitivity measures 50 at most
MOST_TEXT = 2**20  # characters of JSON: layers, features and provenance
DEEPEST = 16  # JSON inside JSON
LONGEST_NAME = 24  # of a layer
LARGEST_SCORE = 1e9
SIGMAS = (1e-9, 1e9)
NEAREST = 1 - 1e-6  # a noise level over the one above it; nearer ones cannot be told apart in log sigma

_FLOATS = MappingProxyType({"F64": "<f8", "F32": "<f4", "F16": "<f2"})


def save(profile: SensitivityProfile, path: str | os.PathLike[str]) -> None:
    """Write a profile, whole or not at all: a temporary file replaces the old one.

    Raises ValueError for a profile that `load` would refuse, and OSError with file and cure where the disk refuses.
    """
    path = Path(path)
    _check(profile, quoted(path.name))
    write(path, serialised(_tensors(profile), metadata=_header(profile)))


def load(path: str | os.PathLike[str]) -> SensitivityProfile:
    """Read a profile; it holds what `_check` promises. Raises ValueError, one sentence, for every other file."""
    path = Path(path)
    name = quoted(path.name)
    header, tensors = _parts(_bytes_of(path, name), name)
    _check_format(header, name)
    described = _described(header.get("profile", ""), name)
    profile = SensitivityProfile(
        layers=_layers(described.get("layers"), name),
        features=_features(described.get("features"), name),
        sigmas=_read(tensors, "sigmas", name),
        scores=_read(tensors, "scores", name),
        low=_read(tensors, "low", name) if "low" in tensors else None,
        high=_read(tensors, "high", name) if "high" in tensors else None,
        provenance=described.get("provenance", {}),
        noise=described.get("noise", LOG),
        content=Scores(*(_read(tensors, key, name) for key in CONTENT)) if set(CONTENT) & set(tensors) else None,
    )
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
    } | ({} if profile.noise == LOG else {"noise": profile.noise})
    return {"format": FORMAT, "version": str(VERSION), "profile": json.dumps(described, ensure_ascii=False)}


def _tensors(profile: SensitivityProfile) -> dict[str, torch.Tensor]:
    named = {"sigmas": profile.sigmas, "scores": profile.scores, "low": profile.low, "high": profile.high}
    named |= dict(zip(CONTENT, profile.content or (), strict=False))
    return {name: tensor.detach().cpu().double().contiguous() for name, tensor in named.items() if tensor is not None}


def _bytes_of(path: Path, name: str) -> bytes:
    """All of a file, read before it is parsed: a mapped file that shrinks meanwhile would end the process."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError(f"{name} is not a file: pick a file made by Save Sensitivity Profile.")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror or error}): check the disk and the file.") from error
    if len(data) > MOST_BYTES:
        raise ValueError(f"{name} is larger than {MOST_BYTES >> 20} MB, too large for a sensitivity profile: {_AGAIN}.")
    return data


_AGAIN = "save or download it again"
_MEASURE = "measure it again"


def _parts(data: bytes, name: str) -> tuple[Mapping[str, str], Mapping[str, Mapping[str, Any]]]:
    """Metadata, and tensors as {"dtype", "shape", "data"}, of a safetensors file."""
    try:
        tensors = dict(deserialize(data))
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} cannot be read because it is damaged: {_AGAIN}.") from error
    return header.get("__metadata__") or {}, tensors


def _check_format(header: Mapping[str, str], name: str) -> None:
    if header.get("format") != FORMAT:
        raise ValueError(f"{name} is not a sensitivity profile: pick a file made by Save Sensitivity Profile.")
    if (version := header.get("version")) != str(VERSION):
        raise ValueError(f"{name} has format version {quoted(version)} and this pack reads {VERSION}: update the pack.")


def _described(text: str, name: str) -> Mapping[str, Any]:
    """The JSON object of a header. `load` raises ValueError where it is too long or none."""
    if len(text) > MOST_TEXT:
        raise _wrong(name, f"describes itself in more than {MOST_TEXT:,} characters")
    try:
        described = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(name, "describes itself in JSON that cannot be read") from error
    if not isinstance(described, dict):
        raise _wrong(name, "does not describe itself in a JSON object")
    return described


def _wrong(name: str, problem: str, cure: str = _AGAIN) -> ValueError:
    return ValueError(f"{name} {problem}: {cure}.")


def _layers(names: Any, name: str) -> tuple[LayerId, ...]:
    if not isinstance(names, list) or not names:
        raise _wrong(name, "does not list its layers")
    if len(names) > MOST_LAYERS:
        raise _wrong(name, f"lists {len(names):,} layers, more than the {MOST_LAYERS} of any model")
    return tuple(_layer(layer, name) for layer in names)


def _layer(layer: Any, name: str) -> LayerId:
    try:
        if isinstance(layer, str) and len(layer) <= LONGEST_NAME:
            return LayerId.parse(layer)
    except ValueError:
        pass
    raise _wrong(name, f"lists a layer {quoted(layer)}, which is not a layer name")


def _features(names: Any, name: str) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(feature, str) for feature in names):
        raise _wrong(name, "does not list its features")
    return tuple(names)


def _read(tensors: Mapping[str, Mapping[str, Any]], key: str, name: str) -> torch.Tensor:
    """A tensor of floats in float64."""
    tensor = tensors.get(key)
    if tensor is None or tensor["dtype"] not in _FLOATS or 0 in tensor["shape"]:
        raise _wrong(name, f"has no '{key}' made of floats")
    values = np.frombuffer(tensor["data"], _FLOATS[tensor["dtype"]]).astype(np.float64)
    return torch.from_numpy(values.reshape(tensor["shape"]))


def _check(profile: SensitivityProfile, name: str) -> None:
    """What every saved and every loaded profile keeps to. Raises ValueError where this one does not."""
    _check_names(profile, name)
    _check_sigmas(profile.sigmas, name)
    _check_noise(profile, name)
    _check_scores(profile, name)
    _check_provenance(profile.provenance, name)


def _check_names(profile: SensitivityProfile, name: str) -> None:
    if not 0 < len(profile.layers) <= MOST_LAYERS or len(set(profile.layers)) < len(profile.layers):
        raise _wrong(name, f"does not list 1 to {MOST_LAYERS} layers, each once")
    if len(set(profile.features)) < len(profile.features) or not set() < set(profile.features) <= set(FEATURES):
        raise _wrong(name, f"does not list features out of {', '.join(FEATURES)}, each once")


def _check_sigmas(sigmas: torch.Tensor, name: str) -> None:
    if sigmas.ndim != 1 or not 0 < len(sigmas) <= MOST_LEVELS:
        raise _wrong(name, f"does not hold 1 to {MOST_LEVELS} noise levels", _MEASURE)
    sigmas, (lowest, highest) = sigmas.double(), SIGMAS
    falling = (sigmas[1:] <= sigmas[:-1] * NEAREST).all()
    if not bool(falling & (sigmas[0] <= highest) & (sigmas[-1] >= lowest)):
        raise _wrong(name, "does not hold falling noise levels above zero", _MEASURE)


def _check_noise(profile: SensitivityProfile, name: str) -> None:
    if profile.noise not in NOISES:
        raise _wrong(name, f"counts noise in {quoted(profile.noise)}, and this pack knows {', '.join(NOISES)}")
    if profile.noise == LOGIT and float(profile.sigmas[0]) >= 1:
        raise _wrong(name, "holds noise levels of 1 and above, which a flow model does not have", _MEASURE)


def _check_scores(profile: SensitivityProfile, name: str) -> None:
    may_be_negative = _may_be_negative(profile.provenance)
    _check_intervals(profile, (profile.scores, profile.low, profile.high), may_be_negative, name)
    if profile.content is not None:
        _check_intervals(profile, profile.content, may_be_negative, name)


def _check_intervals(
    profile: SensitivityProfile, scores: Sequence[torch.Tensor | None], may_be_negative: bool, name: str
) -> None:
    shape = (len(profile.features), len(profile.sigmas), len(profile.layers))
    tensors = [tensor for tensor in scores if tensor is not None]
    if any(tensor.shape != shape or not tensor.is_floating_point() for tensor in tensors) or len(tensors) == 2:
        raise _wrong(name, "does not hold one score for each feature, noise level and layer", _MEASURE)
    if not all(bool((tensor.abs() <= LARGEST_SCORE).all()) for tensor in tensors):  # NaN compares false
        raise _wrong(name, "holds scores that are not numbers (NaN, infinite or too large)", _MEASURE)
    if not may_be_negative and any(bool((tensor < 0).any()) for tensor in tensors):
        raise _wrong(name, "holds negative scores, which a ratio of distances cannot be", _MEASURE)
    if len(tensors) == 3 and not bool((tensors[1] <= tensors[2]).all()):
        raise _wrong(name, "holds intervals whose low end lies above the high end", _MEASURE)


def _may_be_negative(provenance: Any) -> bool:
    """Whether scores are said to be something else than ratios: by a `scale`, or, before 0.2, as a contrast."""
    facts = provenance if isinstance(provenance, Mapping) else {}
    return "scale" in facts or "contrast of" in f"{facts.get('estimator')} {facts.get('source')}"


def _check_provenance(provenance: Any, name: str) -> None:
    """Facts that are read elsewhere have the types that are relied on there, and all of it can be written as JSON."""
    if not isinstance(provenance, Mapping) or _depth(provenance) > DEEPEST:
        raise _wrong(name, f"has a provenance that is not a JSON object, or is nested more than {DEEPEST} deep")
    wrong = [fact for fact, is_right in _FACTS.items() if fact in provenance and not is_right(provenance[fact])]
    if wrong:
        raise _wrong(name, f"has a provenance with a '{wrong[0]}' of the wrong kind")
    try:
        size = len(json.dumps(dict(provenance), ensure_ascii=False, allow_nan=False).encode())
    except ValueError as error:
        raise _wrong(name, "has a provenance with NaN, an infinite number or a broken character") from error
    if size > MOST_TEXT:
        raise _wrong(name, f"has a provenance of more than {MOST_TEXT >> 20} MB")


def _depth(value: Any) -> int:
    """How deep JSON is nested; without recursion, which would be as deep."""
    depth, level = 0, [value]
    while level := [part for whole in level for part in _inside(whole)]:
        depth += 1
    return depth


def _inside(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def _is_model(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_is_text(value.get(part, "")) for part in ("name", "weights"))


def _are_numbers(value: Any, *needed: str) -> bool:
    return isinstance(value, Mapping) and set(needed) <= set(value) and all(map(_is_number, value.values()))


_FACTS: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "what": _is_text,
        "estimator": _is_text,
        "source": _is_text,
        "scale": _is_text,
        "model": _is_model,
        "clusters": _are_numbers,
        "separation": lambda value: _are_numbers(value, "p", "share"),
        "content_separation": lambda value: _are_numbers(value, "p", "share"),
        "series": _is_text,
        "percents": lambda value: isinstance(value, list) and all(map(_is_number, value)),
        "subjects": _are_numbers,
        "pairs": lambda value: _are_numbers(value, "measured", "of"),
        "stopped": lambda value: _are_numbers(value, "images", "of", "sure"),
        "cost": lambda value: _are_numbers(value, "forward_passes", "seconds"),
    }
)
