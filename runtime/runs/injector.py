"""The life of a condition in a sampler run, written once: opened by noise level, around model calls, accounted for.

inject(model, injector)     a clone of the model; nothing else changes until a sampler runs
  Injector.start(sampling)  a Run for this run of the sampler, or None: then nothing is touched
    Run.sample(sampler)     the sampler, as a whole or in parts between which the condition changes the latent
    Run.at(sigma)           what wraps the model calls at a noise level, or None: they pass through
    Run.finish(samples)     the run's result, and a word on what was asked for and did not happen
"""

from __future__ import annotations

import copy
import functools
import itertools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.samplers import CFGGuider
from torch import nn

from ...engine.gates import inside
from ...engine.layers import LayerId
from ...engine.windows import percent_of, rises
from ..arch.base import uncompiled
from ..arch.registry import family_of
from ..arch.shadows import foreign, shadow
from .caches import FUNCTION, around_calls, caches_in, caches_on, put_on, unavoidable
from .keys import schedule_of
from .layout import Layout, layout_of
from .model_call import KEY, ModelCall, with_wrapper
from .model_patches import patched_control
from .notices import Notices, fresh_node
from .sampler_run import SamplerRun
from .samplers import between, stays_on_schedule

Executor = Callable[..., torch.Tensor]
Around = Callable[[Executor, ModelCall, Layout], torch.Tensor]
"""Runs one model call (`call.run(executor)`) with what a condition changes in it; returns the rows it was given."""


PROBED = 100
"""Places of a schedule at which it is asked whether a condition would act there."""
NOWHERE = -1
"""Among the conditionings of a call that runs no positive prompt, such as self-attention guidance's of the negative."""


@dataclass(frozen=True)
class Sampling:
    """One run of a sampler: its guider, its noise levels [T + 1] and its noise [B, C, ..., H, W].

    Where another node runs it in parts, `sigmas` are those of the whole, and `part` is this one's.
    """

    guider: CFGGuider
    sigmas: torch.Tensor
    part: torch.Tensor
    noise: torch.Tensor
    notices: Notices
    sampler: Any

    @property
    def model(self) -> BaseModel:
        return self.guider.inner_model

    @property
    def pictures(self) -> int:
        return self.noise.shape[0]

    @functools.cached_property
    def to_sigma(self) -> Callable[[float], float]:
        """Percent of the schedule to sigma, as this run's sampling converts it."""
        return functools.cache(self.model.model_sampling.percent_to_sigma)

    @functools.cached_property
    def levels(self) -> tuple[float, ...]:
        """The noise levels at which the model may be called: where steps begin, and inside of them if it can be."""
        levels = self.sigmas.tolist()
        inside = () if stays_on_schedule(self.sampler) else between(levels)
        return (*(levels[:-1] or levels), *inside)

    @property
    def whole_schedule(self) -> Iterator[float]:
        """Noise levels from the beginning of the model's schedule to its end, wherever the run begins and stops."""
        return map(self._probed, range(PROBED))

    def below(self, sigma: float) -> Iterator[float]:
        """Those of `whole_schedule` below a noise level, from its end: a GPU may have to answer for each of them."""
        return itertools.takewhile(lambda level: level < sigma, map(self._probed, reversed(range(PROBED))))

    def _probed(self, number: int) -> float:
        return self.to_sigma((number + 0.5) / PROBED)

    @property
    def steps(self) -> str:
        """Where the run's steps begin, in words."""
        start, end = (f"{percent_of(level, self.to_sigma):g}" for level in self.sigmas[[0, -2]].tolist())
        return f"{start} to {end} of the schedule"

    @property
    def is_stage(self) -> bool:
        """Whether the run is one of several that share a schedule, takes no step or adds noise."""
        levels = self.sigmas
        return len(levels) < 2 or float(levels[-1]) > 0 or rises(levels) or not bool(self.noise.any())

    @functools.cached_property
    def network(self) -> nn.Module:
        return uncompiled(self.model.diffusion_model)

    @functools.cached_property
    def caches(self) -> tuple[str, ...]:
        """Whose caches answer some of the run's calls in the layers' place."""
        return tuple(dict.fromkeys((*caches_in(self.guider.model_options), *caches_on(self.network))))

    @functools.cached_property
    def repeated(self) -> str:
        """Why layers did not run in some calls, in the words that end a sentence; names all that may be a cache."""
        what = "repeated there what an earlier call had made"
        if self.caches:
            return f", because {_either(self.caches)} {what}: lower its threshold if too little happens."
        who = _either(around_calls(self.guider.model_options)) or "another pack's code"
        return f": it seems that {who} {what}. Bypass it if too little happens."

    @functools.cached_property
    def undisturbed(self) -> bool:
        """Whether nobody goes round the network's calls, or has put a function on it, of which options tell nothing."""
        return FUNCTION not in self.guider.model_options and not put_on(self.network)

    def asks_beside(self) -> None:
        """Say which caches take what a condition asks of the model beside the sampler for the sampler's steps."""
        for sentence in unavoidable(self.network):
            self.notices.say(sentence)

    @functools.cached_property
    def controlled(self) -> bool:
        """Whether a ControlNet acts on any prompt of the run, or by patches of the model."""
        prompted = any("control" in prompt for prompts in self.guider.conds.values() for prompt in prompts)
        return prompted or patched_control(self.guider.model_options.get("transformer_options", {}))

    def shadow(self, layer: LayerId) -> str | None:
        """Whose code stands in the place of a layer, as `arch.shadows` finds it."""
        family = family_of(self.network)
        options = self.guider.model_options.get("transformer_options", {})
        return foreign(self.model.diffusion_model) if family is None else shadow(family, layer, options)

    def positive(self, conds: list[Any]) -> int:
        """Where the run's positive prompts stand among the conditionings of a call.

        Where they are not, prompts that are none of the guider's own count as positive; NOWHERE if there are none.
        """
        own = {name: prompts for name, prompts in self.guider.conds.items() if not name.startswith(KEY)}
        positive = own.pop("positive", None)
        if positive is None:  # a guider with other names
            return 0
        others = [place for place, cond in enumerate(conds) if cond and not any(cond is each for each in own.values())]
        return next((place for place in others if conds[place] is positive), others[0] if others else NOWHERE)


