"""Puts a sensitivity profile into words: which layers are sensitive, how sure that is, how stable, what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, pairwise
from typing import Any

import torch

from ..engine.agreement import spearman
from ..engine.layers import UNET_BLOCKS
from ..engine.profile import CROSSED, LOOKS_CROSSED, NAMES_UNUSED, PLAIN, SensitivityProfile, by_content
from ..engine.texts import counted

LISTED = 8
NAMED = 3
TOP = 0.3  # of all layers: those that are compared between two rankings


def report(profile: SensitivityProfile) -> str:
    """The report of one profile, a few lines for each feature."""
    lines = [_what(profile), _series(profile), ""]
    for index, feature in enumerate(profile.features):
        lines += [f"{feature}, mean score over noise levels (lower = more sensitive)", *_layers(profile, index)]
        lines += [_stability(profile, index), ""]
    lines += [_agreement(profile), _separation(profile), _on_transformers(profile), *content_lines(profile)]
    lines += [_sample(profile), _cost(profile)]
    return "\n".join(line for line in lines if line is not None)


def _on_transformers(profile: SensitivityProfile) -> str | None:
    """What is known of rankings of style by pictures there: benchmarks/README.md, "A transformer"."""
    facts = profile.provenance
    by_pictures = facts.get("clusters") and "style" in str(facts.get("what", "")).lower()
    if not by_pictures or profile.layers[0].block in UNET_BLOCKS:
        return None
    return (
        "On the one trained transformer that was tried, such a ranking did not name the layers that bring the style: "
        "before you rely on this one, compare it with Measure Layers."
    )


def _sample(profile: SensitivityProfile) -> str | None:
    """What of the series was not looked at."""
    facts = profile.provenance
    if stopped := facts.get("stopped"):
        return (
            f"Measured {stopped['images']} of {stopped['of']} images: by then the ranking was expected to agree with "
            f"the true one at {stopped['sure']:.2f}."
        )
    if pairs := facts.get("pairs"):
        return (
            f"Compared {pairs['measured']:,} of {pairs['of']:,} pairs of images, a fair sample; the intervals hold "
            "what the others could change."
        )
    return None


def in_short(profile: SensitivityProfile) -> str:
    """One sentence: how many layers and noise levels, and which layers are the most sensitive over all features."""
    mean = profile.scores.mean((0, 1))
    first = ", ".join(str(profile.layers[index]) for index in mean.argsort(stable=True)[:NAMED].tolist())
    words = f"{len(profile.layers)} layers at {counted(len(profile.sigmas), 'noise level')}, most sensitive: {first}."
    return words + _series_in_short(profile)


def _series_in_short(profile: SensitivityProfile) -> str:
    return IN_SHORT.get(str(profile.provenance.get("series")), "")


def _what(profile: SensitivityProfile) -> str:
    facts = profile.provenance
    high, low = float(profile.sigmas[0]), float(profile.sigmas[-1])
    number = counted(len(profile.sigmas), "noise level")
    levels = f"{len(profile.layers)} layers at {number}, sigma {high:.2f} to {low:.2f}"
    clusters = facts.get("clusters")
    estimator = facts.get("estimator", "origin unknown")
    if clusters:
        listed = ", ".join(f"{name} ({count})" for name, count in clusters.items())
        return f"{levels}; {sum(clusters.values())} images in {len(clusters)} clusters: {listed}; {estimator}."
    return f"{levels}; {estimator}. {facts.get('source', '')}".strip()


IN_SHORT = {
    CROSSED: " Crossed series: style and content scored.",
    LOOKS_CROSSED: " The series looks crossed: name its subjects (see the report).",
}
READ_AS = {
    PLAIN: "Read as plain clusters: no picture's subject is named.",
    NAMES_UNUSED: "Read as plain clusters: no named subject stands in two clusters beside another one.",
    LOOKS_CROSSED: "Read as plain clusters, but the series looks crossed: the same subjects seem to recur in every "
    "cluster, and that hides the style from the plain score. Name them: give files of one subject one name in every "
    "folder (with 'subjects' of Load Image Clusters at 'file names' if these are numbers), or write 'subjects' in "
    "Image Cluster.",
}


def _series(profile: SensitivityProfile) -> str | None:
    """How the series was read."""
    facts = profile.provenance
    if facts.get("series") != CROSSED:
        return READ_AS.get(str(facts.get("series")))
    subjects = list(facts.get("subjects", {}))
    named = ", ".join(subjects[:LISTED]) + (", ..." if len(subjects) > LISTED else "")
    return (
        f"Read as a crossed series of {len(subjects)} subjects ({named}): pairs of one subject are kept out of the "
        "style score and make the content score."
    )


def content_lines(profile: SensitivityProfile) -> list[str | None]:
    """What a crossed series says of content: the layers, the overlap with style, the test."""
    if profile.content is None:
        return []
    content = by_content(profile)
    lines: list[str | None] = [""]
    for index, feature in enumerate(content.features):
        lines += [
            f"{feature}, content: mean score (lower = the layer follows the subject more)",
            *_layers(content, index),
        ]
        lines.append(_overlap(profile, content, index))
    return [*lines, _separation(content, "subjects")]


def _overlap(profile: SensitivityProfile, content: SensitivityProfile, index: int) -> str:
    style, other = profile.scores[index], content.scores[index]
    alike = sum(spearman(*levels) for levels in zip(style, other, strict=True)) / len(style)
    count = max(1, round(TOP * len(profile.layers)))
    first = [set(scores.mean(0).argsort(stable=True)[:count].tolist()) for scores in (style, other)]
    shared = len(first[0] & first[1])
    both = f"{shared} of the first {count} layers are in both"
    return f"  style and content rankings agree at {alike:.2f} (Spearman); {both}."


def _layers(profile: SensitivityProfile, index: int) -> list[str]:
    mean = profile.scores[index].mean(0)
    order = mean.argsort(stable=True).tolist()
    count = min(LISTED, len(order) // 2)
    return [
        "  most sensitive:  " + ", ".join(_named(profile, index, column) for column in order[:count]),
        "  least sensitive: " + ", ".join(_named(profile, index, column) for column in reversed(order[-count:])),
    ]


def _named(profile: SensitivityProfile, index: int, column: int) -> str:
    tensors = [tensor for tensor in (profile.scores, profile.low, profile.high) if tensor is not None]
    score, *bounds = (f"{float(tensor[index, :, column].mean()):.3f}" for tensor in tensors)
    interval = f" [{', '.join(bounds)}]" if bounds else ""
    return f"{profile.layers[column]} {score}{interval}"


def _stability(profile: SensitivityProfile, index: int) -> str:
    """How alike the rankings of neighbouring noise levels are, and which level departs most from the mean ranking."""
    scores = profile.scores[index]
    if len(scores) < 2:
        return "  one noise level only: nothing to compare over noise levels."
    adjacent = [spearman(one, other) for one, other in pairwise(scores)]
    with_mean = torch.tensor([spearman(level, scores.mean(0)) for level in scores])
    worst = int(with_mean.argmin())
    return (
        f"  ranking over noise levels: neighbours agree at {sum(adjacent) / len(adjacent):.2f} (Spearman); with the "
        f"mean ranking {float(with_mean.mean()):.2f}, least at sigma {float(profile.sigmas[worst]):.2f} "
        f"({float(with_mean[worst]):.2f})."
    )


def _agreement(profile: SensitivityProfile) -> str | None:
    """How alike the features' rankings are, a mean over noise levels."""
    pairs = list(combinations(range(len(profile.features)), 2))
    if not pairs:
        return None
    said = []
    for one, other in pairs:
        levels = zip(profile.scores[one], profile.scores[other], strict=True)
        mean = sum(spearman(*level) for level in levels) / len(profile.sigmas)
        said.append(f"{profile.features[one]} and {profile.features[other]} {mean:.2f}")
    return f"Features agree (Spearman): {', '.join(said)}."


def _separation(profile: SensitivityProfile, clusters: str = "clusters") -> str | None:
    facts = profile.provenance.get("separation")
    if facts is None:
        return None
    verdict = f"The {clusters} separate" if facts["p"] <= 0.05 else f"The {clusters} do NOT clearly separate"
    return (
        f"{verdict}: p = {facts['p']:.3f} (permutation test of the mean score); "
        f"{facts['share']:.0%} of all scores have p <= 0.05 by themselves."
    )


def _cost(profile: SensitivityProfile) -> str | None:
    cost: Mapping[str, Any] | None = profile.provenance.get("cost")
    if cost is None:
        return None
    return f"Cost: {cost['forward_passes']} image passes through the model, {cost['seconds']:.1f} s."
