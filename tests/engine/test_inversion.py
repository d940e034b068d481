"""Inversion in closed form: models whose way through the noise is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine.inversion import Pull, decibels, invert, retrace, wanted
from conditional_balance.engine.trajectory import OutsideTrajectory, Trajectory

SIGMAS = [14.6, 7.0, 3.0, 1.2, 0.4, 0.03, 0.0]


def picture(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(variance: float):
    """The best prediction where pictures are Gaussian: linear in x, so that every step has a closed form."""
    return lambda x, sigma: x * variance / (variance + sigma**2)


def bent(x: torch.Tensor, sigma: float) -> torch.Tensor:
    return (0.8 * x + 0.2 * torch.sin(x) + 0.1 * x.roll(1, -1)) / (1 + sigma**2)


def test_a_step_is_ddims() -> None:
    """x / sqrt(1 + sigma^2) with one eps at both ends, against its formula with alphas."""
    x, low, high = picture(), 1.2, 3.0
    (after, _) = invert(x, [high, low], bent)
    alpha = [1 / (1 + sigma**2) for sigma in (low, high)]
    eps = (x - bent(x, high)) / high
    scaled = [x * math.sqrt(alpha[0]), after * math.sqrt(alpha[1])]
    clean = (scaled[0] - math.sqrt(1 - alpha[0]) * eps) / math.sqrt(alpha[0])
    torch.testing.assert_close(scaled[1], math.sqrt(alpha[1]) * clean + math.sqrt(1 - alpha[1]) * eps)


@given(st.floats(0.05, 4.0), st.integers(0, 6))
def test_refinements_shrink_what_is_left_by_a_known_factor(variance: float, refinements: int) -> None:
    """One step of a linear model d = c x: what refinements leave of the implicit solution is (c step)^(n + 1)."""
    x, high = picture(), 1.2
    states = invert(x, [high, 0.0], gaussian(variance), refinements)
    factor = high**2 / (variance + high**2)  # slope times step
    torch.testing.assert_close(states[0], x * (1 - factor ** (refinements + 2)) / (1 - factor))
    back, corrections = retrace(states, [high, 0.0], gaussian(variance), correct=False)
    torch.testing.assert_close(back, x * (1 - factor ** (refinements + 2)))
    assert all(not each.any() for each in corrections)


def test_refinement_helps_and_correction_is_exact() -> None:
    x, found = picture(), []
    sigmas = [*torch.linspace(2.7, -3.5, 40, dtype=torch.float64).exp().tolist(), 0.0]
    for refinements in (0, 1, 3, 10):
        states = invert(x, sigmas, bent, refinements)
        back, _ = retrace(states, sigmas, bent, correct=False)
        found.append(decibels(back, x))
        exact, _ = retrace(states, sigmas, bent, correct=True)
        assert decibels(exact, x) > 250
    assert found == sorted(found) and found[-1] > found[0] + 20


def test_corrections_belong_to_their_steps() -> None:
    x = picture()
    states = invert(x, SIGMAS, bent)
    _, corrections = retrace(states, SIGMAS, bent, correct=True)
    for step, missing in enumerate(corrections):
        here, after = states[step], states[step + 1]
        ends = wanted(here, after, SIGMAS[step], SIGMAS[step + 1])
        torch.testing.assert_close(bent(here, SIGMAS[step]) + missing, ends)
    torch.testing.assert_close(bent(states[-2], SIGMAS[-2]) + corrections[-1], x)


@given(st.floats(0.0, 1.0))
def test_a_pull_of_one_ends_at_its_target_and_of_none_is_none(gamma: float) -> None:
    sigmas = [1.0, 0.8, 0.5, 0.2, 0.0]
    x, target = picture(1), picture(2)
    pulled = invert(x, sigmas, bent, pull=Pull(gamma, target, 1.0))
    own = invert(x, sigmas, bent)
    if gamma == 0:
        torch.testing.assert_close(pulled[0], own[0])
    straight = invert(x, sigmas, bent, pull=Pull(1.0, target, 1.0))
    for state, sigma in zip(straight, sigmas, strict=True):
        torch.testing.assert_close(state, torch.lerp(x, target, sigma))
    back, _ = retrace(pulled, sigmas, bent, correct=True)
    torch.testing.assert_close(back, x)


def test_decibels() -> None:
    x = picture()
    assert decibels(x, x) == math.inf
    span = float(x.max() - x.min())
    assert decibels(x + 0.1 * span, x) == pytest.approx(20)


def test_a_trajectory_is_straight_between_its_levels() -> None:
    states = {sigma: picture(step)[0] for step, sigma in enumerate(SIGMAS)}
    way = Trajectory.of(dict(reversed(states.items())))
    assert way.ends == (14.6, 0.0)
    for sigma, state in states.items():
        assert torch.equal(way.at(sigma), state)
    torch.testing.assert_close(way.at(2.1), (states[3.0] + states[1.2]) / 2)
    assert torch.equal(way.at(14.6 * 1.0005), states[14.6])


def test_a_level_that_rounding_leads_beyond_the_end_is_the_end() -> None:
    way = Trajectory.of({14.6: picture()[0], 0.1: picture(1)[0]})
    assert torch.equal(way.at(0.1 * 0.9995), picture(1)[0])
    assert not way.reaches(0.1 * 0.9985) and not way.reaches(14.6 * 1.0015)


@pytest.mark.parametrize("sigma", [14.7, 0.01])
def test_a_level_beyond_the_ends_is_named(sigma: float) -> None:
    way = Trajectory.of({14.6: picture()[0], 0.1: picture(1)[0]})
    assert not way.reaches(sigma)
    with pytest.raises(OutsideTrajectory, match=r"outside of 14.6 to 0.1"):
        way.at(sigma)
