"""Guidance along a difference: linear in strength, nothing at 0, and of the old deviation when rescaled."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine.contrast import guided


def predictions() -> list[torch.Tensor]:
    return list(torch.randn(3, 2, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


@given(st.floats(-5, 5), st.floats(0, 1))
def test_moves_along_the_difference(strength: float, rescale: float) -> None:
    denoised, gated, plain = predictions()
    moved = denoised + strength * (gated - plain)
    torch.testing.assert_close(guided(denoised, gated, plain, strength, 0.0), moved)
    found = guided(denoised, gated, plain, strength, rescale)
    for before, whole, after in zip(denoised, moved, found, strict=True):
        expected = whole.std() + rescale * (before.std() - whole.std())
        torch.testing.assert_close(after.std(), expected)
        torch.testing.assert_close(after / after.std(), whole / whole.std())


def test_nothing_keeps_every_bit() -> None:
    denoised, gated, plain = predictions()
    assert guided(denoised, gated, plain, 0.0, 0.7) is denoised
    torch.testing.assert_close(guided(denoised, plain, plain, 3.0, 0.7), denoised)
