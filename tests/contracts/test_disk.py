"""Nothing that a disk can do stops the pack from loading, and what systems leave behind is no cluster."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import folder_paths
import pytest
from PIL import Image

import conditional_balance
from conditional_balance.nodes.profile import CBLoadImageClusters, CBLoadSensitivityProfile, profile_path
from conditional_balance.runtime import disk

SHIPPED = "sdxl-base-1.0.style.published.safetensors"


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """An input folder with one folder of clusters, and a folder of profiles of the user's own."""
    for place in ("input/styles/oil", "input/styles/ink", "models"):
        (tmp_path / place).mkdir(parents=True)
    for name in ("oil", "ink"):
        Image.new("RGB", (64, 64)).save(tmp_path / "input" / "styles" / name / "0.png")
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    shipped = folder_paths.get_folder_paths("sensitivity_profiles")[-1]
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths,
        "sensitivity_profiles",
        ([str(tmp_path / "models"), shipped], {".safetensors"}),
    )
    disk._say.cache_clear()
    return tmp_path


def schemas() -> dict:
    extension = asyncio.run(conditional_balance.comfy_entrypoint())
    return {node.__name__: node.GET_SCHEMA() for node in asyncio.run(extension.get_node_list())}


def options(node: str) -> list[str]:
    return schemas()[node].inputs[0].options


def locked(monkeypatch, folder: Path, error: OSError) -> None:
    """Lets a folder fail as a locked one does; mode bits would not stop tests that run as root."""
    for name in ("scandir", "listdir"):
        real = getattr(os, name)

        def look(path=".", real=real):
            if Path(path) == folder or folder in Path(path).parents:
                raise error
            return real(path)

        monkeypatch.setattr(os, name, look)


