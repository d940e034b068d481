"""Records what attention layers project while any sampler generates labelled pictures (the authors' protocol)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ...engine.moments import Moments
from ...engine.noise import LOG
from ...engine.recording_file import Key, RecordedPicture, append, difference, picture_files
from ...engine.texts import quoted
from ..arch.fingerprint import fingerprint_of
from ..arch.registry import architecture_of
from ..runs.model_call import KEY, on_one_card
from ..runs.notices import Notices, fresh_node
from ..runs.sampler_run import SamplerRun
from .capture import recording
from .profiling import noise_of

NEAR = 1e-3  # of a noise level: samplers round sigmas on their way

_written: set[Path] = set()
_deleted: Counter[Path] = Counter()
_lock = Lock()


@dataclass(frozen=True)
class Series:
    """Where pictures go and what they are: labels and subjects, one for each picture or one for all.

    With `first_is_reference` the first picture of a batch is what others take style from, and is left out.
    """

    folder: Path
    labels: tuple[str, ...]
    subjects: tuple[str, ...]
    features: tuple[str, ...]
    levels: int
    first_is_reference: bool = False

    def named(self, pictures: int) -> list[tuple[str, str]]:
        """Label and subject of each picture. Raises ValueError when the batch has another size."""
        for name, given in (("label", self.labels), ("subject", self.subjects)):
            if len(given) not in (1, pictures):
                besides = " besides the reference" if self.first_is_reference else ""
                raise ValueError(
                    f"'{name}' of Record Sensitivity names {len(given)} and the batch holds {pictures} pictures"
                    f"{besides}: name one for each, separated by commas, or one for all."
                )
        return list(zip(_spread(self.labels, pictures), _spread(self.subjects, pictures), strict=True))


def _spread(given: Sequence[str], pictures: int) -> list[str]:
    return list(given) * (pictures if len(given) == 1 else 1)


def record(model: ModelPatcher, series: Series) -> ModelPatcher:
    """A clone of the model that adds the pictures of every run to a series; the model itself is untouched.

    Raises ValueError when the model's architecture is not known.
    """
    architecture_of(model)
    patched = model.clone()
    patched.add_wrapper_with_key(
        WrappersMP.SAMPLER_SAMPLE, f"{KEY}_recording", partial(_around_run, series, fresh_node())
    )
    return patched


def times_deleted(folder: Path | None) -> int:
    """How often a recording that this server has written was found without any picture; None: any of them.

    Then its pictures have to be made again, also where ComfyUI still has them in its cache.
    """
    with _lock:
        for each in {each for each in _written if not picture_files(each)}:
            _written.discard(each)
            _deleted[each] += 1
        return _deleted.total() if folder is None else _deleted[folder]


def _around_run(
    series: Series, node: str | None, executor: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
) -> torch.Tensor:
    """SAMPLER_SAMPLE: what a run records lives from here to its end, and is written when the pictures are whole."""
    notices = Notices("Record Sensitivity", node)
    sampler = SamplerRun.of(executor, *args, **kwargs)
    model, first = sampler.guider.model_patcher, int(series.first_is_reference)
    with notices.own_errors():
        named = series.named(sampler.noise.shape[0] - first)
    run = _Run(model, series.features, recorded_levels(sampler.sigmas, series.levels, noise_of(model)))
    out = sampler.wrapped(WrappersMP.CALC_COND_BATCH, run.around_conds).sample()
    run.keep(series, named, first, model, notices)
    return out


def recorded_levels(sigmas: torch.Tensor, count: int, noise: str = LOG) -> list[float]:
    """At most `count` levels of a schedule [steps + 1], evenly over its steps, the first and the last among them.

    They fall, also where the schedule rises. The level at which it stops is no step, whether the picture is whole there
    or another sampler goes on. Pure noise of a flow model, sigma 1, is left out: nothing can be told there.
    """
    steps = sorted({sigma for sigma in sigmas[:-1].tolist() if sigma > 0 and (noise == LOG or sigma < 1)}, reverse=True)
    if len(steps) <= count:
        return steps
    places = torch.linspace(0, len(steps) - 1, count).round().long().tolist()
    return [steps[place] for place in places]


class _Run:
    """What one run has recorded: at each wanted noise level the first call of the sampler. Others run as they are."""

    def __init__(self, model: ModelPatcher, features: Sequence[str], wanted: Sequence[float]) -> None:
        self._model, self._features, self._wanted = model, features, wanted
        self._found: dict[float, dict[Key, Moments]] = {}
        self._inside = False

    def around_conds(
        self,
        executor: Callable[..., Any],
        model: BaseModel,
        conds: list[Any],
        x: torch.Tensor,
        sigma: torch.Tensor,
        model_options: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """CALC_COND_BATCH: calls that other nodes make inside a call, and later ones of a level, are not kept."""
        level = None if self._inside else self._level(float(sigma[0]))
        if level is None:
            return executor(model, conds, x, sigma, model_options, *args, **kwargs)
        self._inside = True
        try:
            with recording(self._model, self._features) as recorder:
                out = executor(model, conds, x, sigma, on_one_card(model_options), *args, **kwargs)
        finally:
            self._inside = False
        order = [cond["uuid"] for side in conds if side is not None for cond in side]
        self._found[level] = _of_pictures(recorder.take(order), len(x))
        return out

    def _level(self, sigma: float) -> float | None:
        near = min(self._wanted, key=lambda one: abs(one - sigma), default=None)
        is_wanted = near is not None and abs(near - sigma) <= NEAR * near
        return near if is_wanted and near not in self._found else None

    def keep(
        self, series: Series, named: Sequence[tuple[str, str]], first: int, model: ModelPatcher, notices: Notices
    ) -> None:
        """Write every picture, unless they do not belong to the series; what could not be recorded is said."""
        levels = [level for level in self._wanted if self._found.get(level)]
        if not levels:
            why = "the sampler called the model at none of its noise levels."
            if not self._wanted:
                why = "the only step of this run begins in pure noise, where pictures do not differ. Take more steps."
            notices.say(f"Nothing was recorded: {why}")
            return
        if len(levels) < len(self._wanted):
            notices.say(f"{len(levels)} of {len(self._wanted)} noise levels were recorded.")
        made_by, noise = fingerprint_of(model), noise_of(model)
        keys = [key for key in self._found[levels[0]] if all(key in self._found[level] for level in levels)]
        for row, (label, subject) in enumerate(named, first):
            moments = {key: _over_levels([self._found[level][key] for level in levels], row) for key in keys}
            sigmas = torch.tensor(levels, dtype=torch.float64)
            picture = RecordedPicture(label, subject, made_by, noise, sigmas, moments)
            if differs := difference(picture, series.folder):
                notices.say(
                    f"This run was not recorded, as the series {quoted(series.folder.name)} holds pictures made with "
                    f"{differs}: record it under a name of its own, or delete the series."
                )
                return
            try:
                append(picture, series.folder)
            except OSError as problem:  # the pictures themselves are painted, and not lost for it
                notices.say(f"This run was not recorded: {problem}")
                return
        with _lock:
            _written.add(series.folder)
        logging.info(f"Record Sensitivity added {len(named)} pictures to '{series.folder.name}'.")


def _over_levels(levels: Sequence[Moments], row: int) -> Moments:
    """One picture's moments [T, channels]."""
    return Moments(*(torch.stack([moments[part][row] for moments in levels]) for part in (0, 1)))


def _of_pictures(found: dict[Key, Moments], rows: int) -> dict[Key, Moments]:
    """Without hidden references, which stand behind the pictures of a chunk; on the CPU."""
    return {key: Moments(*(part[:rows].float().cpu() for part in moments)) for key, moments in found.items()}
