"""Recordings that someone or something has damaged: read whole, or refused in one sentence."""

from __future__ import annotations

import errno
import json
import pathlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.moments import Moments
from conditional_balance.engine.recording_file import (
    FORMAT,
    RecordedPicture,
    append,
    open_recording,
    picture_files,
)

LAYERS = (LayerId("output", 1, 8), LayerId("joint", 3))
SIGMAS = torch.tensor([9.0, 1.0], dtype=torch.float64)
LARGE = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


def picture(seed: int = 0, label: str = "ink") -> RecordedPicture:
    dice = torch.Generator().manual_seed(seed)
    moments = {
        (layer, feature): Moments(torch.randn(2, 3, generator=dice), torch.rand(2, 3, generator=dice) + 0.1)
        for layer in LAYERS
        for feature in ("q", "k")
    }
    return RecordedPicture(label, "", {"name": "SD", "weights": "abc"}, "log", SIGMAS, moments)


def read(folder) -> None:
    """All that a profile of the recording reads. Raises ValueError, one sentence, or nothing."""
    try:
        recording = open_recording(folder)
        for level in range(len(recording.sigmas)):
            found = recording.level(level, range(len(recording.files)))
            shape = (len(recording.files), len(recording.features), 3)
            assert all(moments.mean.shape == shape for moments in found.values())
    except ValueError as error:
        assert "\n" not in str(error) and 20 < len(str(error)) < 600


@LARGE
@given(st.data())
def test_bytes_changed_anywhere_are_read_or_refused(tmp_path, data) -> None:
    path = append(picture(), tmp_path / "mine")
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    read(tmp_path / "mine")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3),
    max_leaves=6,
)
FIELDS = ("label", "subject", "model", "noise", "layers", "features")


@LARGE
@given(field=st.sampled_from(FIELDS), value=JSON, drop=st.booleans())
@example(field="features", value=["k"], drop=False)
def test_any_description_is_read_or_refused(tmp_path, field, value, drop) -> None:
    read(saved({field: None if drop else value}, tmp_path / "mine", leave_out=drop))


def saved(changed: dict[str, Any], folder: Path, leave_out: bool = False) -> Path:
    """A recording of one picture whose description is changed, or lacks what is named."""
    described = {"label": "ink", "subject": "", "model": {"weights": "abc"}, "noise": "log",
                 "layers": ["o1.8"], "features": ["q", "k"]} | changed  # fmt: skip
    described = {name: given for name, given in described.items() if not (leave_out and name in changed)}
    tensors = {f"{feature}.o1.8": torch.ones(2, 2, 3) for feature in ("q", "k")} | {"sigmas": SIGMAS}
    folder.mkdir(exist_ok=True)
    header = {"format": FORMAT, "version": "1", "picture": json.dumps(described)}
    save_file(tensors, folder / "one.safetensors", metadata=header)
    return folder


@pytest.mark.parametrize(
    "changed", [{"features": "qk"}, {"features": {"q": 1, "k": 2}}, {"layers": {"o1.8": 1}}], ids=str
)
def test_what_reads_like_a_list_and_is_none_is_refused(tmp_path, changed) -> None:
    with pytest.raises(ValueError, match="is damaged"):
        open_recording(saved(changed, tmp_path / "mine"))


@LARGE
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=0, max_size=4))
def test_any_noise_levels_are_read_or_refused(tmp_path, sigmas) -> None:
    described = {"label": "ink", "subject": "", "model": {}, "noise": "log", "layers": ["o1.8"], "features": ["q", "k"]}
    levels = len(sigmas)
    tensors = {f"{feature}.o1.8": torch.ones(levels, 2, 3) for feature in ("q", "k")} | {"sigmas": torch.tensor(sigmas)}
    folder = tmp_path / "mine"
    folder.mkdir(exist_ok=True)
    header = {"format": FORMAT, "version": "1", "picture": json.dumps(described)}
    save_file(tensors, folder / "one.safetensors", metadata=header)
    read(folder)


def test_a_disk_that_refuses_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch) -> None:
    append(picture(0), tmp_path / "series")
    before = sorted((tmp_path / "series").iterdir())

    def full(path, data) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"was not saved in .*series \(No space left on device\): free some space"):
        append(picture(1), tmp_path / "series")
    assert sorted((tmp_path / "series").iterdir()) == before


def test_a_whole_recording_comes_back(tmp_path) -> None:
    for seed in range(3):
        append(picture(seed), tmp_path / "mine")
    recording = open_recording(tmp_path / "mine")
    found = recording.level(1, [2, 0])
    assert len(picture_files(tmp_path / "mine")) == 3 and found[LAYERS[0]].mean.shape == (2, 2, 3)


def test_what_was_read_of_a_recording_keeps_no_file_mapped(tmp_path) -> None:
    """Windows neither replaces nor deletes a file that is mapped, as long as a profile made of it is in a cache."""
    files = [append(picture(seed), tmp_path / "mine") for seed in range(2)]
    recording = open_recording(tmp_path / "mine")
    found = recording.level(0, [0, 1])
    if (maps := pathlib.Path("/proc/self/maps")).exists():
        assert str(tmp_path) not in maps.read_text(encoding="utf-8", errors="replace")
    assert append(picture(0), tmp_path / "mine") in files
    for file in files:
        file.unlink()
    assert len(found) == 2 and torch.equal(recording.sigmas, SIGMAS)


def test_pictures_of_another_model_are_refused(tmp_path) -> None:
    append(picture(0), tmp_path / "mine")
    other = picture(1)
    append(RecordedPicture("oil", "", {"weights": "xyz"}, "log", SIGMAS, other.moments), tmp_path / "mine")
    with pytest.raises(ValueError, match="another model"):
        open_recording(tmp_path / "mine")
