"""Policies of a crossed series, whose profile scores layers by subject too."""

from __future__ import annotations

from dataclasses import dataclass

from ...combining import low_content
from ...profile import SensitivityProfile, by_content
from .base import register
from .per_step import PerStep


@register
@dataclass(frozen=True)
class Content(PerStep):
    """The K layers that follow the subject most at this noise level."""

    name = "content"
    about = "the layers that follow the subject, with a profile of a crossed series"

    def ranking(self, profile: SensitivityProfile) -> SensitivityProfile:
        return by_content(profile)


@register
@dataclass(frozen=True)
class LowContent(PerStep):
    """The K layers whose style score is lowest beside their content score: those that carry style and leave content."""

    name = "style, low content"
    about = "the layers that carry style and not the subject, with a profile of a crossed series"

    def ranking(self, profile: SensitivityProfile) -> SensitivityProfile:
        return low_content(profile)
