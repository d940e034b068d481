"""What a node costs while it paints, counted in operators: nothing where it is closed, and nothing again that is known.

No times: a GPU is kept waiting by many small operators and by numbers that are read from it, and those can be counted.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from comfy.model_sampling import ModelSamplingDiscrete
from style_case import HEIGHT, WIDTH, gate, hidden, model, run, styled, tiny_controlnet, with_control
from test_gate_adapter import adapted
from test_recording import recorded
from test_transformer_style import hidden as hidden_of
from test_transformers import run as run_transformer
from tiny_transformers import cond as cond_of
from tiny_transformers import latent as latent_of
from tiny_transformers import tiny_transformer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conditional_balance.engine.gates import LayerGate, windowed
from conditional_balance.engine.structure import PaperSchedule
from conditional_balance.engine.style import StyleSettings
from conditional_balance.runtime.arch.registry import architecture_of
from conditional_balance.runtime.arch.transformer import Transformer
from conditional_balance.runtime.inject.adapter import gate_adapter
from conditional_balance.runtime.inject.contrast import LayerContrast, contrast_layers
from conditional_balance.runtime.inject.control import gate_control
from conditional_balance.runtime.inject.layer_prompt import LayerPrompt, prompt_layers
from conditional_balance.runtime.inject.metadata import Change, Metadata, schedule_metadata
from conditional_balance.runtime.inject.noise_blend import NoiseBlend, blend_prompts
from conditional_balance.runtime.inject.projection import Projection, project
from conditional_balance.runtime.inject.style import StyleInjection, inject_style
from tiny import cond, latent

STEPS = 4
UNETS, TRANSFORMERS = ("sd15", "sdxl"), ("flux", "sd35-medium", "qwen", "wan")
OURS = [Path(__file__).resolve().parent.parent.parent / folder for folder in ("engine", "runtime")]
RESIZING = ("adaptive_avg_pool2d", "upsample", "interpolate", "avg_pool2d")


class Operators(TorchDispatchMode):
    """The names of all operators inside the block, in order: of every call of some modules, and of all else."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self.modules, self.inside, self.others = modules, list[list[str]](), list[str]()
        self.of: dict[str, list[list[str]]] = {name: [] for name in modules}

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        for names in self.inside or [self.others]:
            names.append(function.name())
        return function(*args, **(kwargs or {}))

    def begin(self, name: str) -> None:
        self.of[name].append([])
        self.inside.append(self.of[name][-1])

    @property
    def all(self) -> Counter[str]:
        return Counter(self.others) + Counter(name for calls in self.of.values() for call in calls for name in call)


@contextmanager
def counted(of: Any, kind: type[Operators] = Operators, **modules: nn.Module) -> Iterator[Operators]:
    modules = modules or {"network": of.model.diffusion_model}
    operators, handles = kind(modules), []
    for name, module in modules.items():
        handles += [
            module.register_forward_pre_hook(lambda *given, name=name: operators.begin(name)),
            module.register_forward_hook(lambda *given: operators.inside.pop() and None),
        ]
    try:
        with operators:
            yield operators
    finally:
        for handle in handles:
            handle.remove()


@cache
def unet(kind: str) -> Any:
    return model(kind)


def early(text: str = "all", end: float = 0.3) -> LayerGate:
    return windowed(gate(text), 0.0, end)


