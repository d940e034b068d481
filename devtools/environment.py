"""Chooses the Python that runs everything, and installs what it lacks.

The rule: a Python that already has all that is needed is used as it is, and nothing is installed into it. Otherwise
`.venv` is made, or reused. It borrows the packages of the Python it stands in for where that one has torch, so that
nobody downloads torch twice, and only what is missing is installed, into `.venv`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import files
from .comfyui import CACHE, ROOT, WHEEL_ONLY, ComfyUI
from .steps import Failed, step

LOCK = ROOT / "devtools" / "locks" / "python.txt"
RAY_LOCK = ROOT / "devtools" / "locks" / "ray.txt"
TORCHES = ("torch", "torchvision", "torchaudio")  # come from wherever the user has them
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
TORCH, TORCHVISION = "torch==2.13.0", "torchvision==0.28.0"
UNNAMED = ["requests"]  # ComfyUI imports it and relies on others to bring it
NETWORK = "Check the network and the free space on the disk, then run the same command again."

# Prints as JSON what a Python lacks of the packages named as `name` or `name==version`, and what torch it has.
_LOOK = """
import importlib.metadata as metadata, json, sys
def version(name):
    try: return metadata.version(name)
    except metadata.PackageNotFoundError: return None
paths = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
lacks = [n for n, _, pin in (a.partition("==") for a in sys.argv[1:]) if version(n) != (pin or version(n) or "-")]
print(json.dumps({"lacks": lacks, "torch": version("torch"),
    "python": sys.version_info[:2], "paths": paths}))
"""


@dataclass(frozen=True)
class Environment:
    """A Python in which this ComfyUI starts, and whether it must be told to do without an accelerator."""

    python: Path
    cpu: bool


def prepare(comfy: ComfyUI, tools: Sequence[str]) -> Environment:
    """A Python with ComfyUI's requirements and `tools` importable; the second time this only reads a stamp."""
    needs = [line for line in comfy.requirements if _name(line) not in TORCHES]
    ours = [*UNNAMED, *tools]
    locked, free = (ours, needs) if comfy.own else ([*needs, *ours], [])
    needs += ours
    stamp = CACHE / f"ready-{_key(comfy, needs)}.json"
    if stamp.exists() and Path((ready := json.loads(stamp.read_text(encoding="utf-8")))["python"]).exists():
        return Environment(Path(ready["python"]), ready["cpu"])
    python = _choose(comfy.python or Path(sys.executable), locked, free)
    _check(python, comfy)
    ready = {"python": str(python), "cpu": _lacks_accelerator(python)}
    files.replace(stamp, json.dumps(ready).encode())
    return Environment(python, ready["cpu"])


def with_ray(env: Environment) -> Environment:
    """The same Python if it has Ray, else `.venv` with it; only `dev.py profile --ray` and its tests need Ray."""
    if _imports(env.python, "ray") is None:
        return env
    _make_venv(env.python, _look(env.python, []))
    _pip("installing Ray", "--require-hashes", WHEEL_ONLY, "--requirement", RAY_LOCK)
    return Environment(VENV_PYTHON, env.cpu)


def _key(comfy: ComfyUI, needs: Sequence[str]) -> str:
    lock = LOCK.read_text(encoding="utf-8")
    facts = [sys.executable, sys.version, comfy.path, comfy.version, TORCH, TORCHVISION, *needs, lock]
    return hashlib.sha256("\n".join(map(str, facts)).encode()).hexdigest()[:16]


def _name(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0]


def _choose(python: Path, locked: Sequence[str], free: Sequence[str]) -> Path:
    """The Python itself where it lacks nothing; else .venv. What is not `free` comes in the lock file's versions."""
    seen = _look(python, [*locked, *free])
    if seen["torch"] and not seen["lacks"] and _imports(python, "torchvision") is None:
        return python
    _make_venv(python, seen)
    _install_torch()
    if wanted := _lacked(free):
        _pip(f"installing {len(wanted)} packages that your ComfyUI needs", *wanted)
    if wanted := _lacked(locked):
        _install_locked(wanted)
    return VENV_PYTHON


def _look(python: Path, needs: Sequence[str]) -> dict:
    names = [need if "==" in need else _name(need) for need in needs] + ["torch", "torchvision"]
    return json.loads(subprocess.run([python, "-c", _LOOK, *names], capture_output=True, text=True, check=True).stdout)


def _imports(python: Path, module: str) -> str | None:
    """None when the module can be imported, else the end of the complaint."""
    done = subprocess.run([python, "-c", f"import {module}"], capture_output=True, text=True, errors="replace")
    return done.stderr[-2000:] if done.returncode else None


