"""Makes a sensitivity profile of a recorded series, level by level, so that one level's moments are held at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
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
    score, low, high = scoring.scores()
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
        score,
        low,
        high,
        facts,
        content=scoring.content(),
        noise=recording.noise,
    )


def _add(recording: Recording, level: int, group: torch.Tensor, distance: str, scoring: Scoring) -> None:
    """Add the distances of all pairs of a group of pictures at one noise level."""
    found = recording.level(level, group.tolist())
    for rows, columns in tiles(len(group)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        sides = (rows,) if rows is columns else (rows, columns)
        tile = torch.stack([_distances(found[layer], sides, layer, distance) for layer in recording.layers], 1)
        scoring.add(level, tile, group[rows], group[columns])


def _distances(moments: Moments, sides: Sequence[torch.Tensor], layer: LayerId, distance: str) -> torch.Tensor:
    """Distances [features, rows, columns] of one layer's moments [pictures, features, channels]."""
    try:
        return among([Moments(*(part[side] for part in moments)) for side in sides], distance)
    except FeaturesNotFinite as error:
        raise ValueError(
            f"The recording's features in layer {layer} are not finite numbers: the model gave NaN while it "
            "generated. Delete the recording, and look for NaN in the model, its LoRAs or its precision."
        ) from error
