"""Makes a sensitivity profile of a recorded series, level by level, so that one level's moments are held at a time."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

import comfy.model_management
import comfy.utils
import torch

from ...engine.divergence import pairwise
from ...engine.moments import Moments
from ...engine.profile import SensitivityProfile
from ...engine.recording_file import Recording, open_recording
from ...engine.scoring import Scores
from ...engine.texts import quoted
from .series import scoring_of


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
    scoring = scoring_of([names.index(label) for label in recording.labels], recording.subjects, seed)
    bar = comfy.utils.ProgressBar(len(recording.sigmas))
    levels: list[Scores] = []
    for level in range(len(recording.sigmas)):
        levels.append(scoring.add(_distances(recording, level, distance)))
        bar.update(1)
    score, low, high = (torch.stack(part, 1) for part in zip(*levels, strict=True))
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


def _distances(recording: Recording, level: int, distance: str) -> torch.Tensor:
    """Distances [features, layers, pictures, pictures] at one noise level."""
    found = []
    for layer, (mean, std) in recording.level(level).items():
        comfy.model_management.throw_exception_if_processing_interrupted()
        try:
            found.append(pairwise(Moments(mean, std), distance))
        except ValueError as error:
            raise ValueError(
                f"The recording's features in layer {layer} are not finite numbers: the model gave NaN while it "
                "generated. Delete the recording, and look for NaN in the model, its LoRAs or its precision."
            ) from error
    return torch.stack(found, 1)
