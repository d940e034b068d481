"""What pictures of a series show: read from the names of files and folders, or from a text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ...engine.texts import COMMAS, bounded, storable

AUTO, BY_NAME, NO_SUBJECTS = "auto", "file names", "none"
READINGS = (AUTO, BY_NAME, NO_SUBJECTS)
"""How a folder of folders names subjects: see `subjects_in`."""

LONGEST_SUBJECT = 200  # characters, as of a cluster's name


def subjects_in(folder: Path, clusters: Mapping[str, Sequence[Path]], reading: str) -> dict[str, tuple[str, ...]]:
    """For the files of every cluster in a folder what each shows, "" where unknown.

    In folder/cluster/subject/file it is the folder that a file lies in. In folder/cluster/file it is the file's name
    without its ending, with `reading` "auto" only where names are more than a count (3.png, ComfyUI_00003_.png).
    """
    if reading == NO_SUBJECTS:
        return {name: ("",) * len(files) for name, files in clusters.items()}
    named = reading == BY_NAME or not _count(clusters.values())
    return {name: tuple(_subject(folder, file, named) for file in files) for name, files in clusters.items()}


def _subject(folder: Path, file: Path, named: bool) -> str:
    _, *subject, _ = file.relative_to(folder).parts
    if subject:
        return _plain(subject[0])
    return _plain(file.stem) if named else ""


def _plain(name: str) -> str:
    """Without the case, in which folders of one series differ, and without bytes that are no characters.

    A letter with an accent is one, though Macs may write it as two.
    """
    characters = name.encode("utf-8", "backslashreplace").decode()
    return unicodedata.normalize("NFC", characters).casefold()[:LONGEST_SUBJECT]


def _count(clusters: Iterable[Sequence[Path]]) -> bool:
    """Whether names differ in digits alone, as those of saved batches do."""
    return len({re.sub(r"\d+", "", file.stem) for files in clusters for file in files}) <= 1


def subjects_written(text: str, images: int) -> tuple[str, ...]:
    """What each of a number of images shows, from names separated by commas or lines: one each, or one for all.

    Raises ValueError when the numbers do not fit or a name is too long.
    """
    names = names_written(text, "subjects") or ("",)
    if len(names) not in (1, images):
        raise ValueError(
            f"'subjects' names {len(names)} subjects and 'images' holds {images}: name one for each image, separated "
            "by commas, or one for all."
        )
    return names if len(names) == images else names * images


def names_written(text: str, what: str) -> tuple[str, ...]:
    """Names separated by commas or lines; `what` is the input they were given in, for the error."""
    alike = re.sub(f"[{COMMAS}\n]", ",", bounded(text, what))
    names = tuple(name.strip() for name in alike.strip(" ,").split(","))
    return () if names == ("",) else tuple(storable(name, what) for name in names)
