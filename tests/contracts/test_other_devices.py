"""On a device that is not the CPU, and lacks what Apple's lacks: the same results, and layers that wait for nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import comfy.model_management
import pytest
import torch
from gradsam_case import blended
from gradsam_case import run as run_with_subject
from lesser_device import DEVICE, lesser_device, waits
from style_case import HEIGHT, WIDTH, assert_close, free_memory, gate, hidden, run, styled
from test_gate_adapter import adapted
from test_transformer_style import hidden as hidden_of_family
from test_transformer_style import styled as styled_family
from test_transformers import run as run_family
from tiny_transformers import tiny_transformer

from conditional_balance.engine.style import UNTWIST, StyleSettings
from conditional_balance.nodes.before_after import CBBeforeAfter
from conditional_balance.runtime.inject.adapter import gate_adapter
from conditional_balance.runtime.inject.contrast import LayerContrast, contrast_layers
from conditional_balance.runtime.inject.inversion import Inversion, invert_latent
from conditional_balance.runtime.inject.layer_prompt import LayerPrompt, prompt_layers
from conditional_balance.runtime.inject.noise_blend import NoiseBlend, blend_prompts
from conditional_balance.runtime.inject.projection import Projection, project
from conditional_balance.runtime.inject.reference import StyleReference
from conditional_balance.runtime.inject.style import StyleInjection
from conditional_balance.runtime.profile.capture import capture, measure
from tiny import cond, latent, tiny_model


@contextmanager
def computing(memory: str = "SHARED") -> Iterator[None]:
    """ComfyUI on `DEVICE`, as on an Apple computer; with NO_VRAM every layer's weights come over when it runs."""
    comfy.model_management.unload_all_models()
    states = comfy.model_management.VRAMState
    with pytest.MonkeyPatch.context() as patch, lesser_device():
        patch.setattr(comfy.model_management, "cpu_state", comfy.model_management.CPUState.MPS)
        patch.setattr(comfy.model_management, "vram_state", getattr(states, memory))
        patch.setattr(torch.mps, "empty_cache", lambda: None)
        yield
        with torch.inference_mode():
            comfy.model_management.unload_all_models()


def on_device(of: Any) -> Any:
    of.load_device = DEVICE
    return of


def picture(seed: int = 5) -> torch.Tensor:
    return latent(seed, height=HEIGHT, width=WIDTH)["samples"]


