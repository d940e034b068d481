"""Muon makes updates orthogonal, whichever way a matrix lies, and brings a loss down."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from demo.training.muon import Muon, orthogonal


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_singular_values_end_near_one(rows: int, columns: int, seed: int) -> None:
    left, _, right = torch.linalg.svd(
        torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)), full_matrices=False
    )
    values = torch.linspace(1, 0.1, min(rows, columns))
    made = orthogonal(left @ values.diag() @ right)
    inner = left.T @ made @ right.T  # diagonal when the singular vectors are kept
    assert bool((inner.diagonal() > 0.6).all()) and bool((inner.diagonal() < 1.3).all())
    torch.testing.assert_close(inner, inner.diagonal().diag(), atol=2e-3, rtol=0)


def test_steps_bring_the_loss_down() -> None:
    draw = torch.Generator().manual_seed(0)
    truth, seen = torch.randn(8, 16, generator=draw), torch.randn(64, 16, generator=draw)
    weight = torch.zeros(8, 16, requires_grad=True)
    optimiser, losses = Muon([weight]), []
    for _ in range(60):
        weight.grad = None
        loss = (seen @ (weight - truth).T).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimiser.step(0.1)
    assert losses[-1] < 0.2 * losses[0]


def test_weights_of_one_shape_may_step_together() -> None:
    """As they do on a GPU."""
    dice = torch.Generator().manual_seed(3)
    shapes = [(8, 4), (4, 8), (8, 4), (8, 2, 1, 2)]
    alone, together = ([torch.ones(shape) for shape in shapes] for _ in range(2))
    for one, other in zip(alone, together, strict=True):
        one.grad = torch.randn(one.shape, generator=dice)
        other.grad = one.grad.clone()
    apart, grouped = Muon(alone), Muon(together)
    grouped.grouped = True
    assert sorted(map(len, grouped.mine())) == [1, 3]
    for muon in (apart, grouped):
        muon.step(0.1)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(alone, together, strict=True))