class Run:
    """A condition during one run of a sampler. Most say in `at` what they change in model calls, and no more."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.asked = self.unheard = 0
        self.reached: set[float] = set()

    def sample(self, sampler: SamplerRun) -> torch.Tensor:
        """The run's result: of the sampler as a whole, unless a condition changes the latent between its steps."""
        return self.finish(sampler.sample())

    def at(self, sigma: float, positive: int) -> Around | None:
        """What wraps the model calls at a noise level; None where the condition does not act.

        `positive` is the place of the positive prompts among the call's conditionings, or NOWHERE.
        """
        return None

    def opens(self, sigma: float) -> bool:
        """Whether the condition's own window holds a noise level; True where it has none, or tells by itself."""
        return True

    @property
    def windows(self) -> Iterable[tuple[float, float]]:
        """The windows of percent of the condition's parts, which `opens` looks at together."""
        return ()

    def around_conds(
        self,
        hidden: int,
        executor: Callable[..., Any],
        model: BaseModel,
        conds: list[Any],
        x: torch.Tensor,
        sigma: torch.Tensor,
        model_options: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """CALC_COND_BATCH: where the condition does not act, the call goes on as if it were not there."""
        notices = self.sampling.notices
        level = float(sigma[0])
        self.reached.add(level)
        with notices.own_errors():
            around = self.at(level, self.sampling.positive(conds))
        if around is None:
            return executor(model, conds, x, sigma, model_options, *args, **kwargs)
        calls: list[None] = []
        around_call = functools.partial(_around_call, around, x, notices, calls)
        options = with_wrapper(model_options, WrappersMP.APPLY_MODEL, around_call)
        counting = counting_hidden_rows(model, hidden, x.shape[0]) if hidden else model
        out = executor(counting, conds, x, sigma, options, *args, **kwargs)
        self.asked, self.unheard = self.asked + 1, self.unheard + (not calls)
        return out

    def report_window(self) -> None:
        """Say that a whole run took no step in the condition's window, as at a low denoise, or in that of a part of it.

        So is a window that ends before the schedule does and yet leaves no step out, as with few steps. Stages of one
        schedule may each have conditions of their own, so that nothing is said of those.
        """
        if self.sampling.is_stage or not self.reached or not any(map(self.opens, self.sampling.whole_schedule)):
            return
        for sentence in self._about_windows():
            self.sampling.notices.say(sentence)

    def _about_windows(self) -> Iterator[str]:
        sampling, reached = self.sampling, self.reached
        if not any(map(self.opens, reached)):
            yield (
                f"Nothing was done in this run, whose steps begin at {sampling.steps}, outside of this "
                "node's window: raise 'denoise' or the number of steps, or move 'start_percent' and 'end_percent'."
            )
            return
        for first, last in dict.fromkeys(self.windows):
            if not any(inside(level, first, last, sampling.to_sigma) for level in reached):
                yield (
                    f"Nothing was done in the window from {first:g} to {last:g}, as the steps of this run begin at "
                    f"{sampling.steps}: take more steps, or move it."
                )
        if all(map(self.opens, reached)) and not all(map(self.opens, sampling.below(min(reached)))):
            end = f"{percent_of(float(sampling.sigmas[-2]), sampling.to_sigma):g}"
            yield (
                f"The window of this node leaves no step of this run out, as the last one begins at {end} of the "
                "schedule: end it before that, or take more steps."
            )

    def report(self) -> None:
        """Say in how many predictions the model did not run at all, whoever answered in its place."""
        if self.unheard:
            sampling, where = self.sampling, f"{self.unheard} of {self.asked} predictions in which this node acts"
            sampling.notices.say(f"The model did not run in {where}{sampling.repeated}")

    def finish(self, samples: torch.Tensor) -> torch.Tensor:
        """The samples [B, C, ..., H, W] that the sampler returned, and the time to say what did not happen."""
        return samples


class Injector(ABC):
    """A condition that acts while a sampler runs. Immutable: branches of a graph may share one."""

    name: ClassVar[str]
    """What its node is called, for the log."""

    @property
    def hidden_rows(self) -> int:
        """Rows that it adds to every chunk of every call; ComfyUI counts their memory."""
        return 0

    @abstractmethod
    def start(self, sampling: Sampling) -> Run | None:
        """The condition in a run that begins; None when it will not act in it."""


Kind = TypeVar("Kind", bound=Injector)


def inject(model: ModelPatcher, injector: Injector) -> ModelPatcher:
    """A clone of the model under a condition; the model itself is untouched, and nothing outlives a run."""
    patched = model.clone()
    around = functools.partial(_around_run, injector, fresh_node())
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, around)
    counting_memory(patched, injector.hidden_rows)
    return patched