def half(height: int = 24, width: int = 20) -> torch.Tensor:
    """A mask of the left side, of a size that no layer has."""
    return (torch.arange(width) < width // 2).float().expand(height, width)


def masked(of: Any) -> StyleReference:
    """Two references, one of them in a part of the picture and without its own subject."""
    return replace(hidden(of), mask=half(), subject_mask=half(HEIGHT, WIDTH), previous=hidden(of, 6, tokens=154))


def measured(of: Any) -> torch.Tensor:
    found: list[torch.Tensor] = []
    latents, sigmas = latent(3, batch=5)["samples"], torch.tensor([2.0])
    with torch.inference_mode():
        measure(
            of, latents, cond(of, 1), cond(of, 2), sigmas, ("q", "k"), "jensen_shannon", 0, lambda count: None,
            lambda level, distances, *places: found.append(distances),
        )  # fmt: skip
    return torch.stack(found)


def inverted(of: Any) -> torch.Tensor:
    with torch.inference_mode():
        found = invert_latent(of, picture(), cond(of, 1), Inversion(steps=3, refinements=0))
    assert found.error > 60
    return found.noise


def prompted(of: Any) -> torch.Tensor:
    return run(prompt_layers(of, LayerPrompt(gate("o, m:0.5"), cond(of, 3)[0][0])))


def guided(of: Any) -> torch.Tensor:
    return run(contrast_layers(of, LayerContrast(StyleInjection(gate("o"), masked(of), StyleSettings()), 1.5, 0.5)))


def found(of: Any, **settings: Any) -> torch.Tensor:
    return run_with_subject(blended(of, windows="0.2-0.9", left_out=half()[None], **settings)[0], steps=3)


TASKS: dict[str, Callable[[Any], torch.Tensor]] = {
    "style of the first picture": lambda of: run(styled(of, adain_v=True, share=0.5)),
    "style of a picture": lambda of: run(styled(of, reference=hidden(of))),
    "style of two pictures": lambda of: run(styled(of, reference=masked(of))),
    "guidance": guided,
    "another prompt": prompted,
    "two prompts": lambda of: run(blend_prompts(of, NoiseBlend(cond(of, 3), half(), stays=True))),
    "a layout kept": lambda of: run(project(of, Projection(latent(7)["samples"], 3))),
    "a subject kept": lambda of: found(of, method="value_norm", propagation=2),
    "a subject kept, by jvp": lambda of: found(of, method="jvp", mode="paper"),
    "a picture inverted": inverted,
    "layers measured": measured,
}


OFFLOADED = ("style of two pictures", "another prompt", "a subject kept", "layers measured")


@pytest.mark.parametrize(
    ("name", "memory"), [*((name, "SHARED") for name in TASKS), *((name, "NO_VRAM") for name in OFFLOADED)]
)
def test_unets_do_the_same_there(name: str, memory: str) -> None:
    expected = TASKS[name](tiny_model("sd15"))
    with computing(memory):
        assert_close(TASKS[name](on_device(tiny_model("sd15"))), expected, 1e-3)


def unfamiliar(kind: str) -> StyleReference:
    """Two references whose prompts are of other lengths than the run's, so that padding is left out."""
    return replace(hidden_of_family(kind, 17), mask=half(), previous=hidden_of_family(kind, 9))


@pytest.mark.parametrize("memory", ["SHARED", "NO_VRAM"])
@pytest.mark.parametrize("kind", ["flux", "sd35-medium", "z-image"])
def test_transformers_do_the_same_there(kind: str, memory: str) -> None:
    def task(of: Any) -> torch.Tensor:
        return run_family(styled_family(of, reference=unfamiliar(kind), position=UNTWIST), kind)

    make = tiny_transformer.__wrapped__  # a model of its own
    expected = task(make(kind))
    with computing(memory):
        assert_close(task(on_device(make(kind))), expected, 1e-3)


def test_pictures_that_stay_there_are_shown() -> None:
    """As --gpu-only leaves them."""
    pictures = torch.rand(2, 70, 90, 3, generator=torch.Generator().manual_seed(0))
    pictures = torch.nn.functional.interpolate(pictures.movedim(-1, 1), scale_factor=10).movedim(1, -1)
    expected = CBBeforeAfter.execute(pictures, pictures[:, :500]).args[0]
    with computing():
        there = pictures.to(DEVICE)
        assert_close(CBBeforeAfter.execute(there, there[:, :500]).args[0].cpu(), expected)


@contextmanager
def counted(of: Any) -> Iterator[list[int]]:
    """How often each call of the network has made the processor wait."""
    network, found = of.model.diffusion_model, []
    handles = [
        network.register_forward_pre_hook(lambda *given: found.append(-len(waits))),
        network.register_forward_hook(lambda *given: found.append(found.pop() + len(waits))),
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def test_no_layer_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of a network waits as often as without us, but for the first, where what is kept for later comes over.

    As on CUDA, a copy to the device need not be waited for where ComfyUI says so.
    """
    monkeypatch.setattr(comfy.model_management, "device_supports_non_blocking", lambda device: True)
    with computing():
        unet, flux = on_device(tiny_model("sd15")), on_device(tiny_transformer.__wrapped__("flux"))
        alone = replace(hidden(unet), subject_mask=half(HEIGHT, WIDTH))
        styled_flux = styled_family(flux, reference=unfamiliar("flux"), position=UNTWIST)
        of_unet = (
            lambda: run(styled(unet, reference=masked(unet))),
            lambda: run(styled(unet, reference=alone)),
            lambda: prompted(unet),
            lambda: guided(unet),
            lambda: run(styled(unet, share=0.5)),
        )
        of_adapted = (lambda: run(gate_adapter(adapted(unet), gate("o:0.5"))[0]),)
        of_flux = (lambda: run_family(styled_flux, "flux"),)
        for of, plain, each in (
            (unet, run, of_unet),
            (unet, lambda of: run(adapted(of)), of_adapted),
            (flux, lambda of: run_family(of, "flux"), of_flux),
        ):
            plain(of)  # loads it
            with counted(of) as expected:
                plain(of)
            for ours in each:
                with counted(of) as calls:
                    ours()
                assert len(calls) >= len(expected) > 1 and max(calls[1:]) <= max(expected)


def test_moments_of_many_pictures_stay_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large series would fill a small card, in which ComfyUI has left room for the model's calls only."""
    places: list[set[torch.device]] = []
    with computing():
        of = on_device(tiny_model("sd15"))
        for free in (1e9, 0.0):
            free_memory(monkeypatch, free)
            with torch.inference_mode():
                capture(
                    of, latent(3, batch=3)["samples"], cond(of, 1), None, torch.tensor([2.0]), ("q",), 0,
                    lambda count: None, lambda _, found: places.append({each.mean.device for each in found.values()}),
                )  # fmt: skip
    assert places == [{DEVICE}, {torch.device("cpu")}]
