"""Looks at folders so that nothing that lies there can stop the pack from loading.

What cannot be read is left out, links that lead in circles are followed once, and only so much is looked at.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

MOST_ENTRIES = 20_000
"""Entries of a folder that are looked at before a menu is cut short: a slow disk shows some 10,000 in a second."""
MOST_FOLDERS = 1_000
"""Folders that are looked into for a menu, and entries of each that are looked at for a folder among them."""

# What systems and tools leave in folders; hidden entries are known by their first letter or by Windows' own mark.
_LEFT_BEHIND = frozenset(
    {
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "recycler", "system volume information"),
        *("__macosx", "icon\r", "network trash folder", "temporary items", "lost+found", "__pycache__"),
        *("@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # network storages
    }
)


def is_left_behind(entry: os.DirEntry[str]) -> bool:
    """Whether a system or a tool put this entry there, or hides it: thumbnails, resource forks, bins, checkpoints."""
    return _has_a_systems_name(entry.name) or _is_marked_hidden(entry)


def _has_a_systems_name(name: str) -> bool:
    return name.startswith((".", "~$")) or name.lower() in _LEFT_BEHIND


def _is_marked_hidden(entry: os.DirEntry[str]) -> bool:
    """Windows' mark; other systems have none, and are not asked for it."""
    if os.name != "nt":
        return False
    marks = entry.stat(follow_symlinks=False).st_file_attributes
    return bool(marks & (stat.FILE_ATTRIBUTE_HIDDEN | stat.FILE_ATTRIBUTE_SYSTEM))


def entries(folder: str | os.PathLike[str]) -> Iterator[os.DirEntry[str]]:
    """What people have put into a folder, in the disk's order. Raises OSError when it cannot be read."""
    with os.scandir(folder) as found:
        yield from (entry for entry in found if not is_left_behind(entry))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one, that can be reached."""
    return _holds(entry.is_dir)


def is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file, or a link to one, that can be reached."""
    return _holds(entry.is_file)


def _holds(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a link in a circle, a folder that may be listed but not looked into, a drive that went away
        return False


def folders_of_folders(root: str | os.PathLike[str]) -> list[str]:
    """The names of folders in `root` that hold folders, sorted; for a menu, so that what cannot be read is left out."""
    folders = islice((entry for entry in _readable(root) if is_folder(entry)), MOST_FOLDERS)
    return sorted(entry.name for entry in folders if holds_folders(entry.path, MOST_FOLDERS))


def holds_folders(folder: str | os.PathLike[str], most: int = MOST_ENTRIES) -> bool:
    """Whether a folder that can be read has folders among its first entries."""
    return any(is_folder(entry) for entry in _readable(folder, most))


def files_below(root: str | os.PathLike[str], suffix: str) -> list[str]:
    """Files of an ending in `root` and in folders below it, relative to `root`; for a menu, as `folders_of_folders`.

    Folders end in a slash on Windows too, as a name that stands in a workflow goes from one system to the other.
    """
    found = (path for path in islice(_walk(str(root)), MOST_ENTRIES) if path.lower().endswith(suffix))
    return [os.path.relpath(path, root).replace(os.sep, "/") for path in found]


def _walk(root: str) -> Iterator[str]:
    """The paths of all files below a folder, every real folder visited once."""
    waiting, seen = [root], set()
    while waiting and len(seen) < MOST_FOLDERS:
        folder = waiting.pop(0)
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        for entry in _readable(folder):
            if is_folder(entry):
                waiting.append(entry.path)
            elif is_file(entry):
                yield entry.path


def _readable(folder: str | os.PathLike[str], most: int = MOST_ENTRIES) -> list[os.DirEntry[str]]:
    """The first entries of a folder; none, and a line in the log, when it cannot be read."""
    try:
        found = list(islice(entries(folder), most))
    except FileNotFoundError:
        return []
    except OSError as error:
        _say(f"Conditional Balance leaves out {folder}, which cannot be read ({error.strerror or error}).")
        return []
    if len(found) == MOST_ENTRIES:
        _say(f"Conditional Balance looks at the first {MOST_ENTRIES:,} entries of {folder} only.")
    return found


@cache
def _say(words: str) -> None:
    """Once, though menus are made again whenever a page is loaded."""
    logging.warning(words)


def inside(root: str | os.PathLike[str], name: str) -> Path | None:
    """The path of `name` in `root`; None for a name that leaves it, that a menu hides, or that is no relative path.

    Backslashes part folders as on Windows, where the workflow that holds the name may have been saved; elsewhere they
    may also belong to a name.
    """
    parts = name.replace("\\", "/").split("/")
    if not all(part.strip() and not _has_a_systems_name(part) and not set(part) & {":", "\0"} for part in parts):
        return None
    as_written = Path(root, name)
    return as_written if os.path.exists(as_written) else Path(root, *parts)
