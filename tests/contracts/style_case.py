"""What the style contracts share: models, runs, and how the published operator is asked for the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from official_operator import Flags, official

from conditional_balance.engine.gates import LayerGate, WrittenGate
from conditional_balance.engine.grammar import parse
from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.style import StyleSettings
from conditional_balance.runtime.arch.unet import attention_layers
from conditional_balance.runtime.inject.reference import FIRST_ROW, StyleReference
from conditional_balance.runtime.inject.style import StyleInjection, inject_style
from tiny import cond, latent, sample, tiny_model

KINDS = ("sd15", "sdxl")
HEIGHT, WIDTH = 8, 16  # of latents: not square, and two tokens at the coarsest level

# fp32 against fp32: the two sides differ only in the order of sums. Seen: under 1e-5 of the result's spread, after up
# to seventeen layers and four steps; an operator that is wrong in any term is off by 1e-1 and more.
CLOSE = 1e-4


@cache
def model(kind: str) -> Any:
    return tiny_model(kind)


def empty(batch: int, height: int = HEIGHT, width: int = WIDTH) -> dict[str, torch.Tensor]:
    return {"samples": torch.zeros(batch, 4, height, width)}


def gate(text: str) -> LayerGate:
    return WrittenGate(parse(text))


def styled(of: Any, layers: str | LayerGate = "all", reference: StyleReference = FIRST_ROW, **settings: Any) -> Any:
    chosen = gate(layers) if isinstance(layers, str) else layers
    return inject_style(of, StyleInjection(chosen, reference, StyleSettings(**settings)))


def hidden(of: Any, seed: int = 5, tokens: int = 77) -> StyleReference:
    return StyleReference(latent(seed, height=HEIGHT, width=WIDTH)["samples"], cond(of, 31, tokens=tokens))


def run(of: Any, batch: int = 3, **options: Any) -> torch.Tensor:
    """A short run of `of`, the same prompts and noise each time."""
    options = {"positive": cond(of, 1), "negative": cond(of, 2), "latent": empty(batch), "steps": 2, **options}
    return sample(of, **options)


def run_officially(of: Any, flags: dict[LayerId, Flags], **options: Any) -> torch.Tensor:
    with official(attention_layers(of), flags):
        return run(of, **options)


def flags_of(layers: str | LayerGate, of: Any) -> dict[LayerId, Flags]:
    names = tuple(attention_layers(of))
    chosen = gate(layers) if isinstance(layers, str) else layers
    q, k, _ = chosen.weights(1.0, names, lambda percent: 1.0).bool().tolist()
    return {layer: Flags(*pair) for layer, *pair in zip(names, q, k, strict=True)}


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = CLOSE) -> None:
    """Equal to within `tolerance` of the expected values' own spread."""
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.std()))


def differ(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two results differ by far more than rounding."""
    return bool((found - expected).abs().amax() > 0.02 * expected.std())


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No free memory for the sampler: ComfyUI runs every conditioning in a call of its own."""
    free_memory(monkeypatch, 0)


def free_memory(monkeypatch: pytest.MonkeyPatch, amount: float) -> None:
    """Make ComfyUI's sampler believe in `amount` bytes; attention, which asks for two numbers, gets the truth."""
    import comfy.model_management

    truth = comfy.model_management.get_free_memory

    def free(device: Any = None, torch_free_too: bool = False) -> Any:
        return truth(device, True) if torch_free_too else amount

    monkeypatch.setattr(comfy.model_management, "get_free_memory", free)


@cache
def tiny_controlnet(kind: str) -> Any:
    """A real ControlNet of the tiny model's own shape, with weights in its output convolutions."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    from tiny import _fill

    config = {**model(kind).model.model_config.unet_config, "dtype": torch.float32}
    for name in ("out_channels", "transformer_depth_output", "disable_unet_model_creation"):
        config.pop(name, None)
    with torch.inference_mode():
        net = comfy.cldm.cldm.ControlNet(hint_channels=3, operations=comfy.ops.manual_cast, device="cpu", **config)
        _fill(net, 9)
    return comfy.controlnet.ControlNet(net, load_device=torch.device("cpu"))


def with_control(controlnet: Any, positive: Any, negative: Any) -> tuple[Any, Any]:
    """What the core node ControlNetApplyAdvanced makes of two prompts."""
    from nodes import ControlNetApplyAdvanced

    hint = torch.rand(1, 8 * HEIGHT, 8 * WIDTH, 3, generator=torch.Generator().manual_seed(8))
    return ControlNetApplyAdvanced().apply_controlnet(positive, negative, controlnet, hint, 1.0, 0.0, 1.0)


CORES_OWN = {"comfy_patched_weights", "weight_function", "bias_function"}
"""Attributes that ComfyUI puts on layers when it first loads a model, whoever samples."""


def traces(of: Any) -> dict[str, Any]:
    """Everything a run could leave behind on a model: weights, hooks, forwards, attributes, options."""
    modules = dict(of.model.named_modules())
    weights = {name: value.clone() for name, value in of.model.state_dict().items()}
    return {
        "weights": weights,
        "attributes": {name: sorted(vars(module).keys() - CORES_OWN) for name, module in modules.items()},
        "hooks": {
            name: len(module._forward_hooks) + len(module._forward_pre_hooks) for name, module in modules.items()
        },
        "forwards": {name: module.forward.__func__ for name, module in modules.items()},
        "options": repr(of.model_options),
        "wrappers": repr(of.wrappers),
        "patches": repr(of.object_patches),
    }


def assert_same_traces(before: dict[str, Any], after: dict[str, Any]) -> None:
    weights, weights_after = before.pop("weights"), after.pop("weights")
    assert before == after
    assert weights.keys() == weights_after.keys()
    assert all(torch.equal(weights[name], weights_after[name]) for name in weights)


def failing(error: type[BaseException], at: str) -> Callable[[Any], Any]:
    """Makes a run of a model fail inside the UNet's second call."""

    def spoil(of: Any) -> Any:
        calls = []

        def patch(h: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
            calls.append(1)
            if len(calls) == 20:
                raise error(at)
            return h

        spoiled = of.clone()
        spoiled.set_model_input_block_patch(patch)
        return spoiled

    return spoil
