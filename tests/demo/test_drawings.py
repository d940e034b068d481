"""Sets of drawings: fetched once by npm, refused when they are not the pinned ones, drawn with their exact masks."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import stat
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from demo.world import drawing, fetch, sets

DISC = '<circle cx="12" cy="8" r="4" fill="#f00"/>'


def archive(icons: dict) -> bytes:
    """A package as the registry serves it."""
    content, packed = json.dumps(icons).encode(), io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as files:
        about = tarfile.TarInfo("package/icons.json")
        about.size = len(content)
        files.addfile(about, io.BytesIO(content))
    return packed.getvalue()


ICONS = {
    "width": 24,
    "height": 16,
    "icons": {"disc": {"body": DISC}, "block": {"body": '<path fill="currentColor" d="M0 0h24v16H0z"/>'}},
    "aliases": {"ball": {"parent": "disc"}, "mirrored": {"parent": "disc", "hFlip": True}},
}


def pinned(packed: bytes) -> sets.DrawingSet:
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(packed).digest()).decode()
    return sets.DrawingSet("shapes", "1.0.0", integrity, "Nobody", "MIT")


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A command `npm` that packs what it is told to, and counts how often."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "served.tgz").write_bytes(archive(ICONS))
    script = folder / "npm"
    script.write_text(
        f"#!{sys.executable}\nimport pathlib, shutil, sys\nhere = pathlib.Path({str(folder)!r})\n"
        "with (here / 'calls').open('a') as calls: calls.write(sys.argv[-1] + '\\n')\n"
        "shutil.copy(here / 'served.tgz', pathlib.Path(sys.argv[sys.argv.index('--pack-destination') + 1]) / 'a.tgz')\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("DRAWINGS_CACHE", raising=False)
    return folder


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for npm is a script with a first line")
def test_a_set_is_fetched_once_and_its_hash_is_checked(npm: Path, tmp_path: Path) -> None:
    good = pinned((npm / "served.tgz").read_bytes())
    first = fetch.fetched(good, tmp_path / "cache")
    assert fetch.fetched(good, tmp_path / "cache") == first and drawing.read_icons(first) == ICONS
    assert (npm / "calls").read_text().splitlines() == ["@iconify-json/shapes@1.0.0"]
    assert list((tmp_path / "cache").iterdir()) == [first]


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for npm is a script with a first line")
def test_drawings_with_another_hash_are_refused_and_deleted(npm: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'shapes' 1\.0\.0 are not the pinned ones"):
        fetch.fetched(pinned(b"something else"), tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_without_npm_one_sentence_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"fetched with npm, which is not on this machine: install Node\.js"):
        fetch.fetched(pinned(b""), tmp_path / "cache")


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for npm is a script with a first line")
def test_an_npm_that_fails_is_quoted(npm: Path, tmp_path: Path) -> None:
    (npm / "npm").write_text("#!/bin/sh\necho no such registry >&2\nexit 3\n")
    with pytest.raises(ValueError, match=r"could not fetch .* check the network.*no such registry"):
        fetch.fetched(pinned(b""), tmp_path / "cache")


def test_licences_allow_shipped_weights() -> None:
    assert {drawings.licence for drawings in sets.SETS.values()} == {"MIT", "Apache-2.0", "CC-BY-4.0"}
    assert set(sets.HANDS) | set(sets.ICON_FAMILIES) == set(sets.SETS)
    assert len(sets.KNOWN_HANDS) == 8 and set(sets.ONE_COLOUR) < set(sets.KNOWN_HANDS)
    notice = (Path(__file__).parents[2] / "NOTICE").read_text(encoding="utf-8")
    for drawings in sets.SETS.values():
        assert f"{drawings.name} {drawings.version} | {drawings.author} | {drawings.licence}" in notice


def test_alpha_is_the_exact_mask() -> None:
    shown = drawing.drawn(drawing.drawing_of(ICONS, "disc"), 96)
    across = (torch.arange(96) + 0.5) / 4
    inside = ((across - 12) ** 2 + (across[:, None] - 4 - 8) ** 2).sqrt() < 4  # centred in a square of 24
    assert shown.shape == (4, 96, 96) and float((inside != (shown[3] > 127)).float().mean()) < 0.002
    assert shown[:3, 48, 48].tolist() == [255, 0, 0] and not shown[3, 0].any()


def test_aliases_mirroring_and_ink() -> None:
    disc, ball, mirrored = (drawing.drawn(drawing.drawing_of(ICONS, n), 48) for n in ("disc", "ball", "mirrored"))
    assert torch.equal(disc, ball) and torch.equal(disc, mirrored.flip(2))
    assert drawing.drawn(drawing.drawing_of(ICONS, "block", "#0000ff"), 48)[:, 24, 24].tolist() == [0, 0, 255, 255]
    assert drawing.names_of(ICONS) == {"disc", "block", "ball", "mirrored"}


def test_a_fitted_drawing_fills_its_square() -> None:
    shown = drawing.drawn(drawing.fitted(drawing.drawing_of(ICONS, "disc")), 100)[3] > 127
    rows, columns = shown.any(1).nonzero()[:, 0], shown.any(0).nonzero()[:, 0]
    assert all(int(end[0]) <= 6 and int(end[-1]) >= 93 for end in (rows, columns))


def test_an_empty_drawing_is_named_as_such() -> None:
    with pytest.raises(ValueError, match="A drawing is empty"):
        drawing.fitted(drawing.Drawing("", 0, 0, 24))


def test_series_show_the_same_subjects_by_each_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{name}{ending}" for name in ("disc", "block") for _, ending in sets.ICON_FAMILIES["ph"].values()]
    icons = {name: ICONS["icons"][name.split("-")[0]] for name in names} | {"alone-thin": {"body": DISC}}
    family = {**ICONS, "icons": icons}
    monkeypatch.setattr(drawing, "icons_of", lambda _: family)
    assert drawing.icon_subjects("ph") == ["block", "disc"]
    series = drawing.icon_series("ph", ["disc"], 32)
    assert list(series) == ["thin", "light", "regular", "bold", "fill", "duotone"]
    assert all(pictures.shape == (1, 3, 32, 32) for pictures in series.values())
    assert series["thin"][0, :, 16, 16].tolist() == [1, 0, 0] and series["thin"][0, :, 0, 0].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="no icon family 'crayon'"):
        drawing.icon_series("crayon", [])
