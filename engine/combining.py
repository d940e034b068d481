"""Profiles made of profiles: the authors' trimmed mean of several series, and the contrast of two questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from .profile import SensitivityProfile, by_content, common_features
from .scoring import Scores

CONTRASTED = "difference of two standardised scores: negative where the first question is the one that a layer encodes"


class TooFewProfiles(ValueError):
    """One profile, or none: there is nothing to combine."""

    def __init__(self, count: int) -> None:
        super().__init__(f"There is {'one' if count else 'no'} profile to combine: two or more are needed.")
        self.count = count


def trimmed_mean(profiles: Sequence[SensitivityProfile]) -> SensitivityProfile:
    """For every feature, noise level and layer: without the lowest and the highest score, the mean of the rest.

    As in combine_gradings.py, the paper's analysis code (arXiv 2412.19853); of two profiles the plain mean. Read at the
    first one's noise levels, with the features that all have.
    Content scores are kept, without an interval, where all profiles have them.
    Raises TooFewProfiles for fewer than two, ProfilesDiffer or NoCommonFeature for those that do not go together.
    """
    if len(profiles) < 2:
        raise TooFewProfiles(len(profiles))
    made = _made(profiles, _trimmed(profiles), " and ", f"trimmed mean of {len(profiles)} profiles")
    if any(profile.content is None for profile in profiles):
        return made
    content = _trimmed([by_content(profile) for profile in profiles])
    return replace(made, content=Scores(content, content.clone(), content.clone()))


def _trimmed(profiles: Sequence[SensitivityProfile]) -> torch.Tensor:
    scores = _aligned(profiles).sort(0).values
    return (scores[1:-1] if len(profiles) > 2 else scores).mean(0)


def contrast(wanted: SensitivityProfile, unwanted: SensitivityProfile) -> SensitivityProfile:
    """Low where a layer is sensitive to the first question and not to the second, such as style minus structure.

    Both are standardised over the layers of each feature and noise level before they are subtracted: two series spread
    their scores differently, and a ranking knows no unit.
    Raises ProfilesDiffer or NoCommonFeature where the two do not go together.
    """
    first, second = _aligned([wanted, unwanted])
    difference = _standardised(first) - _standardised(second)
    return _made([wanted, unwanted], difference, " minus ", "contrast of standardised scores", CONTRASTED)


def low_content(profile: SensitivityProfile) -> SensitivityProfile:
    """The contrast of a crossed series' two scores: low where a layer follows the style and not the subject.

    Raises NoContentScores where the profile holds none.
    """
    return contrast(profile, by_content(profile))


def _aligned(profiles: Sequence[SensitivityProfile]) -> torch.Tensor:
    """Scores [profiles, F, T, L] on the first one's layers and noise levels, over the common features."""
    first, features = profiles[0], common_features(profiles)
    return torch.stack([_read_like(first, other, features) for other in profiles])


def _read_like(first: SensitivityProfile, other: SensitivityProfile, features: Sequence[str]) -> torch.Tensor:
    order = other.aligned(first.layers)
    read = [[other.at(float(sigma), feature)[order] for sigma in first.sigmas] for feature in features]
    return torch.stack([torch.stack(levels) for levels in read]).double()


def _standardised(scores: torch.Tensor) -> torch.Tensor:
    """Zero mean and unit spread over the last axis; all zeros where every layer scores the same."""
    centred = scores - scores.mean(-1, keepdim=True)
    spread = centred.std(-1, correction=0, keepdim=True)
    return torch.where(spread > 1e-12, centred / spread.clamp_min(1e-12), 0.0)


def _made(
    profiles: Sequence[SensitivityProfile], scores: torch.Tensor, joined: str, estimator: str, scale: str = ""
) -> SensitivityProfile:
    """The combined profile; it names its parts, and their model where all were measured on the same."""
    facts = [profile.provenance for profile in profiles]
    questions = [str(fact.get("what", "unknown")) for fact in facts]
    parts = [f"{what} ({fact.get('estimator', 'origin unknown')})" for what, fact in zip(questions, facts, strict=True)]
    provenance: dict[str, Any] = {
        "what": joined.join(dict.fromkeys(questions)),
        "estimator": estimator,
        "source": f"Made of {'; '.join(parts)}.",
    }
    if scale := scale or "; ".join(dict.fromkeys(fact["scale"] for fact in facts if "scale" in fact)):
        provenance["scale"] = scale
    models = [fact.get("model") or {} for fact in facts]
    if models[0] and all(model.get("weights") == models[0].get("weights") for model in models):
        provenance["model"] = models[0]
    features = common_features(profiles)
    first = profiles[0]
    return SensitivityProfile(first.layers, features, first.sigmas, scores, provenance=provenance, noise=first.noise)