ERRORS = [
    PermissionError(errno.EACCES, "Permission denied"),
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(errno.ENOTCONN, "Transport endpoint is not connected"),
    OSError(errno.EIO, "Input/output error"),
    NotADirectoryError(errno.ENOTDIR, "Not a directory"),
    FileNotFoundError(errno.ENOENT, "No such file or directory"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: errno.errorcode[error.errno])
@pytest.mark.parametrize("where", ["input", "input/private", "models", "models/deeper"])
def test_every_node_is_there_whatever_folder_cannot_be_read(places, monkeypatch, caplog, error, where):
    (places / where).mkdir(exist_ok=True)
    locked(monkeypatch, places / where, error)
    assert len(schemas()) > 15 and SHIPPED in options("CBLoadSensitivityProfile")
    assert options("CBLoadImageClusters") == ([] if where == "input" else ["styles"])
    warned = [record for record in caplog.records if str(places / where) in record.message]
    assert len(warned) == (0 if isinstance(error, FileNotFoundError) else 1)  # once, not at each page load


def test_every_node_is_there_without_the_folders_and_with_files_in_their_place(places, monkeypatch):
    missing, file = places / "missing", places / "file"
    file.write_text("")
    for place in (missing, file):
        monkeypatch.setattr(folder_paths, "get_input_directory", lambda place=place: str(place))
        folder_paths.folder_names_and_paths["sensitivity_profiles"][0][0] = str(place)
        assert options("CBLoadImageClusters") == [] and SHIPPED in options("CBLoadSensitivityProfile")


def test_links_that_lead_nowhere_or_in_circles_and_odd_names_are_lived_with(places):
    for root in (places / "input", places / "models"):
        for name in ("round", "again", "once more"):
            (root / name).symlink_to(root)  # three of them would make an endless number of paths
        (root / "nowhere").symlink_to(root / "gone")
        (root / "nowhere.safetensors").symlink_to(root / "gone")
        (root / "itself").symlink_to(root / "itself")
        (root / "a\nb\x1b").mkdir()
        os.mkdir(os.fsencode(root) + b"/bad \xff bytes")
        (root / "mine.safetensors").mkdir()
    assert "styles" in options("CBLoadImageClusters")
    shipped = Path(folder_paths.get_folder_paths("sensitivity_profiles")[-1])
    assert set(options("CBLoadSensitivityProfile")) == {path.name for path in shipped.glob("*.safetensors")}


def test_a_flood_of_files_is_cut_and_said(places, monkeypatch, caplog):
    monkeypatch.setattr(disk, "MOST_ENTRIES", 10)
    monkeypatch.setattr(disk._readable, "__defaults__", (10,))
    for number in range(30):
        (places / "models" / f"{number}.safetensors").write_text("")
    assert len([name for name in options("CBLoadSensitivityProfile") if name[0].isdigit()]) == 10
    assert "looks at the first 10 entries" in caplog.text
    assert profile_path("29.safetensors").name == "29.safetensors"  # a workflow that names it still works


@pytest.mark.parametrize(
    "name",
    [".ipynb_checkpoints", ".thumbnails", "._oil", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information",
     "lost+found", "__pycache__", "#recycle", "Thumbs.db", ".Trash-1000", ".git", "desktop.ini", "Icon\r"],
)  # fmt: skip
def test_what_systems_leave_behind_is_no_cluster_folder_cluster_or_picture(places, name):
    picture = places / "input" / "styles" / "oil" / "0.png"
    for folder in (places / "input" / name / "deeper", places / "input" / "styles" / name):
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(picture.read_bytes())
    (places / "input" / "styles" / "oil" / f"{name}.png" if name[0] == "." else picture).write_bytes(
        picture.read_bytes()
    )
    assert options("CBLoadImageClusters") == ["styles"]
    loaded = CBLoadImageClusters.execute("styles", 12)[0]
    assert [(cluster.name, len(cluster.images)) for cluster in loaded] == [("ink", 1), ("oil", 1)]
    assert name in CBLoadImageClusters.validate_inputs(name) or "\r" in name


def test_a_locked_cluster_is_said_when_its_folder_was_asked_for(places, monkeypatch):
    locked(monkeypatch, places / "input" / "styles" / "oil", ERRORS[0])
    assert CBLoadImageClusters.validate_inputs("styles") is True
    with pytest.raises(ValueError, match=r"'folder': 'oil' cannot be read \(Permission denied\): let ComfyUI"):
        CBLoadImageClusters.execute("styles", 12)


def test_a_clusters_name_of_bytes_that_are_no_characters_can_be_saved(places):
    folder = os.fsencode(places / "input" / "styles") + b"/\xff"
    os.mkdir(folder)
    Image.new("RGB", (64, 64)).save(places / "0.png")
    os.rename(places / "0.png", folder + b"/0.png")
    assert "\\udcff" in [cluster.name for cluster in CBLoadImageClusters.execute("styles", 12)[0]]


@pytest.mark.parametrize(
    "name", ["../input/x.safetensors", "/etc/passwd", "a\0.safetensors", "", ".", "a//b.safetensors"]
)
def test_only_names_inside_the_folders_are_profiles(places, name):
    (places / "input" / "x.safetensors").write_text("")
    assert "'profile'" in CBLoadSensitivityProfile.validate_inputs(name)


@pytest.mark.parametrize("saved_as", ["deeper/mine.safetensors", "deeper\\mine.safetensors"])
def test_profiles_in_subfolders_are_found_by_names_of_every_system(places, saved_as):
    """Workflows go from Windows to Linux and back, and older versions of this pack have saved names of either kind."""
    (places / "models" / "deeper").mkdir()
    mine = places / "models" / "deeper" / "mine.safetensors"
    mine.write_text("")
    assert "deeper/mine.safetensors" in options("CBLoadSensitivityProfile")
    assert profile_path(saved_as) == mine and CBLoadSensitivityProfile.validate_inputs(saved_as) is True
    assert "'profile'" in CBLoadSensitivityProfile.validate_inputs(f"{'long' * 100}\\mine.safetensors")


@pytest.mark.skipif(os.name == "nt", reason="There, a backslash is in no name.")
def test_a_backslash_may_belong_to_a_name(places):
    """As archives that were packed on Windows leave it."""
    mine = places / "models" / "deeper\\mine.safetensors"
    mine.write_text("")
    (listed,) = {name for name in options("CBLoadSensitivityProfile") if "mine" in name}
    assert profile_path(listed) == mine


def test_a_cluster_folder_may_lie_deeper_whatever_system_has_written_its_name(places):
    (places / "input" / "series").mkdir()
    (places / "input" / "styles").rename(places / "input" / "series" / "styles")
    for name in ("series/styles", "series\\styles"):
        assert CBLoadImageClusters.validate_inputs(name) is True
        assert [cluster.name for cluster in CBLoadImageClusters.execute(name, 12)[0]] == ["ink", "oil"]
