"""One profiling run from clusters of images to a sensitivity profile, with progress that can be seen and cancelled."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher

from ...engine.noise import LOG, LOGIT, evenly_spaced
from ...engine.profile import SensitivityProfile
from ...engine.sampling import MOST_PAIRS
from ...engine.scoring import check_clusters, sureness
from ..arch.fingerprint import fingerprint_of
from ..arch.registry import architecture_of
from ..runs.loaded import sampling_of
from ..runs.probe import Conditioning
from .capture import Level, capture, distances_of, measure
from .clusters import Clusters, encode, native_side, picture_size
from .series import Scoring, scoring_of

NOISIEST = 0.02  # percent: all noise tells nothing apart
CLEANEST = {LOG: 0.999, LOGIT: 0.98}  # percent: the last step hardly differs from the end


@dataclass(frozen=True)
class Settings:
    """What a user chooses; `side` 0 is the model's own size, `name` what the clusters differ in.

    `sure` above 0 ends measuring when the ranking is that sure (`engine.scoring.sureness`). Of more than `most_pairs`
    pairs of pictures a sample is looked at.
    """

    name: str
    levels: int
    features: tuple[str, ...]
    distance: str
    seed: int
    aspect: str
    side: int
    sure: float = 0.0
    most_pairs: int = MOST_PAIRS


PORTION = 4  # a series is measured in so many portions, or fewer, when it may end early


def profile_model(
    model: ModelPatcher,
    clusters: Clusters,
    vae: Any,
    positive: Conditioning,
    negative: Conditioning | None,
    settings: Settings,
) -> SensitivityProfile:
    """Measure a model's self-attention layers on clusters of images. Raises ValueError on input that cannot be used.

    One group of images after another is encoded, looked at and forgotten, one noise level after another; where all
    pairs are looked at there is one group.
    """
    run = Measurement(model, clusters, vae, positive, negative, settings)
    scoring, bar = run.scoring(), comfy.utils.ProgressBar(run.count * len(run.sigmas))
    passes, seen = 0, 0
    for group in scoring.groups:
        passes += run.measure(group, scoring, bar.update)
        seen += len(group)
        if seen < run.count and settings.sure > 0 and sureness(scoring.scores()) >= settings.sure:
            break
    bar.update_absolute(run.count * len(run.sigmas))
    return run.profile(scoring, passes, seen)


class Measurement:
    """A model, pictures and settings, ready to be measured in parts that are put together afterwards."""

    def __init__(
        self,
        model: ModelPatcher,
        clusters: Clusters,
        vae: Any,
        positive: Conditioning,
        negative: Conditioning | None,
        settings: Settings,
    ) -> None:
        self._started = time.monotonic()
        self.model, self.clusters, self._vae, self.settings = model, clusters, vae, settings
        self._positive, self._negative = positive, negative
        self.layers = architecture_of(model).layers
        self._styles = [number for number, cluster in enumerate(clusters) for _ in cluster.images]
        check_clusters(self._styles, [cluster.name for cluster in clusters])
        self.size = picture_size(clusters, settings.aspect, settings.side or native_side(model))
        self._images = [image for cluster in clusters for image in cluster.images]
        self.sigmas = noise_levels(model, settings.levels)

    @property
    def count(self) -> int:
        """Pictures of all clusters."""
        return len(self._images)

    def scoring(self) -> Scoring:
        """Sums of the whole series, with nothing in them."""
        settings, subjects = self.settings, [name for cluster in self.clusters for name in cluster.subjects]
        shape = len(settings.features), len(self.sigmas), len(self.layers)
        portion = max(2 * len(self.clusters), self.count // PORTION) if settings.sure > 0 else None
        return scoring_of(self._styles, subjects, shape, settings.seed, settings.most_pairs, portion)

    def measure(self, group: torch.Tensor, scoring: Scoring, on_images: Callable[[int], None]) -> int:
        """Add the distances of all pairs of a group of pictures; returns how many passed through the model."""
        found = self._latents(group)

        def on_tile(level: int, tile: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> None:
            scoring.add(level, tile, group[rows], group[columns])

        given = self.model, found, self._positive, self._negative, self.sigmas.float(), self.settings.features
        return measure(*given, self.settings.distance, self.settings.seed, on_images, on_tile)

    def moments(self, pictures: torch.Tensor) -> tuple[list[Level], int]:
        """Moments of some pictures, by index, at every noise level, and how many passed through the model."""
        found: list[Level] = []
        given = self.model, self._latents(pictures), self._positive, self._negative, self.sigmas.float()
        passes = capture(
            *given, self.settings.features, self.settings.seed, lambda count: None, lambda _, level: found.append(level)
        )
        return found, passes

    def distances(self, level: int, sides: Sequence[Level]) -> torch.Tensor:
        """Distances [features, layers, rows, columns] of one set of pictures, or between two, at a noise level."""
        sigma = float(self.sigmas[level])
        return distances_of(sides, self.layers, self.settings.features, self.settings.distance, sigma)

    def _latents(self, pictures: torch.Tensor) -> torch.Tensor:
        images = [self._images[number] for number in pictures.tolist()]
        return encode(self._vae, images, self.size, self.model.model.latent_format)

    def profile(self, scoring: Scoring, passes: int, seen: int) -> SensitivityProfile:
        """The profile of what a scoring holds; `seen` pictures are in it, after `passes` through the model."""
        scores = scoring.scores()
        facts = self._facts() | scoring.facts(self.settings.distance)
        facts["percents"] = [percent_of(self.model, sigma) for sigma in self.sigmas.tolist()]
        if seen < self.count:
            facts["stopped"] = {"images": seen, "of": self.count, "sure": sureness(scores)}
            facts.pop("pairs", None)
        facts["cost"] = {"forward_passes": passes, "seconds": round(time.monotonic() - self._started, 3)}
        return SensitivityProfile(
            self.layers, self.settings.features, self.sigmas, scores.score, *scores.interval, facts,
            content=scoring.content(), noise=noise_of(self.model),
        )  # fmt: skip

    def _facts(self) -> dict[str, Any]:
        return {
            "what": self.settings.name,
            "model": fingerprint_of(self.model),
            "clusters": {cluster.name: len(cluster.images) for cluster in self.clusters},
            "prompts": {"positive": len(self._positive), "negative": len(self._negative or [])},
            "size": list(self.size),
            "seed": self.settings.seed,
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }


def noise_levels(model: ModelPatcher, count: int) -> torch.Tensor:
    """`count` sigmas, falling, evenly spaced in the variable of the model's schedule, from 2 % to nearly its end."""
    sampling, noise = sampling_of(model), noise_of(model)
    high, low = (float(sampling.percent_to_sigma(percent)) for percent in (NOISIEST, CLEANEST[noise]))
    return evenly_spaced(high, low, count, noise)


def noise_of(model: ModelPatcher) -> str:
    """The variable of a model's schedule: sigma of flow models ends at 1."""
    return LOGIT if float(sampling_of(model).sigma_max) <= 1 else LOG


def percent_of(model: ModelPatcher, sigma: float) -> float:
    """Where in the model's schedule a noise level lies, 0 to 1, to 0.0001."""
    to_sigma = sampling_of(model).percent_to_sigma
    place = bisect.bisect_left(range(10001), -sigma, key=lambda place: -float(to_sigma(place / 10000)))
    return min(place, 10000) / 10000


def title_of(profile: SensitivityProfile) -> str:
    """What a heat map is of: a family alone would give a small or finetuned model the family's name."""
    facts = profile.provenance
    model = facts.get("model") or {}
    family = model.get("name", "unknown model")
    name = f"{family} architecture, {len(profile.layers)} layers" if "weights" in model else family
    return f"{name}: sensitivity to {facts.get('what', 'what was measured')}"