def _make_venv(parent: Path, seen: dict) -> None:
    if not VENV_PYTHON.exists() or _imports(VENV_PYTHON, "pip"):
        step(
            "making .venv",
            [sys.executable, "-m", "venv", VENV],
            "This Python lacks venv or pip; on Debian and Ubuntu: apt install python3-venv.",
        )
    if seen["torch"] and parent != VENV_PYTHON and seen["python"] == list(sys.version_info[:2]):
        borrowed = _site_packages() / "_borrowed.pth"
        borrowed.write_text("\n".join(seen["paths"]), encoding="locale")  # in which Python reads it


def _site_packages() -> Path:
    return next(VENV.rglob("site-packages"))


def _install_torch() -> None:
    if not _look(VENV_PYTHON, [])["torch"]:
        _pip(f"installing {TORCH}, the largest", TORCH)
    held = _look(VENV_PYTHON, [])["torch"]
    constraint = VENV / "constraint.txt"  # whatever else is installed, torch stays
    constraint.write_text(f"torch=={held}\n", encoding="utf-8")
    if "torchvision" in _look(VENV_PYTHON, [])["lacks"]:
        _pip("installing torchvision", TORCHVISION if TORCH.endswith(held.split("+")[0]) else "torchvision")
    _mend_torchvision()


def _lacked(needs: Sequence[str]) -> list[str]:
    lacks = _look(VENV_PYTHON, needs)["lacks"]
    return [need for need in needs if _name(need) in lacks]


def _install_locked(wanted: Sequence[str]) -> None:
    """What is lacked, and what it needs in turn, by version and hash; all of the lock file where others do not fit.

    A borrowed package can be too old for a locked one. pip would fetch a newer one and finds no hash for it.
    """
    entries = lock_entries(LOCK.read_text(encoding="utf-8"))
    absent = {_name(need) for need in wanted} | set(_look(VENV_PYTHON, list(entries))["lacks"])
    chosen = {_plain(name) for name in absent} & set(entries)
    try:
        _pip_locked(f"installing {len(wanted)} packages that ComfyUI and the tests need", chosen, entries)
    except Failed:
        _pip_locked("installing all of the lock file beside the packages that are there", set(entries), entries)


def lock_entries(lock: str) -> dict[str, str]:
    """The lines of a lock file by package, with their hashes; a package may have several, for several Pythons."""
    entries: dict[str, str] = {}
    name = ""
    for line in lock.splitlines(keepends=True):
        if not line.startswith((" ", "#")) and line.strip():
            name = _plain(_name(line))
        if name:
            entries[name] = entries.get(name, "") + line
    return entries


def _plain(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _pip_locked(what: str, names: Collection[str], entries: Mapping[str, str]) -> None:
    chosen = VENV / "locked.txt"
    chosen.write_text("".join(entries[name] for name in sorted(names)), encoding="utf-8")
    _pip(what, "--require-hashes", WHEEL_ONLY, "--requirement", chosen)


def _pip(what: str, *packages: str | Path) -> None:
    constraint = VENV / "constraint.txt"
    held = ["--constraint", constraint] if constraint.exists() else []
    step(what, [VENV_PYTHON, "-m", "pip", "install", "--quiet", *held, *packages], NETWORK)


def _mend_torchvision() -> None:
    """A torchvision for CUDA does not import beside a torch without: put the shim into `.venv`."""
    if "torchvision::nms" in (_imports(VENV_PYTHON, "torchvision") or ""):
        shutil.copy(ROOT / "devtools" / "torchvision_shim.py", _site_packages() / "_torchvision_shim.py")
        (_site_packages() / "_torchvision_shim.pth").write_text("import _torchvision_shim\n", encoding="utf-8")


def _check(python: Path, comfy: ComfyUI) -> None:
    """See that ComfyUI imports; newer ones want a torchaudio, of which only the name is needed here."""
    env = os.environ | {"COMFYUI_PATH": str(comfy.path), "PYTHONPATH": str(ROOT)}
    command = [python, "-c", "from devtools.bootstrap import start_comfy as s; s(); import comfy.sd, nodes, server"]
    cure = "Run it again with a Python in which your ComfyUI starts, or without COMFYUI_PATH to use the pinned one."
    try:
        step(f"importing ComfyUI {comfy.version}", command, cure, env)
    except Failed as failure:
        if python != VENV_PYTHON or "No module named 'torchaudio" not in str(failure):
            raise
        _stub_torchaudio()
        step("importing it with an empty torchaudio", command, cure, env)


def _stub_torchaudio() -> None:
    stub = _site_packages() / "torchaudio"
    stub.mkdir(exist_ok=True)
    for name in ("__init__.py", "functional.py"):
        (stub / name).write_text('"""Empty: ComfyUI only imports the name."""\n', encoding="utf-8")


def _lacks_accelerator(python: Path) -> bool:
    code = "import torch; print(torch.cuda.is_available() or torch.backends.mps.is_available())"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip() != "True"
