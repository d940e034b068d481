"""Recordings: a folder of small files, one for each picture that was generated, with the moments of every layer.

Each file is written whole or not at all, so that an interrupted run leaves earlier pictures as they were; its name is a
hash of its tensors, so that the same picture made twice counts once, under its latest label. Tensors: `sigmas` [T], and
for each feature and layer `q.o1.8` [T, 2, channels], mean and standard deviation over tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialised

from .files import write
from .layers import LayerId
from .moments import Moments
from .noise import NOISES
from .profile import FEATURES
from .texts import quoted

FORMAT, VERSION, SUFFIX = "conditional-balance.recording", "1", ".safetensors"
MOST_PICTURES = 5000
MOST_TEXT = 2**20  # characters of a file's description
Key = tuple[LayerId, str]


@dataclass(frozen=True)
class RecordedPicture:
    """What one picture is and what the layers made of it: moments [T, channels] by layer and feature.

    `noise` is the variable of the model's schedule (`engine.noise`), `sigmas` [T] fall.
    """

    label: str
    subject: str
    model: Mapping[str, Any]
    noise: str
    sigmas: torch.Tensor
    moments: Mapping[Key, Moments]


def append(picture: RecordedPicture, folder: Path) -> Path:
    """Add a picture to a recording, whole or not at all. Raises OSError with file and cure where the disk refuses."""
    tensors = {f"{feature}.{layer}": torch.stack(moments, 1) for (layer, feature), moments in picture.moments.items()}
    tensors = {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}
    layers, features = _looked_at(picture)
    described = {
        "label": picture.label,
        "subject": picture.subject,
        "model": dict(picture.model),
        "noise": picture.noise,
        "layers": [str(layer) for layer in layers],
        "features": features,
    }
    header = {"format": FORMAT, "version": VERSION, "picture": json.dumps(described, ensure_ascii=False)}
    tensors["sigmas"] = picture.sigmas.double().cpu()
    path = folder / f"{_digest(tensors)}{SUFFIX}"
    write(path, serialised(tensors, metadata=header))
    return path


def _looked_at(picture: RecordedPicture) -> tuple[list[LayerId], list[str]]:
    """The layers and features that a picture has moments of, in their order."""
    layers, features = (layer for layer, _ in picture.moments), (feature for _, feature in picture.moments)
    return list(dict.fromkeys(layers)), list(dict.fromkeys(features))


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(name.encode() + tensors[name].numpy().tobytes())
    return content.hexdigest()[:32]


def picture_files(folder: Path) -> list[Path]:
    """The pictures of a recording, in the order of their names; none where there is no such folder."""
    return sorted(folder.glob(f"[!.]*{SUFFIX}")) if folder.is_dir() else []


@dataclass(frozen=True)
class Recording:
    """All pictures of a series, read level by level: label and subject of each, and what they have in common."""

    files: tuple[Path, ...]
    labels: tuple[str, ...]
    subjects: tuple[str, ...]
    model: Mapping[str, Any]
    layers: tuple[LayerId, ...]
    features: tuple[str, ...]
    noise: str
    sigmas: torch.Tensor

    def level(self, level: int, pictures: Sequence[int]) -> dict[LayerId, Moments]:
        """The moments [pictures, features, channels] of every layer at one noise level, of some pictures by index.

        Raises ValueError when a file has changed or gone since the recording was opened.
        """
        found: dict[LayerId, list[torch.Tensor]] = {layer: [] for layer in self.layers}
        for file in (self.files[number] for number in pictures):
            try:
                with safe_open(file, framework="pt") as opened:
                    for layer, kept in found.items():
                        parts = [opened.get_slice(f"{feature}.{layer}")[level] for feature in self.features]
                        kept.append(torch.stack(parts, 1))
            except _DAMAGE as error:
                raise _damaged(file) from error
        return {layer: Moments(*torch.stack(kept, 1)) for layer, kept in found.items()}


def open_recording(folder: Path) -> Recording:
    """Read what a recording holds, without its moments.

    Raises ValueError when there is none, when a file is damaged, or when pictures do not belong together: made by
    another model, at other noise levels, or with other features.
    """
    files = picture_files(folder)
    if not files:
        raise ValueError(
            f"The recording {quoted(folder.name)} holds no picture: generate some with Record Sensitivity."
        )
    if len(files) > MOST_PICTURES:
        raise ValueError(
            f"The recording {quoted(folder.name)} holds more than {MOST_PICTURES:,} pictures: split it up."
        )
    pictures = [_described(file) for file in files]
    first = pictures[0]
    for file, picture in zip(files, pictures, strict=True):
        _check_alike(first, picture, folder, file)
    return Recording(
        tuple(files),
        tuple(picture["label"] for picture in pictures),
        tuple(picture["subject"] for picture in pictures),
        first["model"],
        tuple(map(LayerId.parse, first["layers"])),
        tuple(first["features"]),
        first["noise"],
        first["sigmas"],
    )


def _described(file: Path) -> dict[str, Any]:
    """What a picture says of itself, with its noise levels and the widths of its tensors; checked."""
    try:
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
            if (header.get("format"), header.get("version")) != (FORMAT, VERSION):
                raise _NotAPicture
            sigmas = opened.get_tensor("sigmas").clone()  # or the file stays mapped, which locks it on Windows
            picture = json.loads(header["picture"][:MOST_TEXT]) | {"sigmas": sigmas}
            shapes = [opened.get_slice(name).get_shape() for name in _names(picture)]
        is_whole = _is_whole(picture, shapes)
    except _NotAPicture as error:
        raise ValueError(
            f"{quoted(file.name)} is not a picture of a recording: take it out of {file.parent}."
        ) from error
    except _DAMAGE as error:
        raise _damaged(file) from error
    if not is_whole:
        raise _damaged(file)
    return picture | {"widths": [shape[2] for shape in shapes]}


class _NotAPicture(Exception):
    """A safetensors file of another kind."""


_DAMAGE = (
    SafetensorError,
    OSError,
    LookupError,
    TypeError,
    AttributeError,
    ValueError,  # of JSON, of text that is none, of names of layers
    RecursionError,
    RuntimeError,
)
"""What readers raise when they meet something that nobody has written."""


def _names(picture: Mapping[str, Any]) -> list[str]:
    return [f"{feature}.{layer}" for layer in picture["layers"] for feature in picture["features"]]


def _is_whole(picture: Mapping[str, Any], shapes: Sequence[Sequence[int]]) -> bool:
    texts = all(isinstance(picture[name], str) for name in ("label", "subject", "noise"))
    lists = isinstance(picture["layers"], list) and isinstance(picture["features"], list)
    layers = [LayerId.parse(layer) for layer in picture["layers"]]
    sigmas = picture["sigmas"]
    falling = sigmas.ndim == 1 and len(sigmas) > 0 and bool((sigmas[1:] < sigmas[:-1]).all() & (sigmas[-1] > 0))
    known = set() < set(picture["features"]) <= set(FEATURES) and isinstance(picture["model"], dict)
    known = known and picture["noise"] in NOISES
    known = known and 0 < len(layers) == len(set(layers)) and len(set(picture["features"])) == len(picture["features"])
    whole = all(len(shape) == 3 and shape[0] == len(sigmas) for shape in shapes)
    return texts and lists and falling and known and whole


def _damaged(file: Path) -> ValueError:
    return ValueError(f"{quoted(file.name)} in {file.parent} is damaged: delete it, and generate that picture again.")


def difference(picture: RecordedPicture, folder: Path) -> str | None:
    """What pictures of a recording were made with and this one was not, in words; None where it belongs to them.

    Also None where there is none yet, or the first cannot be read, which is said when the recording is.
    """
    try:
        first = next((_described(file) for file in picture_files(folder)), None)
    except ValueError:
        return None
    layers, features = _looked_at(picture)
    widths = [picture.moments[layer, feature].mean.shape[-1] for layer in layers for feature in features]
    made = {"layers": [str(layer) for layer in layers], "features": features, "widths": widths}
    known = {**made, "model": picture.model, "sigmas": picture.sigmas.double().cpu()}
    return None if first is None else _difference(first, known)


def _difference(first: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """What sets two pictures apart that are no pictures of one recording."""
    if first["model"].get("weights") != other["model"].get("weights") or first["layers"] != other["layers"]:
        return "another model"
    if first["features"] != other["features"] or first["widths"] != other["widths"]:
        return "other features or another cfg (with and without a negative prompt)"
    levels, others = first["sigmas"], other["sigmas"]
    if len(levels) != len(others) or not torch.allclose(levels, others, rtol=1e-4):
        return "other noise levels (sampler, scheduler, steps or denoise)"
    return None


def _check_alike(first: Mapping[str, Any], other: Mapping[str, Any], folder: Path, file: Path) -> None:
    if differs := _difference(first, other):
        raise ValueError(
            f"The recording {quoted(folder.name)} mixes pictures: {quoted(file.name)} was made with {differs}. Record "
            "each series under a name of its own, or delete the files that do not belong to it."
        )
