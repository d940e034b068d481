"""One profiling run from clusters of images to a sensitivity profile, with progress that can be seen and cancelled."""

from __future__ import annotations

import bisect
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher

from ...engine.noise import LOG, LOGIT, evenly_spaced
from ...engine.profile import SensitivityProfile
from ...engine.scoring import check_clusters
from ..arch.fingerprint import fingerprint_of
from ..arch.registry import architecture_of
from ..runs.probe import Conditioning
from .capture import measure
from .clusters import Clusters, encode, native_side, picture_size
from .series import Scoring, scoring_of

NOISIEST = 0.02  # percent: all noise tells nothing apart
CLEANEST = {LOG: 0.999, LOGIT: 0.98}  # percent: the last step hardly differs from the end


@dataclass(frozen=True)
class Settings:
    """What a user chooses; `side` 0 is the model's own size, `name` what the clusters differ in."""

    name: str
    levels: int
    features: tuple[str, ...]
    distance: str
    seed: int
    aspect: str
    side: int


def profile_model(
    model: ModelPatcher,
    clusters: Clusters,
    vae: Any,
    positive: Conditioning,
    negative: Conditioning | None,
    settings: Settings,
) -> SensitivityProfile:
    """Measure a model's self-attention layers on clusters of images. Raises ValueError on input that cannot be used."""
    started = time.monotonic()
    layers = architecture_of(model).layers
    labels = [number for number, cluster in enumerate(clusters) for _ in cluster.images]
    check_clusters(labels, [cluster.name for cluster in clusters])
    size = picture_size(clusters, settings.aspect, settings.side or native_side(model))
    latents = encode(vae, clusters, size, model.model.latent_format)
    scoring = scoring_of(labels, [name for cluster in clusters for name in cluster.subjects], settings.seed)
    growth = _Growth(_empty(layers, settings, noise_levels(model, settings.levels), noise_of(model)), scoring, settings)
    passes = measure(
        model,
        latents,
        positive,
        negative,
        growth.profile.sigmas.float(),
        settings.features,
        settings.distance,
        settings.seed,
        growth.on_images,
        growth.on_level,
    )
    facts = _facts(model, clusters, positive, negative, settings, size)
    facts["percents"] = [percent_of(model, sigma) for sigma in growth.profile.sigmas.tolist()]
    facts |= scoring.facts(settings.distance)
    facts["cost"] = {"forward_passes": passes, "seconds": round(time.monotonic() - started, 3)}
    return replace(growth.profile, provenance=facts, content=scoring.content())


def noise_levels(model: ModelPatcher, count: int) -> torch.Tensor:
    """`count` sigmas, falling, evenly spaced in the variable of the model's schedule, from 2 % to nearly its end."""
    sampling, noise = model.get_model_object("model_sampling"), noise_of(model)
    high, low = (float(sampling.percent_to_sigma(percent)) for percent in (NOISIEST, CLEANEST[noise]))
    return evenly_spaced(high, low, count, noise)


def noise_of(model: ModelPatcher) -> str:
    """The variable of a model's schedule: sigma of flow models ends at 1."""
    return LOGIT if float(model.get_model_object("model_sampling").sigma_max) <= 1 else LOG


def percent_of(model: ModelPatcher, sigma: float) -> float:
    """Where in the model's schedule a noise level lies, 0 to 1, to 0.0001."""
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    place = bisect.bisect_left(range(10001), -sigma, key=lambda place: -float(to_sigma(place / 10000)))
    return min(place, 10000) / 10000


def title_of(profile: SensitivityProfile) -> str:
    """What a heat map is of: a family alone would give a small or finetuned model the family's name."""
    facts = profile.provenance
    model = facts.get("model") or {}
    family = model.get("name", "unknown model")
    name = f"{family} architecture, {len(profile.layers)} layers" if "weights" in model else family
    return f"{name}: sensitivity to {facts.get('what', 'what was measured')}"


class _Growth:
    """The profile as far as it is measured, and the progress bar."""

    def __init__(self, profile: SensitivityProfile, scoring: Scoring, settings: Settings) -> None:
        self.profile, self.scoring, self.settings = profile, scoring, settings
        self._bar = comfy.utils.ProgressBar(scoring.images * len(profile.sigmas))

    def on_images(self, count: int) -> None:
        self._bar.update(count)

    def on_level(self, level: int, distances: torch.Tensor) -> None:
        scores = self.scoring.add(distances)
        for kept, new in zip((self.profile.scores, self.profile.low, self.profile.high), scores, strict=True):
            kept[:, level] = new


def _empty(layers: Sequence[Any], settings: Settings, sigmas: torch.Tensor, noise: str) -> SensitivityProfile:
    scores, low, high = torch.full(
        (3, len(settings.features), len(sigmas), len(layers)), float("nan"), dtype=torch.float64
    )
    return SensitivityProfile(
        tuple(layers), settings.features, sigmas, scores, low, high, {"what": settings.name}, noise=noise
    )


def _facts(
    model: ModelPatcher,
    clusters: Clusters,
    positive: Conditioning,
    negative: Conditioning | None,
    settings: Settings,
    size: tuple[int, int],
) -> dict[str, Any]:
    return {
        "what": settings.name,
        "model": fingerprint_of(model),
        "clusters": {cluster.name: len(cluster.images) for cluster in clusters},
        "prompts": {"positive": len(positive), "negative": len(negative or [])},
        "size": list(size),
        "seed": settings.seed,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
