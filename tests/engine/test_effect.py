"""Gain and loss of a layer on pictures whose change is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine.effect import effect_of, style_gap


def picture(seed: int, batch: int = 2) -> torch.Tensor:
    """[batch, 4, 16, 16] with large shapes and fine detail."""
    dice = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 4, 4, 4, generator=dice)
    return torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear") + 0.3 * torch.randn(
        batch, 4, 16, 16, generator=dice
    )


def test_nothing_changed_is_no_gain_and_no_loss():
    plain, reference = picture(0), 2 * picture(1, 1) + 1
    effect = effect_of(plain, plain.clone(), reference)
    assert effect.gain.tolist() == [0, 0]
    torch.testing.assert_close(effect.loss, torch.zeros(2, dtype=torch.float64), atol=1e-4, rtol=0)


def test_what_is_not_finite_is_no_effect_of_zero():
    plain, reference = picture(0), 2 * picture(1, 1) + 1
    effect = effect_of(plain, plain * torch.nan, reference)
    assert bool(effect.gain.isnan().all()) and bool(effect.loss.isnan().all())


@given(st.floats(0.1, 3.0), st.floats(-2.0, 2.0))
def test_moments_alone_are_style_and_no_content(scale: float, shift: float):
    """A picture with the reference's contrast and colour gains; its layout is as it was."""
    plain = picture(0)
    reference = scale * plain[:1] + shift
    styled = scale * plain + shift
    effect = effect_of(plain, styled, reference)
    assert float(effect.gain[0]) == pytest.approx(1.0, abs=1e-3) or float(style_gap(plain, reference)[0]) < 1e-3
    assert float(effect.loss.max()) < 1e-3


def test_a_picture_mirrored_keeps_its_style_and_loses_its_layout():
    plain, reference = picture(0), picture(1, 1) + 1
    effect = effect_of(plain, plain.flip(-1), reference)
    assert float(effect.gain.abs().max()) < 0.02
    assert float(effect.loss.min()) > 0.3


def test_leading_away_is_a_negative_gain():
    plain, reference = picture(0), picture(1, 1) + 1
    assert float(effect_of(plain, plain - 1, reference).gain.max()) < 0


def test_detail_is_part_of_style():
    """Same mean and spread, other grain."""
    smooth, rough = picture(0), torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    rough = rough * smooth.std() + smooth.mean()
    assert float(style_gap(smooth, rough[:1]).min()) > 3 * float(style_gap(rough, rough[:1]).max())


def test_the_distance_of_style_is_bhattacharyyas_over_each_size_of_detail():
    """In closed form: two levels of grey, and a chequerboard of them, whose halving leaves the mean alone."""
    flat, other = (torch.tensor([[mean - std, mean + std]] * 2).view(1, 1, 2, 2) for mean, std in ((0.0, 1), (3.0, 2)))
    moments = 9 / (8 * 2.5) + math.log(2.5 / 2) / 2  # too small to be halved
    assert float(style_gap(flat, other)) == pytest.approx(moments, rel=1e-3)
    board = 1 - 2.0 * ((torch.arange(4)[:, None] + torch.arange(4)) % 2)[None, None]
    bands = math.log(2.5 / 2) / 2 / 2  # of detail; and none of what is left
    assert float(style_gap(board, 2 * board)) == pytest.approx(bands, rel=1e-3)


def test_what_has_the_references_style_already_gains_nothing():
    plain = picture(0, batch=1)
    assert effect_of(plain, plain + 1, plain).gain.tolist() == [0]


def test_a_channels_own_moments_are_no_layout():
    plain = picture(0)
    scale, shift = torch.tensor([0.5, 1.0, 2.0, 3.0]).view(4, 1, 1), torch.tensor([3.0, -2.0, 0.0, 1.0]).view(4, 1, 1)
    assert float(effect_of(plain, scale * plain + shift, plain[:1] + 1).loss.abs().max()) < 1e-3
