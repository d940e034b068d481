"""Files of profiles: whole or not there, and either a good profile or one sentence that says what is wrong."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_profile import profile

from conditional_balance.engine import files
from conditional_balance.engine.combining import contrast, trimmed_mean
from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.engine.profile_file import (
    DEEPEST,
    MOST_BYTES,
    MOST_LAYERS,
    MOST_LEVELS,
    SIGMAS,
    digest,
    load,
    save,
)
from conditional_balance.engine.scoring import Scores


def test_a_file_gives_back_what_was_saved(tmp_path):
    measured = profile(low=torch.zeros(2, 4, 3), high=torch.ones(2, 4, 3))
    save(measured, tmp_path / "new" / "mine.safetensors")
    back = load(tmp_path / "new" / "mine.safetensors")
    assert back.layers == measured.layers and back.features == measured.features
    assert dict(back.provenance) == dict(measured.provenance)
    for name in ("sigmas", "scores", "low", "high"):
        assert torch.equal(getattr(back, name), getattr(measured, name).double())


def test_both_scores_of_a_crossed_series_come_back(tmp_path):
    content = Scores(torch.full((2, 4, 3), 0.5), torch.zeros(2, 4, 3), torch.ones(2, 4, 3))
    save(profile(content=content), tmp_path / "mine.safetensors")
    back = load(tmp_path / "mine.safetensors").content
    assert all(torch.equal(one, other.double()) for one, other in zip(back, content, strict=True))
    assert digest(profile(content=content)) != digest(profile())


FAILURES = [
    (OSError(errno.ENOSPC, "No space left on device"), "free some space"),
    (PermissionError(errno.EACCES, "Permission denied"), "allow ComfyUI to write"),
    (OSError(errno.EROFS, "Read-only file system"), "writable"),
    (OSError(errno.ENAMETOOLONG, "File name too long"), "shorter name"),
    (OSError("no number"), "run it again"),
]


@pytest.mark.parametrize(("error", "cure"), FAILURES, ids=lambda part: str(part)[:24])
@pytest.mark.parametrize("step", ["replace", "write_bytes", "mkdir"])
def test_a_failed_save_names_file_and_cure_and_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch, error, cure, step
):
    path = tmp_path / "mine.safetensors"
    save(profile(), path)
    before = path.read_bytes()

    def fails(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(os if step == "replace" else Path, step, fails)
    with pytest.raises(type(error), match=rf"'mine\.safetensors' was not saved in .*{cure}") as said:
        save(profile(scores=torch.ones(2, 4, 3, dtype=torch.float64)), path)
    assert "\n" not in str(said.value) and str(said.value).endswith(".")
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == ["mine.safetensors"]


def test_a_file_that_somebody_reads_for_a_moment_is_replaced_all_the_same(tmp_path, monkeypatch):
    """Windows refuses meanwhile; a file that stays locked is said in the end."""
    path, replace, refusals = tmp_path / "mine.safetensors", os.replace, [2]

    def refusing(*paths):
        refusals[0] -= 1
        if refusals[0] >= 0:
            raise PermissionError(errno.EACCES, "Access is denied")
        return replace(*paths)

    monkeypatch.setattr(files, "PATIENCE", 0.5)
    monkeypatch.setattr(os, "replace", refusing)
    save(profile(), path)
    assert load(path).layers == profile().layers
    refusals[0] = 1000
    with pytest.raises(PermissionError, match=r"'mine\.safetensors' was not saved in .*close what has the file open"):
        save(profile(), path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.safetensors"]


def test_a_folder_of_that_name_and_a_file_in_place_of_the_folder_are_said(tmp_path):
    (tmp_path / "mine.safetensors").mkdir()
    with pytest.raises(OSError, match=r"'mine\.safetensors' was not saved .*there is a folder of that name"):
        save(profile(), tmp_path / "mine.safetensors")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"'mine\.safetensors' was not saved"):
        save(profile(), tmp_path / "file" / "mine.safetensors")
    assert {entry.name for entry in tmp_path.iterdir()} == {"mine.safetensors", "file"}


def test_scores_that_are_not_numbers_are_never_written(tmp_path):
    scores = profile().scores.clone()
    scores[0, 1, 2] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        save(profile(scores=scores), tmp_path / "mine.safetensors")
    assert not list(tmp_path.iterdir())


def header(**changes) -> dict[str, str]:
    described = {"layers": ["i1.0", "m0.0", "o3.0"], "features": ["q", "k"], "provenance": {}}
    whole = {"format": "conditional-balance.sensitivity-profile", "version": "1", "profile": json.dumps(described)}
    return whole | changes


def tensors(**changes) -> dict[str, torch.Tensor]:
    return {"sigmas": profile().sigmas, "scores": profile().scores} | changes


def described(**changes) -> dict[str, str]:
    """A header whose JSON object has other parts; None leaves a part out."""
    parts = json.loads(header()["profile"]) | changes
    return header(profile=json.dumps({key: part for key, part in parts.items() if part is not None}))


def facts(**provenance) -> dict[str, str]:
    return described(provenance=provenance)


def filled(value: float) -> dict[str, torch.Tensor]:
    return tensors(scores=torch.full((2, 4, 3), value, dtype=torch.float64))


def levels(*sigmas: float) -> dict[str, torch.Tensor]:
    return {"sigmas": torch.tensor(sigmas, dtype=torch.float64), "scores": torch.ones(2, len(sigmas), 3)}


def with_content(scores: torch.Tensor) -> dict[str, torch.Tensor]:
    return tensors(content=scores, content_low=scores.clone(), content_high=scores.clone())


DEEP = "[" * 100_000 + "]" * 100_000
MANY = torch.logspace(3, -3, MOST_LEVELS + 1, dtype=torch.float64)
BAD_FILES = {
    "another format": (header(format="something else"), tensors(), "not a sensitivity profile"),
    "no metadata": (None, tensors(), "not a sensitivity profile"),
    "a later version": (header(version="9"), tensors(), "version '9'"),
    "a long version": (header(version="9" * 10_000), tensors(), "version '999"),
    "half JSON": (header(profile="{"), tensors(), "JSON"),
    "deep JSON": (header(profile=DEEP), tensors(), "JSON"),
    "long JSON": (header(profile=" " * (2**20 + 1)), tensors(), "characters"),
    "a number of 5,000 digits": (header(profile="9" * 5000), tensors(), "JSON"),
    "a list": (header(profile="[]"), tensors(), "JSON object"),
    "nothing": (header(profile="{}"), tensors(), "layers"),
    "no scores": (header(), {"sigmas": profile().sigmas}, "'scores'"),
    "no sigmas": (header(), {"scores": profile().scores}, "'sigmas'"),
    "layers in a text": (described(layers="i1.0"), tensors(), "layers"),
    "layers without names": (described(layers=[]), tensors(), "layers"),
    "a layer that is a number": (described(layers=["i1.0", 3, "o3.0"]), tensors(), "'3', which is not a layer name"),
    "a layer that is a list": (described(layers=["i1.0", [], "o3.0"]), tensors(), "not a layer name"),
    "a layer of many digits": (described(layers=["i1.0", "o" + "9" * 99 + ".0", "o3.0"]), tensors(), "not a layer"),
    "a layer twice": (described(layers=["i1.0", "o3.0", "o3.0"]), tensors(), "each once"),
    "a layer under two names": (described(layers=["i1.0", "d1.0", "o3.0"]), tensors(), "each once"),
    "too many layers": (described(layers=[f"i{n}.0" for n in range(20_000)]), tensors(), "20,000 layers"),
    "unknown features": (described(features=["q", "z"]), tensors(), "features out of q, k, v"),
    "a feature twice": (described(features=["q", "q"]), tensors(), "each once"),
    "features without names": (described(features=[]), tensors(), "features"),
    "features that are lists": (described(features=[["q"], ["k"]]), tensors(), "features"),
    "another shape": (header(), tensors(scores=torch.ones(2, 4, 9)), "one score for each"),
    "scores without dimensions": (header(), tensors(scores=torch.tensor(1.0)), "one score for each"),
    "no elements": (header(), tensors(scores=torch.ones(2, 0, 3)), "'scores' made of floats"),
    "scores in bool": (header(), tensors(scores=torch.ones(2, 4, 3).bool()), "'scores' made of floats"),
    "scores in integers": (header(), tensors(scores=torch.ones(2, 4, 3).long()), "'scores' made of floats"),
    "scores in fp8": (header(), tensors(scores=torch.ones(2, 4, 3).to(torch.float8_e4m3fn)), "made of floats"),
    "complex scores": (header(), tensors(scores=torch.ones(2, 4, 3).to(torch.complex64)), "made of floats"),
    "complex sigmas": (header(), tensors(sigmas=torch.ones(4).to(torch.complex64)), "'sigmas' made of floats"),
    "a low end in bool": (header(), tensors(low=torch.ones(2, 4, 3).bool()), "'low' made of floats"),
    "a low end alone": (header(), tensors(low=torch.zeros(2, 4, 3)), "one score for each"),
    "ends exchanged": (header(), tensors(low=torch.ones(2, 4, 3), high=torch.zeros(2, 4, 3)), "low end"),
    "rising": (header(), tensors(sigmas=profile().sigmas.flip(0)), "falling"),
    "sigma zero": (header(), levels(1.0, 0.0), "falling"),
    "an infinite sigma": (header(), levels(math.inf, 1.0), "falling"),
    "sigma NaN": (header(), levels(2.0, math.nan, 1.0), "falling"),
    "sigma NaN alone": (header(), levels(math.nan), "falling"),
    "the same sigma twice": (header(), levels(2.0, 2.0, 1.0), "falling"),
    "neighbours in float64": (header(), levels(2.0, math.nextafter(2.0, 0), 1.0), "falling"),
    "too many levels": (header(), {"sigmas": MANY, "scores": torch.ones(2, len(MANY), 3)}, "noise levels"),
    "sigmas in a table": (header(), tensors(sigmas=torch.ones(2, 2)), "noise levels"),
    "NaN": (header(), filled(math.nan), "NaN"),
    "infinite": (header(), filled(math.inf), "infinite"),
    "near the largest float": (header(), filled(1e308), "too large"),
    "negative": (header(), filled(-0.5), "negative"),
    "provenance in a list": (described(provenance=[]), tensors(), "provenance"),
    "provenance in a text": (described(provenance="x"), tensors(), "provenance"),
    "deep provenance": (facts(x=json.loads("[" * 50 + "]" * 50)), tensors(), f"{DEEPEST} deep"),
    "NaN among the facts": (facts(x=math.nan), tensors(), "NaN"),
    "half a character": (facts(x="\ud800"), tensors(), "broken character"),
    "a model that is a text": (facts(model="SDXL"), tensors(), "'model' of the wrong kind"),
    "a model with a listed name": (facts(model={"name": []}), tensors(), "'model' of the wrong kind"),
    "clusters in a list": (facts(clusters=["a"]), tensors(), "'clusters' of the wrong kind"),
    "clusters counted in words": (facts(clusters={"a": "five"}), tensors(), "'clusters' of the wrong kind"),
    "separation without p": (facts(separation={"share": 1}), tensors(), "'separation' of the wrong kind"),
    "content without its ends": (header(), tensors(content=torch.ones(2, 4, 3)), "no 'content_low'"),
    "ends without content": (header(), tensors(content_low=torch.ones(2, 4, 3)), "no 'content'"),
    "content of other layers": (header(), with_content(torch.ones(2, 4, 2)), "one score for each"),
    "content NaN": (header(), with_content(torch.full((2, 4, 3), math.nan)), "not numbers"),
    "content below zero": (header(), with_content(torch.full((2, 4, 3), -1.0)), "negative"),
    "content separation in words": (
        facts(content_separation={"share": 1, "p": "low"}),
        tensors(),
        "'content_separation' of the wrong kind",
    ),
    "subjects in words": (facts(subjects={"cat": "two"}), tensors(), "'subjects' of the wrong kind"),
    "a series of numbers": (facts(series=5), tensors(), "'series' of the wrong kind"),
    "separation in words": (facts(separation={"share": 1, "p": "low"}), tensors(), "'separation' of the wrong kind"),
    "a huge cost": (facts(cost={"forward_passes": 10**4000, "seconds": 1}), tensors(), "'cost' of the wrong kind"),
    "what is a number": (facts(what=3), tensors(), "'what' of the wrong kind"),
    "an estimator that is a list": (facts(estimator=[]), tensors(), "'estimator' of the wrong kind"),
}


@pytest.mark.parametrize(("metadata", "content", "words"), BAD_FILES.values(), ids=BAD_FILES)
def test_files_that_are_no_whole_profile_are_refused_by_name(tmp_path, metadata, content, words):
    save_file(content, tmp_path / "odd.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=words) as refused:
        load(tmp_path / "odd.safetensors")
    assert str(refused.value).startswith("'odd.safetensors'") and is_one_sentence(refused.value)


@pytest.mark.parametrize("keep", [0, 4, 60, -9])
def test_a_damaged_file_is_refused(tmp_path, keep):
    path = tmp_path / "cut.safetensors"
    save(profile(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"'cut\.safetensors' cannot be read"):
        load(path)


def test_what_is_no_file_or_too_large_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'gone\.safetensors' cannot be read \(No such file"):
        load(tmp_path / "gone.safetensors")
    with pytest.raises(ValueError, match="is not a file"):
        load(tmp_path)
    with (tmp_path / "large.safetensors").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(ValueError, match=r"'large\.safetensors' is larger than 32 MB"):
        load(tmp_path / "large.safetensors")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="This system has no named pipes.")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(ValueError, match="is not a file"):
        load(tmp_path / "pipe.safetensors")


def test_a_strange_file_name_stays_on_one_line(tmp_path):
    (tmp_path / "a\nb\x1b[31m.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"'a\\nb\\x1b\[31m.safetensors' cannot be read") as refused:
        load(tmp_path / "a\nb\x1b[31m.safetensors")
    assert is_one_sentence(refused.value)


def test_a_contrast_may_be_negative_and_keeps_it_through_a_file_and_a_mean(tmp_path):
    measured = profile(features=("q", "k"))
    other = profile(scores=measured.scores.flip(-1))
    against = contrast(measured, other)
    mean = trimmed_mean([against, contrast(other, measured)])
    for made in (against, mean):
        save(made, tmp_path / "made.safetensors")
        assert torch.equal(load(tmp_path / "made.safetensors").scores, made.scores)
    assert bool((against.scores < 0).any())


def test_a_contrast_saved_by_0_1_still_loads(tmp_path):
    old = facts(what="style minus shape", estimator="contrast of standardised scores", source="Made of style (x).")
    save_file(filled(-0.5), tmp_path / "old.safetensors", metadata=old)
    assert bool((load(tmp_path / "old.safetensors").scores < 0).all())


def test_unknown_facts_keys_and_tensors_of_a_later_pack_are_passed_over(tmp_path):
    later = described(provenance={"new": [1, {"a": None}]}, another=1)
    extra = tensors(another=torch.ones(3).to(torch.float8_e4m3fn))
    save_file(extra, tmp_path / "later.safetensors", metadata=later | {"more": "words"})
    assert load(tmp_path / "later.safetensors").provenance == {"new": [1, {"a": None}]}


def test_a_profile_at_every_bound_goes_through(tmp_path):
    layers = tuple(LayerId("output", number, 0) for number in range(MOST_LAYERS))
    sigmas = torch.logspace(math.log10(SIGMAS[1]) - 0.1, math.log10(SIGMAS[0]) + 0.1, MOST_LEVELS, dtype=torch.float64)
    scores = torch.rand(3, 3, MOST_LEVELS, MOST_LAYERS, dtype=torch.float64).sort(0).values
    save(SensitivityProfile(layers, ("q", "k", "v"), sigmas, scores[1], scores[0], scores[2]), tmp_path / "big")
    assert torch.equal(load(tmp_path / "big").scores, scores[1])


# A thousand files that differ from a good one in one place: each is a good profile still, or refused in one sentence.

HOSTILE: list[Any] = [
    None, True, False, 0, -1, 3, 1e308, -1e308, math.nan, math.inf, 10**30, "", "x", "i1.0", "d1.0", "q", "\ud800",
    "\0", "o999999.9", "9" * 5000, [], {}, [[]], {"": {}}, ["i1.0"] * 3, ["q"] * 2, list(range(9)), {"p": 1},
    {"weights": None}, json.loads("[" * 200 + "]" * 200),
]  # fmt: skip
TYPES = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F4", "BOOL", "I64", "U8", "C64", "I16", "Q", ""]


def test_any_change_of_a_file_gives_a_good_profile_or_one_sentence(tmp_path):
    random.seed(0)
    bounds = {"low": torch.zeros(2, 4, 3, dtype=torch.float64), "high": torch.ones(2, 4, 3, dtype=torch.float64)}
    separation = {"p": 0.1, "share": 0.5}
    cost = {"forward_passes": 3, "seconds": 0.5}
    whole = profile(**bounds)
    provenance = {**whole.provenance, "what": "style", "estimator": "x", "separation": separation, "cost": cost}
    save(profile(**bounds, provenance=provenance), tmp_path / "good.safetensors")
    good = (tmp_path / "good.safetensors").read_bytes()
    changed = tmp_path / "changed.safetensors"
    refused = 0
    for number in range(1500):
        changed.write_bytes((with_other_bytes, with_another_header, with_another_description)[number % 3](good))
        try:
            loaded = load(changed)
        except ValueError as error:
            refused += 1
            assert is_one_sentence(error) and str(error).startswith("'changed.safetensors'")
        else:
            assert_good(loaded)
            save(loaded, changed)
            assert torch.equal(load(changed).scores, loaded.scores)
    assert 750 < refused < 1450  # the changes are neither all harmless nor all fatal


def with_other_bytes(good: bytes) -> bytes:
    """A file with a few bytes changed, left out or put in, or cut short."""
    data = bytearray(good)
    for _ in range(random.choice((1, 1, 2, 8))):
        at = random.choice((random.randrange(8), random.randrange(len(data)), random.randrange(1500)))
        how = random.randrange(5)
        if how < 2:
            data[at % len(data)] = random.randrange(256)
        elif how == 2:
            del data[at : at + random.randrange(1, 20)]
        elif how == 3:
            data[at:at] = random.randbytes(random.randrange(1, 20))
        else:
            return bytes(data[:at])
    return bytes(data)


def with_another_header(good: bytes) -> bytes:
    """A file whose list of tensors says something else."""
    length = int.from_bytes(good[:8], "little")
    parts, data = json.loads(good[8 : 8 + length]), good[8 + length :]
    name = random.choice([name for name in parts if name != "__metadata__"])
    how = random.randrange(6)
    if how == 0:
        parts[name]["dtype"] = random.choice(TYPES)
    elif how == 1:
        parts[name]["shape"] = random.choice([[], [24], [0], [1, 24], [3, 4, 2], [2, 3, 4], [2**62, 4], [24, 1, 1], 24])
    elif how == 2:
        parts[name]["data_offsets"] = [random.randrange(-8, 800), random.randrange(800)]
    elif how == 3:
        first, last = parts[name]["data_offsets"]
        value = random.choice([math.nan, math.inf, -1.0, 0.0, 1e-320, 1e308, 1.0, -0.0])
        data = data[:first] + struct.pack("<d", value) * ((last - first) // 8) + data[last:]
    elif how == 4:
        parts[random.choice(["sigmas", "scores", "low", "content", "other"])] = parts.pop(name)
    else:
        parts["__metadata__"][random.choice(["format", "version", "profile"])] = random.choice(HOSTILE)
    return packed(parts, data)


def with_another_description(good: bytes) -> bytes:
    """A file whose JSON of layers, features and provenance has a hostile value somewhere."""
    length = int.from_bytes(good[:8], "little")
    parts = json.loads(good[8 : 8 + length])
    description = json.loads(parts["__metadata__"]["profile"])
    place = description
    while True:
        key = random.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or random.random() < 0.3:
            break
        place = place[key]
    place[key] = random.choice(HOSTILE)
    parts["__metadata__"]["profile"] = json.dumps(description)
    return packed(parts, good[8 + length :])


def packed(parts: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(parts).encode()
    return len(text).to_bytes(8, "little") + text + data


def is_one_sentence(error: Exception) -> bool:
    text = str(error)
    return text.isprintable() and text.endswith(".") and len(text) < 300


def assert_good(loaded: SensitivityProfile) -> None:
    shape = (len(loaded.features), len(loaded.sigmas), len(loaded.layers))
    assert len(set(loaded.layers)) == len(loaded.layers) > 0 and set(loaded.features) <= {"q", "k", "v"}
    assert all(isinstance(layer, LayerId) for layer in loaded.layers) and isinstance(loaded.provenance, dict)
    for tensor in (loaded.scores, loaded.low, loaded.high):
        assert tensor is None or (tensor.shape == shape and tensor.dtype == torch.float64 and tensor.isfinite().all())
    assert bool((loaded.scores >= 0).all()) and bool(loaded.sigmas.diff().lt(0).all()) and bool(loaded.sigmas[-1] > 0)
    knots = loaded.sigmas.tolist()
    for sigma in (math.inf, *knots, *(math.sqrt(a * b) for a, b in pairwise(knots)), 0.0):
        assert all(loaded.at(sigma, feature).isfinite().all() for feature in loaded.features)
    json.dumps(loaded.provenance, allow_nan=False)
