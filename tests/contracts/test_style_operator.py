"""Style injection is the published operator: layer by layer, in any selection, however ComfyUI batches the call."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import comfy.sample
import comfy.samplers
import pytest
import torch
from official_operator import official
from style_case import (
    HEIGHT,
    KINDS,
    WIDTH,
    assert_close,
    differ,
    flags_of,
    hidden,
    little_memory,
    model,
    run,
    run_officially,
    styled,
)

from conditional_balance.runtime.arch.unet import attention_layers
from conditional_balance.runtime.inject.reference import NOISE_SEED, Conditioning
from tiny import cond

__all__ = ["little_memory"]


def _random_selections(kind: str, count: int) -> list[str]:
    names = list(attention_layers(model(kind)))
    chooser = random.Random(kind)
    texts = []
    for _ in range(count):
        picks = [(feature, layer) for feature in "qk" for layer in names if chooser.random() < chooser.random()]
        texts.append(", ".join(f"{feature}:{layer}" for feature, layer in picks))
    return texts


@cache
def _plain(kind: str) -> torch.Tensor:
    return run(model(kind), batch=2, steps=1)


SINGLES = [(kind, str(layer)) for kind in KINDS for layer in attention_layers(model(kind))]
RANDOM = [(kind, text) for kind in KINDS for text in _random_selections(kind, 6)]
WHOLE = [(kind, text) for kind in KINDS for text in ("all", "q:all", "k:all")]


@pytest.mark.parametrize(("kind", "layers"), SINGLES + RANDOM)
def test_every_layer_and_random_selections(kind: str, layers: str) -> None:
    of = model(kind)
    expected = run_officially(of, flags_of(layers, of), batch=2, steps=1)
    assert_close(run(styled(of, layers), batch=2, steps=1), expected)
    assert differ(expected, _plain(kind))


@pytest.mark.parametrize(("kind", "layers"), WHOLE)
def test_all_layers_over_a_run(kind: str, layers: str) -> None:
    of = model(kind)
    assert_close(run(styled(of, layers), steps=4), run_officially(of, flags_of(layers, of), steps=4))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("little_memory")
def test_cond_and_uncond_in_calls_of_their_own(kind: str) -> None:
    of = model(kind)
    assert_close(run(styled(of, "o, q:m, k:i4")), run_officially(of, flags_of("o, q:m, k:i4", of)))


def _one_step(of: Any, x: torch.Tensor, positive: Conditioning, sigma: float) -> torch.Tensor:
    """The guided prediction at x: an euler step from sigma straight to 0."""
    latent, sampler = torch.zeros_like(x), comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        return comfy.sample.sample_custom(
            of, x / sigma, 4.0, sampler, torch.tensor([sigma, 0.0]), positive, cond(of, 2), latent, seed=0
        )


def _stacked(first: Conditioning, others: Conditioning, count: int) -> Conditioning:
    """A conditioning of `first` and `count` times `others`, one row each."""
    (text, options), (other_text, other_options) = first[0], others[0]
    pooled = {name: torch.cat((options[name], other_options[name].expand(count, -1))) for name in options}
    return [[torch.cat((text, other_text.expand(count, -1, -1))), pooled]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_renoised_reference_acts_as_a_first_row(kind: str) -> None:
    of, sigma = model(kind), 3.0
    reference = hidden(of)
    noise = torch.randn(1, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(NOISE_SEED))
    leading = of.model.process_latent_in(reference.latent) + sigma * noise
    x = 3 * torch.randn(3, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
    with official(attention_layers(of), flags_of("all", of)):
        expected = _one_step(of, torch.cat((leading, x)), _stacked(reference.prompt, cond(of, 1), 3), sigma)
    assert_close(_one_step(styled(of, "all", reference), x, cond(of, 1), sigma), expected[1:])
