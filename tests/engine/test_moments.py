"""Moments against their definition."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine.moments import Moments, join_channels, moments_of


@given(st.integers(1, 4), st.integers(2, 40), st.integers(1, 9), st.integers(0, 999))
def test_they_are_the_mean_and_the_unbiased_deviation_over_tokens(rows, tokens, channels, seed):
    projected = torch.randn(rows, tokens, channels, generator=torch.Generator().manual_seed(seed))
    moments = moments_of(projected)
    torch.testing.assert_close(moments.mean, projected.mean(1))
    torch.testing.assert_close(moments.std, (projected.var(1, unbiased=True) + 1e-5).sqrt())


def test_half_precision_tokens_are_reduced_in_float32():
    projected = 1000 + torch.randn(1, 4096, 2, generator=torch.Generator().manual_seed(0)).half()
    moments = moments_of(projected)
    assert moments.mean.dtype == moments.std.dtype == torch.float32
    torch.testing.assert_close(moments.std.double(), (projected.double().var(1) + 1e-5).sqrt(), rtol=1e-4, atol=0)


def test_a_channel_that_never_moves_still_has_a_width():
    assert torch.allclose(moments_of(torch.ones(1, 8, 3)).std, torch.tensor(1e-5).sqrt())


def test_a_single_token_has_the_least_width_and_not_nan():
    assert torch.allclose(moments_of(torch.randn(2, 1, 3)).std, torch.tensor(1e-5).sqrt())


def test_joining_keeps_the_order_of_the_parts():
    one, other = moments_of(torch.randn(2, 5, 3)), moments_of(torch.randn(2, 5, 4))
    joined = join_channels([one, other])
    assert torch.equal(joined.mean, torch.cat([one.mean, other.mean], -1))
    assert torch.equal(joined.std, torch.cat([one.std, other.std], -1))


def test_channels_are_joined_along_the_last_axis_whatever_comes_before():
    parts = [Moments(torch.full((2, 3, n), float(n)), torch.full((2, 3, n), -float(n))) for n in (4, 5)]
    joined = join_channels(parts)
    assert joined.mean.shape == joined.std.shape == (2, 3, 9)
    assert joined.mean[1, 2].tolist() == [4.0] * 4 + [5.0] * 5 == (-joined.std[0, 0]).tolist()
