"""The front end that the server shows: ComfyUI's own, or the one that COMFYUI_FRONTEND asks for.

COMFYUI_FRONTEND is a folder with an index.html, a version such as 1.58.1, or `newest`; versions come from the package
registry, once, into .cache/.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from .comfyui import CACHE, WHEEL_ONLY
from .steps import Failed, step

PACKAGE = "comfyui-frontend-package"
STATIC = "comfyui_frontend_package/static"
HASHES = {"1.58.1": "37912597537a731a8f421179618a736c24184c5bdbfa327f38b2fb7c291852d9"}
"""sha256 of the wheels that the tests are known to pass on; ComfyUI's own one is in the lock file."""
CURE = "Check the network, or let COMFYUI_FRONTEND name a folder that holds a front end's index.html."


def wanted() -> Path | None:
    """The folder of the front end that COMFYUI_FRONTEND asks for; None for ComfyUI's own."""
    named = os.environ.get("COMFYUI_FRONTEND", "")
    if not named:
        return None
    if _is_front_end(folder := Path(named).expanduser().resolve()):
        return folder
    cached = CACHE / "frontends" / named
    if not _is_front_end(cached / STATIC):
        _fetch(named, cached)
    return cached / STATIC


def _is_front_end(folder: Path) -> bool:
    return (folder / "index.html").is_file()


def _fetch(version: str, target: Path) -> None:
    """Download a version of the front end; `target` appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    requirement = PACKAGE if version == "newest" else f"{PACKAGE}=={version}"
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        download = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            WHEEL_ONLY,
            "--dest",
            scratch,
            requirement,
        ]
        step(f"downloading the front end {version}", download, CURE)
        wheel = next(Path(scratch).glob("*.whl"))
        _check(wheel, version)
        unpacked = Path(scratch) / "unpacked"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        if not _is_front_end(unpacked / STATIC):
            raise Failed(f"{wheel.name} holds no front end. {CURE}")
        shutil.rmtree(target, ignore_errors=True)
        unpacked.rename(target)


def _check(wheel: Path, version: str) -> None:
    """Compare a version's hash, where one is known. Files of a wheel are only shown to the browser of the tests."""
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if version not in HASHES:
        print(f"  no hash is kept of {wheel.name}; it is {found}", flush=True)
    elif found != HASHES[version]:
        raise Failed(f"{wheel.name} is not the file it should be (sha256 {found}). {CURE}")
