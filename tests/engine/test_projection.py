"""The nearest latent that agrees with a linear condition."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine.projection import cell_means, projected


def latents(seed: int) -> torch.Tensor:
    return torch.randn(2, 4, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


GRIDS = st.sampled_from([(1, 1), (2, 3), (8, 12), (16, 24)])


@given(st.integers(0, 99), GRIDS)
def test_a_projected_latent_meets_the_condition_and_stays(seed: int, grid: tuple[int, int]) -> None:
    x, known = latents(seed), latents(seed + 100)
    once = projected(x, known, grid)
    assert torch.allclose(cell_means(once, grid), cell_means(known, grid))
    assert torch.allclose(projected(once, known, grid), once)


@given(st.integers(0, 99), GRIDS)
def test_every_cell_is_moved_as_a_whole_to_the_mean_that_is_known(seed: int, grid: tuple[int, int]) -> None:
    """So what a picture shows inside of a cell stays."""
    x, known = latents(seed), latents(seed + 100)

    def cells(of: torch.Tensor) -> torch.Tensor:
        return of.unflatten(-2, (grid[0], -1)).unflatten(-1, (grid[1], -1)).transpose(-3, -2).flatten(-2)

    moved = cells(projected(x, known, grid) - x)
    torch.testing.assert_close(moved, cells(known - x).mean(-1, keepdim=True).expand_as(moved))


@given(st.integers(0, 99), GRIDS)
def test_it_is_the_nearest_one(seed: int, grid: tuple[int, int]) -> None:
    """The move is orthogonal to every change that leaves the cell means alone."""
    x, known, other = latents(seed), latents(seed + 100), latents(seed + 200)
    free = projected(other, torch.zeros_like(other), grid)  # cell means 0
    assert abs(float(((projected(x, known, grid) - x) * free).sum())) < 1e-8


def test_strength_goes_part_of_the_way_and_the_finest_grid_is_the_picture_itself() -> None:
    x, known = latents(0), latents(1)
    assert torch.allclose(projected(x, known, (16, 24)), known)
    half = cell_means(projected(x, known, (2, 3), 0.5), (2, 3))
    assert torch.allclose(half, (cell_means(x, (2, 3)) + cell_means(known, (2, 3))) / 2)
