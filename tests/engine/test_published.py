"""The shipped published rankings: complete, ranks only, and the selections that the authors' code makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conditional_balance.engine.gates import RankedGate
from conditional_balance.engine.noise import LOG, LOGIT
from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.engine.profile_file import load

FOLDER = Path(__file__).parents[2] / "sensitivity_profiles"
SHIPPED = {
    "sdxl-base-1.0.style.published": (("q", "k"), 50, 70, LOG),
    "sdxl-base-1.0.style-with-values.published": (("q", "k", "v"), 50, 70, LOG),
    "sd3.5-large.style.published": (("q", "k", "v"), 26, 38, LOGIT),
}


def published(name: str) -> SensitivityProfile:
    return load(FOLDER / f"{name}.safetensors")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_layer_has_one_rank_at_every_noise_level(name: str) -> None:
    features, levels, layers, noise = SHIPPED[name]
    ranks = published(name)
    assert (ranks.features, len(ranks.sigmas), len(ranks.layers), ranks.noise) == (features, levels, layers, noise)
    each = (ranks.scores * layers).sort(-1).values
    torch.testing.assert_close(each, torch.arange(1.0, layers + 1).double().expand_as(each))
    assert "arXiv 2412.19853" in ranks.provenance["source"] and ranks.low is None


def test_the_authors_grid_of_fifty_levels_is_read_exactly() -> None:
    """Steps of 20 timesteps of SDXL's own schedule, from 981 to 1."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    grid = (((1 - kept) / kept) ** 0.5)[torch.arange(981, 0, -20)]
    torch.testing.assert_close(published("sdxl-base-1.0.style.published").sigmas, grid, rtol=1e-4, atol=1e-6)


def test_sd35s_two_rows_of_noise_are_left_out_and_its_first_and_last_blocks_carry_style() -> None:
    """conditional-balance.md 4.6: of the 28 lowest of q and of k at every level, blocks 1, 2, 36 and 37 are always."""
    ranks = published("sd3.5-large.style.published")
    assert float(ranks.sigmas[0]) == pytest.approx(0.974)
    gate = RankedGate(ranks, 28.0)
    found = torch.stack([gate.weights(float(sigma), ranks.layers, float)[:2] for sigma in ranks.sigmas])
    always = (found > 0).all(0).all(0).tolist()
    names = {str(layer) for layer, chosen in zip(ranks.layers, always, strict=True) if chosen}
    assert {"j1", "j2", "j36", "j37"} <= names


def test_the_second_grading_ranks_values_apart() -> None:
    ranks = published("sdxl-base-1.0.style-with-values.published")
    weights = RankedGate(ranks, 0.43).weights(1.0, ranks.layers, float)
    assert weights.sum(1).tolist() == [30, 30, 30] and not torch.equal(weights[2], weights[0])
