"""Several style references: one of strength 1 is what it was, others act as strongly, when and where they are told."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from style_case import (
    HEIGHT,
    KINDS,
    WIDTH,
    assert_close,
    assert_same_traces,
    differ,
    empty,
    free_memory,
    hidden,
    model,
    run,
    styled,
    traces,
)
from test_style_among_nodes import tiling
from test_transformer_style import hidden as hidden_of
from test_transformers import run as run_transformer
from tiny_transformers import latent as latent_of
from tiny_transformers import tiny_transformer

from conditional_balance.nodes.style import RENOISED, CBStyleReference
from conditional_balance.runtime.inject.reference import FIRST_ROW, StyleReference
from tiny import cond

TRANSFORMERS = ["sd35-medium", "flux", "qwen", "z-image", "wan"]
LEFT = torch.zeros(8 * HEIGHT, 8 * WIDTH)
LEFT[:, : 4 * WIDTH] = 1


def chained(*references: StyleReference) -> StyleReference:
    first, *others = references
    for each in others:
        first = replace(each, previous=first)
    return first


@pytest.mark.parametrize("kind", KINDS)
def test_one_reference_of_strength_one_keeps_every_bit(kind: str) -> None:
    of = model(kind)
    plain = run(styled(of, reference=hidden(of)))
    made = CBStyleReference.execute(RENOISED, {"samples": hidden(of).latent}, hidden(of).prompt, None, 1.0, 0.0, 1.0)
    assert torch.equal(run(styled(of, reference=made.args[0])), plain)
    assert torch.equal(run(styled(of, reference=replace(hidden(of), strength=0.5))), run(
        styled(of, reference=hidden(of), strength=0.5)))  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_off_is_off(kind: str) -> None:
    of = model(kind)
    plain = run(of)
    for off in ({"strength": 0.0}, {"start": 0.97, "end": 0.98}):
        assert torch.equal(run(styled(of, reference=replace(hidden(of), **off))), plain)
    nowhere = replace(hidden(of), mask=torch.zeros(8, 8))
    assert_close(run(styled(of, reference=nowhere)), plain)
    both = chained(hidden(of), replace(hidden(of, 6), strength=0.0))
    assert torch.equal(run(styled(of, reference=both)), run(styled(of, reference=hidden(of))))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_reference_twice_is_the_reference_once(kind: str) -> None:
    of = model(kind)
    once = run(styled(of, reference=hidden(of)))
    assert_close(run(styled(of, reference=chained(hidden(of), hidden(of)))), once, 1e-3)
    full = replace(hidden(of), mask=torch.ones(8, 8))
    assert_close(run(styled(of, reference=full)), once, 1e-3)


def test_two_references_two_strengths_two_windows() -> None:
    of = model("sd15")
    first = hidden(of)
    second = replace(first, latent=4 * first.latent.flip(-1), prompt=cond(of, 40))
    alone = [run(styled(of, reference=each)) for each in (first, second)]
    both = run(styled(of, reference=chained(first, second)))
    assert all(differ(both, each) for each in alone)
    assert differ(run(styled(of, reference=replace(first, strength=2.0))), alone[0])
    away = run(styled(of, reference=replace(first, strength=-0.5)))
    assert differ(away, run(of)) and bool(away.isfinite().all())
    early, late = replace(first, end=0.5), replace(second, start=0.5)
    turns = run(styled(of, reference=chained(early, late)), steps=4)
    assert not torch.equal(turns, run(styled(of, reference=early), steps=4))


def test_a_mask_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    of = model("sd15")
    options = {"latent": empty(2, 16, 32), "steps": 1, "cfg": 1.0}
    plain = run(of, **options)
    whole = run(styled(of, "o9-11", reference=hidden(of), adain_k=False), **options)
    found = run(styled(of, "o9-11", reference=replace(hidden(of), mask=LEFT), adain_k=False), **options)
    near, far = (found - whole).abs()[..., :10].mean(), (found - plain).abs()[..., :10].mean()
    assert near < far
    right_near, right_far = (found - plain).abs()[..., 24:].mean(), (found - whole).abs()[..., 24:].mean()
    assert right_near < right_far
    free_memory(monkeypatch, 0)
    assert_close(run(styled(of, "o9-11", reference=replace(hidden(of), mask=LEFT), adain_k=False), **options), found)


def test_masks_follow_tiles() -> None:
    """The left tile as if unmasked, the right one as if nothing were there."""
    of = model("sd15")
    options = {"latent": empty(1, 8, 16), "steps": 1}
    for together in (False, True):
        led, plain, whole = (
            run(tiling_of(styled(of, reference=each) if each else of, together), **options)
            for each in (replace(hidden(of), mask=LEFT), None, hidden(of))
        )
        assert_close(led[..., :8], whole[..., :8], 1e-3)
        assert_close(led[..., 8:], plain[..., 8:], 1e-3)


def tiling_of(of: Any, together: bool) -> Any:
    return tiling(of, together)


def test_masks_follow_areas() -> None:
    of = model("sd15")
    area = {"area": (8, 8, 0, 8), "strength": 1.0}
    positive = [*cond(of, 1), [cond(of, 3)[0][0], area]]
    options = {"positive": positive, "latent": empty(1), "steps": 1}
    led, plain = run(styled(of, reference=replace(hidden(of), mask=LEFT)), **options), run(of, **options)
    assert bool(led.isfinite().all()) and differ(led, plain)
    elsewhere = replace(hidden(of), mask=1 - LEFT)
    both = chained(replace(hidden(of), mask=LEFT), elsewhere)
    assert_close(run(styled(of, "o", reference=both, adain_q=False, adain_k=False), **options), run(
        styled(of, "o", reference=hidden(of), adain_q=False, adain_k=False), **options), 1e-3)  # fmt: skip


def test_a_part_that_is_not_found_is_refused() -> None:
    def wrapper(apply_model: Any, call: dict[str, Any]) -> torch.Tensor:
        half = apply_model(1.5 * call["input"][..., :8], call["timestep"], **call["c"])
        return torch.cat((half, half), -1)

    of = model("sd15").clone()
    of.set_model_unet_function_wrapper(wrapper)
    with pytest.raises(ValueError, match="so the 'mask' of a style reference cannot be placed"):
        run(styled(of, reference=replace(hidden(of), mask=LEFT)), batch=1)


def test_the_first_row_may_have_a_mask_and_a_strength() -> None:
    of = model("sd15")
    plain = run(of)
    found = run(styled(of, reference=replace(FIRST_ROW, strength=1.5, mask=LEFT)))
    assert_close(found[:1], plain[:1])
    assert differ(found[1:], plain[1:])
    with pytest.raises(ValueError, match="do not go together"):
        styled(of, reference=chained(FIRST_ROW, hidden(of)))


def test_batches_split_calls_and_prompts_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    of = model("sd15")
    several = chained(hidden(of, 5, 154), replace(hidden(of, 6, 231), mask=LEFT), replace(hidden(of, 7), strength=-0.3))
    before = traces(of)
    batched = run(styled(of, reference=several))
    assert bool(batched.isfinite().all())
    alone = run(styled(of, reference=several), latent={**empty(1), "batch_index": [0]})
    assert_close(alone, run(styled(of, reference=several), latent={**empty(3), "batch_index": [0, 1, 2]})[:1], 1e-3)
    free_memory(monkeypatch, 0)
    assert_close(run(styled(of, reference=several)), batched, 1e-3)
    assert_same_traces(before, traces(of))


def test_another_packs_attention_takes_several_along(caplog: pytest.LogCaptureFixture) -> None:
    from comfy.ldm.modules.attention import optimized_attention

    of = model("sd15")
    plain = run(styled(of, "o3-5", reference=chained(hidden(of), replace(hidden(of, 6), mask=LEFT))))

    def own(q: Any, k: Any, v: Any, extra: Any) -> torch.Tensor:
        return optimized_attention(q, k, v, extra["n_heads"])

    other = of.clone()
    other.set_model_attn1_replace(own, "output", 4)
    with caplog.at_level(logging.WARNING):
        found = run(styled(other, "o3-5", reference=chained(hidden(of), replace(hidden(of, 6), mask=LEFT))))
    assert "shared no attention" not in caplog.text
    assert_close(found, plain, 0.3)
    assert differ(found, run(of))


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_transformers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of = tiny_transformer(kind)
    first, second = hidden_of(kind), hidden_of(kind, 17)
    once = run_transformer(styled(of, reference=first), kind)
    assert_close(run_transformer(styled(of, reference=chained(first, first)), kind), once, 1e-2)
    left = torch.zeros(10, 8)
    left[:, :4] = 1
    several = chained(
        replace(first, mask=left), replace(second, mask=1 - left, strength=0.8), replace(first, strength=-0.2)
    )
    out = run_transformer(styled(of, reference=several), kind)
    assert bool(out.isfinite().all()) and differ(out, once)
    free_memory(monkeypatch, 0)
    assert_close(run_transformer(styled(of, reference=several), kind), out, 1e-2)


def test_a_masked_part_of_a_transformers_picture() -> None:
    of = tiny_transformer("sd3")
    left = torch.zeros(10, 8)
    left[:, :4] = 1
    options = {"latent": latent_of("sd3", width=8), "cfg": 1.0, "steps": 1}
    whole, plain, found = (
        run_transformer(styled(of, "j2", each, adain_q=False, adain_k=False, sharing="q or k"), "sd3", **options)
        for each in (
            hidden_of("sd3"),
            replace(hidden_of("sd3"), mask=torch.zeros(8, 8)),
            replace(hidden_of("sd3"), mask=left),
        )
    )  # the last layer: what it does to a token goes nowhere else
    assert_close(found[..., :4], whole[..., :4], 1e-3)
    assert_close(found[..., 4:], plain[..., 4:], 1e-3)