def mask(height: int = 24, width: int = 20) -> torch.Tensor:
    """The left half, of a size that no layer has."""
    return (torch.arange(width) < width // 2).float().expand(height, width)


def guided(of: Any, reference: Any) -> Any:
    return contrast_layers(of, LayerContrast(StyleInjection(early("o"), reference, StyleSettings()), 1.5))


ON_UNETS: dict[str, Callable[[Any], Any]] = {
    "style of the first picture": lambda of: styled(of, early(), share=0.5),
    "style of a picture": lambda of: styled(of, early(), hidden(of)),
    "style of a picture that rides along": lambda of: inject_style(
        of, StyleInjection(early(), hidden(of), StyleSettings(), remember=False)
    ),
    "style of a picture for a while": lambda of: styled(of, "all", replace(hidden(of), end=0.3)),
    "style of two pictures": lambda of: styled(of, early(), replace(hidden(of), mask=mask(), previous=hidden(of, 6))),
    "style as guidance": lambda of: guided(of, hidden(of)),
    "another prompt": lambda of: prompt_layers(of, LayerPrompt(early(), cond(of, 3)[0][0])),
    "two prompts": lambda of: blend_prompts(of, NoiseBlend(cond(of, 3), mask(), end=0.3)),
    "a layout kept": lambda of: project(of, Projection(latent(7)["samples"], 3, end=0.3)),
    "a series recorded": lambda of: recorded(of, noise_levels=2),
}


@pytest.mark.parametrize("what", ON_UNETS)
@pytest.mark.parametrize("kind", UNETS)
def test_a_closed_window_runs_the_plain_models_operators(kind: str, what: str, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    of = unet(kind)
    run(of, batch=2, steps=STEPS)
    with counted(of) as plain:
        run(of, batch=2, steps=STEPS)
    with counted(of) as ours:
        run(ON_UNETS[what](of), batch=2, steps=STEPS)
    expected, calls = plain.of["network"], ours.of["network"]
    closed = slice(1, 3) if what == "a series recorded" else slice(-2, None)
    assert len(expected) == STEPS and calls[closed] == expected[closed]
    assert what == "a layout kept" or len(calls) > STEPS or calls[0] != expected[0]


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_so_it_does_on_transformers(kind: str) -> None:
    of = tiny_transformer(kind)
    both = replace(hidden_of(kind), mask=mask(), previous=hidden_of(kind))
    with counted(of) as plain:
        run_transformer(of, kind, steps=STEPS)
    for reference in ({}, {"reference": hidden_of(kind)}, {"reference": both}):
        injected = inject_style(of, StyleInjection(early(), **reference))
        with counted(of) as ours:
            run_transformer(injected, kind, steps=STEPS)
        calls = ours.of["network"]
        assert calls[-2:] == plain.of["network"][-2:] and calls[0] != plain.of["network"][0]
    blended = blend_prompts(of, NoiseBlend(cond_of(kind, 3), mask(), end=0.3))
    kept = project(of, Projection(latent_of(kind, 7)["samples"], 3))
    for each in (blended, kept):
        with counted(of) as ours:
            run_transformer(each, kind, steps=STEPS)
        assert ours.of["network"][-2:] == plain.of["network"][-2:]


def layers_of(of: Any) -> dict[str, nn.Module]:
    """The modules in which attention layers stand."""
    family = architecture_of(of)
    if isinstance(family, Transformer):
        return {" ".join(map(str, layers)): owner for owner, layers in family.owners.items()}
    return {str(layer): block for layer, block in family.blocks.items()}  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [*UNETS, *TRANSFORMERS])
def test_layers_that_are_not_selected_run_the_plain_operators(kind: str) -> None:
    transformer = kind in TRANSFORMERS
    of = tiny_transformer(kind) if transformer else unet(kind)
    modules = layers_of(of)
    *_, last = modules
    reference = hidden_of(kind) if transformer else hidden(of)
    paint: Any = (lambda each: run_transformer(each, kind, steps=2)) if transformer else (lambda each: run(each))
    with counted(of, **modules) as plain:
        paint(of)
    for given in ({}, {"reference": reference, "remember": False}, {"reference": replace(reference, mask=mask())}):
        injected = inject_style(of, StyleInjection(gate(last.replace(" ", ", ")), **given))
        with counted(of, **modules) as ours:
            paint(injected)
        assert ours.of[last] != plain.of[last]
        for name in modules:
            assert name == last or _kernels(ours.of[name]) == _kernels(plain.of[name])


def _kernels(calls: list[list[str]]) -> list[list[str]]:
    """Without the view of its rotation by which a family tells where tokens stand."""
    return [[name for name in call if name != "aten::movedim.int"] for call in calls]


def test_an_adapter_at_0_is_not_computed_and_one_at_1_alone() -> None:
    of = unet("sd15")
    with_adapter = adapted(of)
    for text, expected in (("-all", of), ("all", with_adapter)):
        with counted(of) as plain:
            run(expected)
        with counted(of) as ours:
            run(gate_adapter(with_adapter, gate(text))[0])
        assert ours.of == plain.of


def test_a_closed_controlnet_is_not_computed() -> None:
    of = unet("sd15")
    with counted(of) as plain:
        run(of)
    closed, _ = gate_control(tiny_controlnet("sd15"), PaperSchedule(0.0, 0.0))
    positive, negative = with_control(closed, cond(of, 1), cond(of, 2))
    with counted(of) as ours:
        run(of, positive=positive, negative=negative)
    assert ours.of == plain.of
    assert not any("convolution" in name for name in ours.others)


def resizings(of: Any, make: Callable[[], Any], steps: int) -> int:
    injected = make()
    with counted(of) as operators:
        run(injected, steps=steps)
    return sum(count for name, count in operators.all.items() if any(part in name for part in RESIZING))


@pytest.mark.parametrize("what", ["two pictures, one without its subject", "two prompts", "a layout kept"])
def test_a_mask_is_resized_once_a_run(what: str) -> None:
    of = unet("sd15")
    subject = replace(hidden(of), mask=mask(), subject_mask=mask(HEIGHT, WIDTH), previous=hidden(of, 6))
    make = {
        "two pictures, one without its subject": lambda: styled(of, reference=subject),
        "two prompts": lambda: blend_prompts(of, NoiseBlend(cond(of, 3), mask())),
        "a layout kept": lambda: project(of, Projection(latent(7, height=20)["samples"], 3)),
    }[what]
    a_step = resizings(of, lambda: of, 3) - resizings(of, lambda: of, 2)  # the model's own
    calls = 2 if what == "two prompts" else 1
    own = 2 if what == "a layout kept" else 0  # the known part of the picture is a mean of every prediction
    first, more = resizings(of, make, 2), resizings(of, make, 5)
    assert first > 2 * calls * a_step and more - first == 3 * (calls * a_step + own * 1.5)


@pytest.mark.parametrize("what", ["style of the first picture", "another prompt", "sizes"])
def test_a_run_asks_the_schedule_for_few_noise_levels(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule lies on the GPU with the model, and every answer is waited for."""
    of, asked, ask = unet("sdxl"), list[float](), ModelSamplingDiscrete.percent_to_sigma

    def noted(self: Any, percent: float) -> float:
        asked.append(percent)
        return ask(self, percent)

    injected = {
        "style of the first picture": lambda: styled(of),
        "another prompt": lambda: prompt_layers(of, LayerPrompt(gate("o"), cond(of, 3)[0][0])),
        "sizes": lambda: schedule_metadata(of, Metadata(original=Change(2.0, 1.0))),
    }[what]()
    monkeypatch.setattr(ModelSamplingDiscrete, "percent_to_sigma", noted)
    run(injected, batch=2, steps=20)
    assert len(asked) < (8 * 20 if what == "sizes" else 40)  # where each step is, or where the run ends


class Written(Operators):
    """Of operators that this pack itself calls, those that make a tensor or write into one: a kernel each, or more."""

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = function(*args, **(kwargs or {}))
        given = {_memory(each) for each in tree_leaves((args, kwargs or {})) if isinstance(each, torch.Tensor)}
        made = any(isinstance(each, torch.Tensor) and _memory(each) not in given for each in tree_leaves(out))
        if self.inside and (made or function.name().endswith("_")) and any(map(_caller().is_relative_to, OURS)):
            self.inside[-1].append(function.name())
        return out


def _memory(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _caller() -> Path:
    """The file that has called the operator which is being dispatched."""
    frame = sys._getframe(1)
    between = {"torch", "einops", Path(__file__).name}
    while frame.f_back is not None and between & set(Path(frame.f_code.co_filename).parts):
        frame = frame.f_back
    return Path(frame.f_code.co_filename)


MOST = {"sd15": (17, 16, 95), "flux": (30, 30, 118), "wan": (30, 30, 122)}
"""Kernels of ours in a styled layer: by the first picture, by a remembered one, by two of which one has a mask."""


@pytest.mark.parametrize("kind", MOST)
def test_a_styled_layer_takes_few_kernels(kind: str) -> None:
    transformer = kind in TRANSFORMERS
    of = tiny_transformer(kind) if transformer else unet(kind)
    paint: Any = (lambda each: run_transformer(each, kind, steps=2)) if transformer else (lambda each: run(each))
    reference = hidden_of(kind) if transformer else hidden(of)
    several = replace(reference, mask=mask(), previous=reference)
    layers = 2 * len(architecture_of(of).layers)
    paint(inject_style(of, StyleInjection(gate("all"), reference)))  # keeps it
    for given, most in zip(({}, {"reference": reference}, {"reference": several}), MOST[kind], strict=True):
        injected = inject_style(of, StyleInjection(gate("all"), **given))
        with counted(of, Written) as operators:
            paint(injected)
        assert 0 < sum(map(len, operators.of["network"])) / layers <= most