def injectors_of(model: ModelPatcher, kind: type[Kind]) -> list[Kind]:
    """The conditions of one kind that a model already has, in the order in which they came."""
    arounds = model.get_wrappers(WrappersMP.SAMPLER_SAMPLE, KEY)
    return [around.args[0] for around in arounds if isinstance(around.args[0], kind)]


def counting_memory(patched: ModelPatcher, hidden: int) -> None:
    """Let the memory that ComfyUI frees before a run count rows that every chunk of a call has more."""
    if hidden:
        patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, functools.partial(_around_preparation, hidden))


def _around_preparation(
    hidden: int,
    executor: Callable[..., Any],
    model: ModelPatcher,
    noise_shape: Sequence[int],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """PREPARE_SAMPLING: the memory freed before a run counts the hidden rows."""
    return executor(model, [noise_shape[0] + hidden, *noise_shape[1:]], *args, **kwargs)


def _around_run(injector: Injector, node: str | None, executor: Executor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """SAMPLER_SAMPLE: everything a run needs lives from here to its end, in the run's own copy of model_options."""
    sampler = SamplerRun.of(executor, *args, **kwargs)
    schedule = schedule_of(sampler.options.get("transformer_options", {}))
    notices = Notices(injector.name, node)
    with notices.own_errors():
        run = injector.start(
            Sampling(sampler.guider, schedule, sampler.sigmas, sampler.noise, notices, executor.class_obj)
        )
    if run is None:
        return sampler.sample()
    around = functools.partial(run.around_conds, injector.hidden_rows)
    out = run.sample(sampler.wrapped(WrappersMP.CALC_COND_BATCH, around))
    run.report()
    run.report_window()
    return out


def _around_call(
    around: Around,
    pictures: torch.Tensor,
    notices: Notices,
    calls: list[None],
    executor: Executor,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """APPLY_MODEL: one call, with its rows told apart; `calls` counts it."""
    calls.append(None)
    call = replace(ModelCall.of(*args, **kwargs), pictures=pictures)
    with notices.own_errors():
        return around(executor, call, layout_of(call.options, call.x, call.c_crossattn, pictures))


def counting_hidden_rows(model: BaseModel, hidden: int, rows: int) -> BaseModel:
    """A view of the model whose memory estimate counts `hidden` more rows for every `rows`.

    ComfyUI asks this estimate how many conditionings fit into one call. The view shares all weights and modules, and
    the model itself is untouched.
    """
    view = copy.copy(model)

    def memory_required(input_shape: list[int], *args: Any, **kwargs: Any) -> float:
        more = hidden * (input_shape[0] // rows)
        return model.memory_required([input_shape[0] + more, *input_shape[1:]], *args, **kwargs)

    view.memory_required = memory_required
    return view


class CalledLayers:
    """Which layers were open in a run, which of them were called, and what some could not do: named at its end."""

    def __init__(self, layers: Sequence[LayerId]) -> None:
        self.layers, self.opened, self.called = tuple(layers), set[LayerId](), set[LayerId]()
        self.left_out: dict[str, set[LayerId]] = {}
        self.calls = self.answered = 0
        self.of_thread = threading.local()  # where several cards share a run, newer ComfyUI makes calls at once
        self.lock = threading.Lock()

    @contextmanager
    def during_call(self, opened: Collection[LayerId], sampling: Sampling) -> Iterator[None]:
        """A call in which these layers are open: one that a cache answers in their place is noted."""
        before, called = self._of_call, set[LayerId]()
        self.of_thread.called = called
        try:
            yield
        finally:
            self.of_thread.called = before
            before |= called
            ran = called.issuperset(opened) if sampling.caches else bool(called)  # or some are left out
            with self.lock:
                self.calls += bool(opened)
                self.answered += bool(opened) and not ran

    @property
    def _of_call(self) -> set[LayerId]:
        """The layers of the call that this thread makes; outside of any, those of the run."""
        return getattr(self.of_thread, "called", self.called)

    def call(self, layer: LayerId) -> None:
        """Note that an open layer runs."""
        self._of_call.add(layer)

    def leave_out(self, layer: LayerId, why: str) -> None:
        """Note what a layer could not do: the end of the run names all layers of which that is true."""
        self.left_out.setdefault(why, set()).add(layer)

    def report(self, sampling: Sampling) -> None:
        notices = sampling.notices
        for why, layers in self.left_out.items():
            notices.say(f"{', '.join(str(layer) for layer in self.layers if layer in layers)} {why}.")
        silent: dict[str | None, list[str]] = {}
        for layer in self.layers:
            if layer in self.opened - self.called:
                silent.setdefault(sampling.shadow(layer) or _either(sampling.caches), []).append(str(layer))
        for who, names in silent.items():
            was, it = ("was", "it") if len(names) == 1 else ("were", "them")
            reason = f"so another patch must have replaced or skipped {it}"
            reason = f"because {who} stands in the way" if who else reason
            notices.say(f"{', '.join(names)} {was} selected but never ran, {reason}.")
        if self.answered and not silent:
            notices.say(f"Open layers did not run in {self.answered} of {self.calls} calls{sampling.repeated}")


def _either(names: Sequence[str]) -> str | None:
    return " or ".join(names) or None
