"""Makes a sensitivity profile of a recorded series, level by level, so that one level's moments are held at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import comfy.model_management
import comfy.utils
import torch

from ...engine.divergence import FeaturesNotFinite, among
from ...engine.layers import LayerId
from ...engine.moments import Moments
from ...engine.profile import SensitivityProfile
from ...engine.recording_file import Recording, open_recording
from ...engine.sampling import tiles
from ...engine.texts import quoted
from .series import Scoring, scoring_of


def profile_recording(folder: Path, what: str, distance: str, seed: int) -> SensitivityProfile:
    """The profile of all pictures of a recording; their labels are the clusters.

    Raises ValueError when the recording is none, is damaged, or has fewer than two labels with two pictures each.
    """
    recording = open_recording(folder)
    counts = Counter(recording.labels)
    if len(counts) < 2 or min(counts.values()) < 2:
        listed = ", ".join(f"{quoted(label)} ({count})" for label, count in counts.items())
        raise ValueError(
            f"The recording {quoted(folder.name)} holds {listed}: generate two pictures or more under each of two "
            "labels or more."
        )
    names = list(counts)
    shape = len(recording.features), len(recording.sigmas), len(recording.layers)
    scoring = scoring_of([names.index(label) for label in recording.labels], recording.subjects, shape, seed)
    bar = comfy.utils.ProgressBar(len(recording.sigmas))
    for level in range(len(recording.sigmas)):
        for group in scoring.groups:
            _add(recording, level, group, distance, scoring)
        bar.update(1)
    scores = scoring.scores()
    facts = {
        "what": what,
        "model": dict(recording.model),
        "clusters": dict(counts),
        "recorded": folder.name,
        "seed": seed,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **scoring.facts(distance),
    }
    return SensitivityProfile(
        recording.layers,
        recording.features,
        recording.sigmas,
        scores.score,
        *scores.interval,
        facts,
        content=scoring.content(),
        noise=recording.noise,
    )


def _add(recording: Recording, level: int, group: torch.Tensor, distance: str, scoring: Scoring) -> None:
    """Add the distances of all pairs of a group of pictures at one noise level."""
    found = recording.level(level, group.tolist())
    for rows, columns in tiles(len(group)):
        sides = (rows,) if rows is columns else (rows, columns)
        scoring.add(level, _distances(found, sides, recording.layers, distance), group[rows], group[columns])


def _distances(
    moments: Mapping[LayerId, Moments], sides: Sequence[torch.Tensor], layers: Sequence[LayerId], distance: str
) -> torch.Tensor:
    """Distances [features, layers, rows, columns] from the layers' moments [pictures, features, channels]."""

    def sets() -> Iterator[list[Moments]]:
        for layer in layers:
            comfy.model_management.throw_exception_if_processing_interrupted()
            yield [Moments(*(part[side] for part in moments[layer])) for side in sides]

    try:
        return torch.stack(among(sets(), distance), 1)
    except FeaturesNotFinite as error:
        raise ValueError(
            f"The recording's features in layer {layers[error.place]} are not finite numbers: the model gave NaN while "
            "it generated. Delete the recording, and look for NaN in the model, its LoRAs or its precision."
        ) from error
