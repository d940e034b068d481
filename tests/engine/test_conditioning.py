"""Curves, percents and sizes of metadata, and the shift of a schedule for another resolution."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine.conditioning import (
    between,
    between_sizes,
    percent_of,
    power_cosine,
    resolution_ratio,
    shifted_sigmas,
    sinusoid_value,
)

EPS = torch.cat((torch.logspace(math.log10(14.6), math.log10(0.03), 20, dtype=torch.float64), torch.zeros(1))).float()
FLOW = torch.linspace(1.0, 0.0, 21)


@given(st.floats(0, 1), st.floats(0, 8))
def test_the_curve_stays_between_off_and_on(percent: float, power: float) -> None:
    assert 0 <= power_cosine(percent, power) <= 1


def test_the_curve_starts_off_ends_on_and_power_0_is_always_on() -> None:
    assert power_cosine(0.0, 2.0) == 0 and power_cosine(1.0, 2.0) == 1
    assert all(power_cosine(percent, 0.0) == 1 for percent in (0.0, 0.3, 1.0))


@pytest.mark.parametrize(("power", "at", "gamma"), [(1, 0.5, 0.5), (2, 0.5, 0.146447), (2, 3**-0.5, 0.25)])
def test_the_curve_has_its_closed_values(power: float, at: float, gamma: float) -> None:
    assert power_cosine(at, power) == pytest.approx(gamma, abs=1e-6)


@given(st.floats(0.001, 0.999))
def test_a_percent_is_found_again_by_its_sigma(percent: float) -> None:
    def to_sigma(at: float) -> float:
        return 14.6 * math.exp(-6.2 * at)

    assert percent_of(to_sigma(percent), to_sigma) == pytest.approx(percent, abs=2e-3)


def test_sigmas_outside_the_schedule_are_its_ends() -> None:
    def to_sigma(at: float) -> float:
        return 1 - at

    assert percent_of(5.0, to_sigma) == 0 and percent_of(-1.0, to_sigma) == 1


def test_a_percent_asks_for_few_noise_levels() -> None:
    """ComfyUI keeps a schedule on the GPU, and the processor waits for every answer."""
    asked: list[float] = []

    def to_sigma(at: float) -> float:
        asked.append(at)
        return 1 - at

    assert percent_of(0.3, to_sigma) == pytest.approx(0.7) and len(asked) < 15


@given(st.integers(0, 20_000))
def test_a_number_is_read_back_from_its_embedding(value: int) -> None:
    frequencies = 10000.0 ** (-torch.arange(128) / 128)
    angles = torch.tensor([float(value)])[:, None] * frequencies
    assert float(sinusoid_value(torch.cat((angles.cos(), angles.sin()), -1))) == value


def test_sizes_go_geometrically_and_are_exact_at_both_ends() -> None:
    early, late = torch.tensor([512.0]), torch.tensor([2048.0])
    assert float(between_sizes(early, late, 0.5)) == pytest.approx(1024)
    assert between_sizes(early, late, 0.0) is early and between_sizes(early, late, 1.0) is late
    assert float(between(early, late, 0.5)) == 1280 and between(early, late, 1.0) is late


def test_a_ratio_is_that_of_equal_areas() -> None:
    assert resolution_ratio(2048, 512, 1024) == 1
    assert resolution_ratio(1536, 1536, 1024) == 1.5


@pytest.mark.parametrize(("sigmas", "flow"), [(EPS, False), (FLOW, True)])
@given(st.floats(0.25, 4.0))
def test_a_shifted_schedule_keeps_its_ends_and_falls(sigmas: torch.Tensor, flow: bool, ratio: float) -> None:
    shifted = shifted_sigmas(sigmas, ratio, flow)
    assert shifted[0] == sigmas[0] and shifted[-2] == sigmas[-2] and shifted[-1] == 0
    assert bool((shifted.diff() < 0).all())


@pytest.mark.parametrize(("sigmas", "flow"), [(EPS, False), (FLOW, True)])
def test_larger_pictures_get_more_noise_and_ratio_1_changes_no_bit(sigmas: torch.Tensor, flow: bool) -> None:
    assert bool((shifted_sigmas(sigmas, 1.5, flow)[1:-2] > sigmas[1:-2]).all())
    assert bool((shifted_sigmas(sigmas, 0.5, flow)[1:-2] < sigmas[1:-2]).all())
    assert shifted_sigmas(sigmas, 1.0, flow) is sigmas


def test_a_whole_flow_schedule_is_shifted_as_sd3_shifts_it() -> None:
    fine = torch.cat((torch.linspace(1.0, 1e-6, 50, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)))
    expected = 1.5 * fine / (1 + 0.5 * fine)
    assert torch.allclose(shifted_sigmas(fine, 1.5, True), expected, atol=1e-5)


def test_in_the_middle_of_an_eps_schedule_sigma_is_multiplied() -> None:
    fine = torch.cat((torch.logspace(4, -4, 81, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)))
    middle = slice(30, 50)
    assert torch.allclose(shifted_sigmas(fine, 2.0, False)[middle], 2 * fine[middle], rtol=1e-2)


def test_a_schedule_that_does_not_end_in_0_keeps_its_last_level() -> None:
    part = EPS[:10]
    shifted = shifted_sigmas(part, 2.0, False)
    assert shifted[-1] == part[-1] and len(shifted) == len(part)
