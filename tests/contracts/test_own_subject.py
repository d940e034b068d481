"""A style reference whose own subject is named: attention takes nothing from there, and all else is as it was."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import comfy.utils
import pytest
import torch
from gradsam_case import subject_of
from style_case import (
    HEIGHT,
    KINDS,
    WIDTH,
    assert_close,
    assert_same_traces,
    differ,
    empty,
    gate,
    hidden,
    model,
    run,
    styled,
    traces,
)
from test_transformer_style import hidden as hidden_of
from test_transformers import run as run_transformer
from tiny_transformers import tiny_transformer

from conditional_balance.nodes.style import FIRST, RENOISED, REPLAYED, CBStyleInjection, CBStyleReference
from conditional_balance.nodes.trajectory import CBRecordTrajectory
from conditional_balance.runtime.inject.own_subject import LEAST, subject_at, with_subject_found
from conditional_balance.runtime.inject.reference import StyleReference
from conditional_balance.runtime.inject.remembered import STORE
from conditional_balance.runtime.inject.style import StyleInjection, inject_style

WHOLE, NOWHERE = torch.ones(HEIGHT, WIDTH), torch.zeros(HEIGHT, WIDTH)
LEFT = torch.cat((torch.ones(HEIGHT, WIDTH // 2), torch.zeros(HEIGHT, WIDTH // 2)), 1)


def without(reference: StyleReference, where: torch.Tensor) -> StyleReference:
    """The reference without what is somewhere in it, which need not be looked for."""
    return replace(reference, subject=subject_of(model("sd15")), subject_mask=where)


def along(of: Any, reference: StyleReference, **settings: Any) -> Any:
    return inject_style(of, StyleInjection(gate("all"), reference, remember=False, **settings))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("through", [styled, along])
def test_nothing_all_and_a_part(kind: str, through: Any) -> None:
    of = model(kind)
    source = hidden(of)

    def painted(reference: StyleReference) -> torch.Tensor:
        return run(styled(of, reference=reference) if through is styled else along(of, reference))

    plain = painted(source)
    assert_close(painted(without(source, NOWHERE)), plain)
    assert_close(painted(without(source, WHOLE)), run(styled(of, reference=source, share=LEAST)))
    left, right = painted(without(source, LEFT)), painted(without(source, 1 - LEFT))
    assert differ(left, plain) and differ(right, plain) and differ(left, right)


def test_with_and_without_a_row_of_its_own_and_among_several() -> None:
    of = model("sd15")
    source = without(hidden(of), LEFT)
    found = run(styled(of, reference=source))
    assert_close(run(along(of, source)), found)
    assert_close(run(styled(of, reference=replace(source, previous=source))), found, 1e-3)
    masked = replace(source, mask=torch.ones(8, 8))
    assert_close(run(styled(of, reference=masked)), found, 1e-3)


@pytest.mark.parametrize("kind", ["sd3", "flux", "qwen", "cosmos"])
def test_transformers(kind: str) -> None:
    of = tiny_transformer(kind)
    source = replace(hidden_of(kind), subject=subject_of(model("sd15")))
    somewhere = torch.zeros(12, 12)
    somewhere[:, :6] = 1
    plain = run_transformer(styled(of, reference=hidden_of(kind)), kind)
    none, found = (
        run_transformer(styled(of, reference=replace(source, subject_mask=each)), kind)
        for each in (torch.zeros(12, 12), somewhere)
    )
    assert_close(none, plain, 1e-3)
    assert differ(found, plain) and bool(found.isfinite().all())
    assert_close(run_transformer(along(of, replace(source, subject_mask=somewhere)), kind), found, 1e-3)


def test_the_node_looks_once_and_the_run_costs_no_more() -> None:
    of = model("sd15")
    run(of)
    subject, latent, before = subject_of(of, 31), hidden(of).latent, traces(of)
    (reference,) = CBStyleReference.execute(RENOISED, {"samples": latent}, subject=subject).args
    assert reference.prompt is subject.conditioning
    calls: list[int] = []
    handle = of.model.diffusion_model.register_forward_hook(lambda module, args, out: calls.append(len(out)))
    try:
        STORE.kept.clear()
        (injected,) = CBStyleInjection.execute(of, gate("all"), 1.0, 1.0, 0.0, 1.0, reference).args
        looked = len(calls)
        run(injected, batch=1)
    finally:
        handle.remove()
    assert 1 <= looked <= 2 and calls[looked:] == [2, 2] * 2
    assert_same_traces(before, traces(of))
    (other,) = CBStyleReference.execute(RENOISED, {"samples": latent}, subject.conditioning).args
    assert differ(run(injected), run(styled(of, reference=other)))
    found = with_subject_found(of, reference)
    assert found.subject_mask is not None and found.subject_mask.shape == latent.shape[-2:]
    assert with_subject_found(of, found) is found


def test_trajectories_and_chains_are_looked_at_too() -> None:
    of = model("sd15")
    recording, trajectories = CBRecordTrajectory.execute(of).args
    out = run(recording, batch=1)
    subject = subject_of(of, 31)
    (first,) = CBStyleReference.execute(REPLAYED, {"samples": out}, trajectory=trajectories, subject=subject).args
    (second,) = CBStyleReference.execute(RENOISED, {"samples": out}, previous=first, subject=subject).args
    found = with_subject_found(of, second)
    assert found.previous is not None and found.subject_mask is not None
    assert_close(found.previous.subject_mask, found.subject_mask)  # of the same picture


def test_the_first_row_is_not_painted_yet() -> None:
    of = model("sd15")
    with pytest.raises(ValueError, match="'subject' is connected, but 'mode' is 'first row of the batch'"):
        CBStyleReference.execute(FIRST, subject=subject_of(of))
    with pytest.raises(ValueError, match="needs a picture to look for it in"):
        styled(of, reference=StyleReference(subject=subject_of(of)))


def test_the_mask_is_resized_and_cropped_as_its_picture_is() -> None:
    """A latent that holds the mask itself arrives as the mask does."""
    of = model("sd15")
    tall = torch.zeros(24, 12)
    tall[8:16, 4:8] = 1
    reference = replace(hidden(of), latent=tall.expand(1, 4, -1, -1), subject_mask=tall)
    noise = torch.zeros(1, 4, HEIGHT, WIDTH)
    picture = comfy.utils.common_upscale(reference.latent, WIDTH, HEIGHT, "bicubic", "center")[0, 0]
    mask = subject_at(reference, noise)
    assert mask is not None
    assert float(((mask > 0.5) == (picture > 0.5)).float().mean()) > 0.95 and 0 < float(mask.mean()) < 1


def test_what_cannot_be_damped_is_said(caplog: pytest.LogCaptureFixture) -> None:
    from comfy.ldm.modules.attention import optimized_attention

    of = model("sd15")
    other = of.clone()
    other.set_model_attn1_replace(lambda q, k, v, extra: optimized_attention(q, k, v, extra["n_heads"]), "output", 4)
    with caplog.at_level(logging.WARNING):
        run(styled(other, "o3-5", without(hidden(of), LEFT)), latent=empty(1))
    assert "o4.0 took from the reference's own subject too" in caplog.text
