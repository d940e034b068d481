"""A profiling run cut into tasks that can be done in any order, anywhere, again and again.

`moments` tasks look at some pictures; `sums` tasks compare them, tile by tile. What is done lies in a work folder, in
files that are whole or not there, so that a run goes on after any kill. The moments of a group of pictures are deleted
when all its pairs are summed: the folder does not grow with the number of pictures.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialised

from ...engine.files import write
from ...engine.layers import LayerId
from ...engine.moments import Moments
from ...engine.profile import SensitivityProfile
from ..arch.fingerprint import fingerprint_of
from .capture import IMAGES_A_PASS, Level
from .profiling import Measurement

MOMENTS, SUMS = "moments", "sums"
LARGEST_CHUNK = 32  # pictures of one moments task
CHUNKS = 4  # of a small group, and tasks of its sums, so that several machines have something to do
TILES = 32  # of one sums task, at most
Tile = tuple[int, int]


class Task(NamedTuple):
    """One piece of work: a kind, the group of pictures it belongs to, and its place there."""

    kind: str
    group: int
    place: int


class Parts:
    """A measurement as tasks, and the folder that holds what is done."""

    def __init__(self, measurement: Measurement, folder: Path, prompts: Mapping[str, Any]) -> None:
        """`prompts` are what the conditioning was made of, as any JSON: the folder belongs to this very run.

        Raises ValueError when the folder holds another run's work.
        """
        self.run, self.folder, self._empty = measurement, folder, measurement.scoring()
        mine = _identity(measurement, prompts)
        folder.mkdir(parents=True, exist_ok=True)
        job = folder / "job"
        if job.exists() and job.read_text(encoding="utf-8") != mine:
            raise ValueError(
                f"The work folder {folder} holds another run (other pictures, checkpoint or settings): name another "
                "one, or delete it."
            )
        write(job, mine.encode())

    @property
    def groups(self) -> range:
        return range(len(self._empty.groups))

    def tasks(self, group: int, kind: str) -> list[Task]:
        """The tasks of a group; those that sum need all that look."""
        count = len(self._chunks(group)) if kind == MOMENTS else len(self._units(group))
        return [Task(kind, group, place) for place in range(count)]

    def done(self, task: Task) -> bool:
        """Whether a task need not be done: it is, or all that needs it is."""
        if task.kind == MOMENTS and all(self.done(other) for other in self.tasks(task.group, SUMS)):
            return True
        return self._file(task).exists()

    def do(self, task: Task) -> None:
        """Do a task and write what it finds."""
        tensors = self._look(task) if task.kind == MOMENTS else self._sum(task)
        write(self._file(task), serialised(tensors))

    def forget_moments(self, group: int) -> None:
        """Delete a group's moments, which its sums have made needless."""
        for task in self.tasks(group, MOMENTS):
            self._file(task).unlink(missing_ok=True)

    def finish(self) -> SensitivityProfile:
        """The profile of all sums."""
        total, passes = self._empty.emptied(), 0
        for task in (task for group in self.groups for task in self.tasks(group, SUMS)):
            tensors = load_file(self._file(task))
            passes += int(tensors.pop("passes"))
            total.take(tensors)
        return self.run.profile(total, passes, self.run.count)

    def clear(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder)

    def _file(self, task: Task) -> Path:
        return self.folder / f"{task.kind}.{task.group}.{task.place}.safetensors"

    def _chunks(self, group: int) -> tuple[torch.Tensor, ...]:
        """Pictures of each moments task; a chunk is a number of whole passes, so that any split rounds alike."""
        pictures = self._empty.groups[group]
        passes = -(-len(pictures) // (CHUNKS * IMAGES_A_PASS))
        return pictures.split(min(LARGEST_CHUNK, passes * IMAGES_A_PASS))

    def _units(self, group: int) -> list[list[Tile]]:
        """Tiles of each sums task, as pairs of chunks."""
        chunks = len(self._chunks(group))
        tiles = [(one, other) for one in range(chunks) for other in range(one, chunks)]
        size = min(TILES, -(-len(tiles) // CHUNKS))
        return [tiles[start : start + size] for start in range(0, len(tiles), size)]

    def _look(self, task: Task) -> dict[str, torch.Tensor]:
        levels, passes = self.run.moments(self._chunks(task.group)[task.place])
        found = {
            f"{number}.{feature}.{layer}": torch.stack(moments).float().cpu().contiguous()
            for number, level in enumerate(levels)
            for (layer, feature), moments in level.items()
        }
        return found | {"passes": torch.tensor(passes)}

    def _sum(self, task: Task) -> dict[str, torch.Tensor]:
        scoring, chunks = self._empty.emptied(), self._chunks(task.group)
        unit = self._units(task.group)[task.place]
        for level in range(len(self.run.sigmas)):
            for (one, other), sides in self._moments(task.group, unit, level):
                scoring.add(level, self.run.distances(level, sides), chunks[one], chunks[other])
        own = [one for one, other in unit if one == other]  # every chunk meets itself once, and is counted there
        passes = sum(self._read(task.group, chunk, lambda file: int(file.get_tensor("passes"))) for chunk in own)
        return {name: part.contiguous() for name, part in scoring.tensors.items()} | {"passes": torch.tensor(passes)}

    def _moments(self, group: int, unit: list[Tile], level: int) -> Iterator[tuple[Tile, list[Level]]]:
        """Each tile of a unit with the moments of its chunks at one noise level, read once."""
        read: dict[int, Level] = {}
        for tile in unit:
            for chunk in set(tile) - read.keys():
                read[chunk] = self._read(group, chunk, lambda file: _level(file, level))
            yield tile, [read[chunk] for chunk in dict.fromkeys(tile)]

    def _read(self, group: int, chunk: int, read: Any) -> Any:
        path = self._file(Task(MOMENTS, group, chunk))
        try:
            with safe_open(path, framework="pt") as file:
                return read(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read ({error}): delete it, and run the same command again.") from error


def _level(file: Any, level: int) -> Level:
    found = {}
    for name in file.keys():
        number, _, rest = name.partition(".")
        if number == str(level):
            feature, _, layer = rest.partition(".")
            found[LayerId.parse(layer), feature] = Moments(*file.get_tensor(name))
    return found


def _identity(run: Measurement, prompts: Mapping[str, Any]) -> str:
    """A hash of all that decides what is measured, and of how it is cut: another cut would count pairs twice or never.

    Pictures go by name, size on the disk and time of change.
    """
    pictures = [_about(image) for cluster in run.clusters for image in cluster.images]
    series = [[cluster.name, list(cluster.subjects)] for cluster in run.clusters]
    cut = [LARGEST_CHUNK, CHUNKS, TILES]
    facts = [fingerprint_of(run.model), vars(run.settings), run.size, dict(prompts), series, pictures, cut]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _about(image: Any) -> Any:
    file = getattr(image, "file", None)
    return [str(file), file.stat().st_size, file.stat().st_mtime_ns] if file else image.aspect
