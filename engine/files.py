"""Files that are written whole or not at all, so that an interrupted run leaves the old one as it was."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import time
from pathlib import Path
from types import MappingProxyType

from .texts import quoted

_CURES = MappingProxyType(
    {
        errno.ENOSPC: "free some space on the disk",
        errno.EDQUOT: "free some of your quota on the disk",
        errno.EACCES: "allow ComfyUI to write into that folder, close what has the file open",
        errno.EPERM: "allow ComfyUI to write into that folder",
        errno.EROFS: "the disk is read-only, so make it writable or move the folder",
        errno.ENAMETOOLONG: "choose a shorter name",
    }
)

PATIENCE = 1.0 if os.name == "nt" else 0.0
"""Seconds in which a file that cannot be replaced is tried again. Windows refuses while somebody reads the old file, as
a layer map does, or looks through the new one, as a virus scanner does."""
PAUSE = 0.05


def write(path: Path, data: bytes) -> None:
    """A temporary file, of a name that no other process or machine takes, replaces the old one.

    Raises OSError with the file and the cure where the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{platform.node()[:32]}.{os.getpid()}.part")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "there is a folder of that name")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        _replace(temporary, path)
    except OSError as error:
        raise type(error)(_not_saved(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _replace(new: Path, old: Path) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return os.replace(new, old)
        except PermissionError:
            if time.monotonic() >= end:
                raise
        time.sleep(PAUSE)


def _not_saved(path: Path, error: OSError) -> str:
    cure = _CURES.get(error.errno or 0, "choose another name, or look after the folder")
    return f"{quoted(path.name)} was not saved in {path.parent} ({error.strerror or error}): {cure}, and run it again."
