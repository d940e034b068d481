"""What finding a subject costs, in plain model calls and in the memory of a step: a part of `bench attribution`."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Demo
from conditional_balance.runtime.arch.registry import architecture_of
from conditional_balance.runtime.attribution.attribute import Result, attribute
from conditional_balance.runtime.attribution.layers import Layers, chosen_layers
from conditional_balance.runtime.attribution.methods.grad_sam import GradSAM
from conditional_balance.runtime.attribution.prediction import Prediction
from conditional_balance.runtime.attribution.propagation import Propagation
from conditional_balance.runtime.attribution.question import Question
from conditional_balance.runtime.attribution.settings import AttributionSettings
from conditional_balance.runtime.attribution.subject import Subject
from demo.autoencoder import CHANNELS
from demo.nets import CELLS

METHODS = ("attention", "value_norm", "jvp", "grad_sam", "grad_sam_output")
NODE = AttributionSettings("value_norm", propagation=2)  # the nodes' defaults
ROUNDS = 5
NAIVE = 64  # outputs of which the naive Jacobian is timed


def costs(demo: Demo, against: Subject) -> dict[str, Any]:
    """Time in conditional forwards and peak memory in plain guided steps, one picture; and the naive Jacobian's."""
    subject = replace(against, surroundings=())
    prompts = {"c_crossattn": subject.text[:1], "y": torch.zeros(1, demo.model.model.adm_channels)}
    x = torch.randn(1, CHANNELS, CELLS, CELLS, generator=torch.Generator().manual_seed(0))
    one = prediction_of(demo, x, prompts)
    two = prediction_of(demo, torch.cat((x, x)), {name: torch.cat((value, value)) for name, value in prompts.items()})
    work: dict[str, Callable[[], Any]] = {
        "forward": lambda: one.predict(one.options),
        "step": lambda: two.predict(two.options),
    }
    ways = {method: (subject, AttributionSettings(method)) for method in METHODS}
    ways["the nodes' defaults, against the place"] = against, NODE
    for name, (who, settings) in ways.items():
        layers = chosen_layers(demo.model, settings)
        work[name] = functools.partial(attributed, demo, x, prompts, one.base, who, layers, settings)
    seconds = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, do in work.items():
            seconds[name].append(timed(do))
    times = {name: statistics.median(values) for name, values in seconds.items()}
    weights = sum(p.numel() * p.element_size() for p in demo.model.model.diffusion_model.parameters())
    peaks = {name: peak(do) for name, do in work.items()}
    return {
        "forwards": {name: round(times[name] / times["forward"], 3) for name in ways},
        "memory against a guided step": {
            name: round((weights + peaks[name]) / (weights + peaks["step"]), 3) for name in ways
        },
        "the same without weights": {name: round(peaks[name] / peaks["step"], 3) for name in ways},
        "naive Jacobian": naive(demo, one, subject, times),
    }


def attributed(
    demo: Demo,
    x: Tensor,
    prompts: dict[str, Tensor],
    known: Tensor,
    subject: Subject,
    layers: Layers,
    settings: AttributionSettings,
) -> Result:
    """What one window of a run asks for besides the step that the sampler makes anyway."""
    return attribute(prediction_of(demo, x, prompts, known), subject, layers, settings)


def prediction_of(demo: Demo, x: Tensor, prompts: dict[str, Tensor], known: Tensor | None = None) -> Prediction:
    """The demo UNet at sigma 2, outside any sampler."""
    base = demo.model.model
    base.current_patcher = demo.model
    sigma = torch.full((len(x),), 2.0)
    options = {"cond_or_uncond": [0], "uuids": ["it"], "sigmas": sigma}

    def predict(options: dict[str, Any]) -> Tensor:
        return base.apply_model(2 * x, sigma, transformer_options=options, **prompts)

    tokens = prompts["c_crossattn"].shape[1]
    return Prediction(
        predict, options, known, 2 * x, sigma, {"it": tokens}, base.get_dtype(), architecture_of(demo.model)
    )


def naive(demo: Demo, prediction: Prediction, subject: Subject, times: dict[str, float]) -> dict[str, Any]:
    """One backward pass for every output element, as the official code does: timed on some, told for all."""
    settings = AttributionSettings("grad_sam")
    layers = chosen_layers(demo.model, settings)
    outputs = prediction.x.numel()
    unit = torch.eye(outputs)[:NAIVE].reshape(-1, *prediction.x.shape)
    question = Question(prediction, subject.phrases, layers, settings, Propagation(prediction, layers, 0))
    seconds = timed(lambda: GradSAM().over(question, unit))
    return {
        "backward passes": outputs,
        "timed": NAIVE,
        "times grad_sam's time": round(seconds * outputs / NAIVE / times["grad_sam"], 1),
    }


def timed(do: Callable[[], Any]) -> float:
    """Seconds of processor time, so that other work on the machine does not count; of the clock on an accelerator."""
    on_gpu = torch.cuda.is_available()
    clock = time.perf_counter if on_gpu else time.process_time
    start = clock()
    do()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start


def peak(do: Callable[[], Any]) -> int:
    """The most bytes that were allocated at once while it ran, beyond what was there before."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        do()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        do()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(changes.cumsum(0).amax())
