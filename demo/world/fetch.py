"""Fetches sets of drawings with npm, each once, and refuses an archive whose hash is not the pinned one."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from .sets import DrawingSet

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "drawings"


def fetched(drawings: DrawingSet, cache: Path | None = None) -> Path:
    """The set's archive in the cache. Raises ValueError, saying what to do, where it cannot be had or is not the one
    that is pinned."""
    cache = cache or Path(os.environ.get("DRAWINGS_CACHE", CACHE))
    archive = cache / f"iconify-json-{drawings.name}-{drawings.version}.tgz"
    if not archive.exists():
        _pack(drawings, archive)
    if integrity(archive) != drawings.integrity:
        archive.unlink()
        raise ValueError(
            f"The drawings '{drawings.name}' {drawings.version} are not the pinned ones: their hash differs. "
            "They were deleted; run the same command again to fetch them anew."
        )
    return archive


def integrity(archive: Path) -> str:
    """A file's hash as package locks write it (W3C Subresource Integrity, SHA-512)."""
    return "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()


def _pack(drawings: DrawingSet, archive: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError(
            f"The drawings '{drawings.name}' are fetched with npm, which is not on this machine: "
            f"install Node.js, or put {archive.name} into {archive.parent} by hand."
        )
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        order = [npm, "pack", "--silent", "--pack-destination", folder]
        done = subprocess.run(
            [*order, f"@iconify-json/{drawings.name}@{drawings.version}"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        packed = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(packed) != 1:
            raise ValueError(
                f"npm could not fetch the drawings '{drawings.name}' {drawings.version}: check the network, then run "
                f"the same command again. npm said: {done.stderr.strip()[-500:] or 'nothing'}"
            )
        os.replace(packed[0], archive)
