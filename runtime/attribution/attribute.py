"""Attribution of a subject at one noise level, by any method, over one repeatable conditional prediction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from comfy import model_management

from ...engine.attribution import contrasted
from ...engine.layers import LayerId
from ..arch.base import uncompiled
from ..arch.shadows import foreign, shadow
from ..runs.memory import out_of_memory
from .layers import Layers
from .methods import METHODS
from .prediction import Prediction
from .propagation import Propagation
from .question import InParts, Question
from .settings import AttributionSettings
from .subject import Subject


@dataclass(frozen=True)
class Result:
    """Maps [subjects, B, h, w], the method that made them, and a warning where something asked for was not done."""

    maps: torch.Tensor
    method: str
    note: str = ""


def attribute(prediction: Prediction, subject: Subject, layers: Layers, settings: AttributionSettings) -> Result:
    """The importance of every subject at every position of the latent.

    Raises ValueError when no target layer could be read.
    """
    propagation = Propagation(prediction, layers, settings.propagation)
    question = Question(prediction, subject.phrases + subject.surroundings, layers, settings, propagation)
    maps, method, fallback = _maps(question)
    left_out = _left_out(question)
    maps = contrasted(maps[: len(subject.phrases)], maps[len(subject.phrases) :])
    notes = (fallback, left_out, propagation.note)
    return Result(propagation.over(maps), method, " ".join(note for note in notes if note))


def _maps(question: Question) -> tuple[torch.Tensor, str, str]:
    """Maps, the method that made them, and a warning if it was the fallback."""
    way = question.settings.way
    try:
        return way.maps(question), way.name, ""
    except InParts:
        note = f"{way.name} cannot tell where tiles lie, in which another node calls the model; jvp was used instead."
        return METHODS["jvp"].maps(question), "jvp", note
    except (RuntimeError, NotImplementedError) as problem:
        if not way.fallback:
            raise
        note = f"{way.name} {_why_not(problem)}; {way.fallback} was used instead."
    model_management.soft_empty_cache()  # what the failed pass held is free only here, where its error is gone
    return METHODS[way.fallback].maps(question), way.fallback, note


def _why_not(problem: Exception) -> str:
    if out_of_memory(problem):
        return "needs more memory than there is"
    first_line = str(problem).strip().split("\n")[0].rstrip(".")
    return f"found no gradients here ({first_line})"


def _left_out(question: Question) -> str:
    """The target layers that could not be read, in words. Raises ValueError when that is all of them."""
    calls, targets = question.prediction.calls, question.layers.targets
    missing = [layer for layer in targets if layer not in calls.subject]
    changed = [layer for layer in missing if layer in calls.changed]
    if len(missing) == len(targets):
        family = question.prediction.architecture
        who = shadow(family, missing[0], question.prediction.options) or foreign(uncompiled(family.network))
        raise ValueError(_why_none(changed, bool(calls.other), who))
    uncalled = [layer for layer in missing if layer not in calls.changed]
    notes = []
    if uncalled:
        notes.append(f"Chosen but never run: {_names(uncalled)}.")
    if changed:
        notes.append(f"Left out, as another node changes the rows or tokens there: {_names(changed)}.")
    return " ".join(notes)


def _why_none(changed: Iterable[LayerId], ran_without: bool, who: str | None) -> str:
    if changed:
        return (
            f"'layers' names layers whose rows or tokens another node changes ({_names(changed)}): choose others, or "
            "take token merging, tiling or regional attention off this model."
        )
    if ran_without:
        return "The subject's prompt did not run in the call that was looked at: check the ranges in which prompts act."
    by = f" ({who})" if who else ""
    return (
        f"'layers' names layers that never ran: another node replaces or skips them{by}; choose others, or bypass it."
    )


def _names(layers: Iterable[LayerId]) -> str:
    return ", ".join(map(str, layers))
