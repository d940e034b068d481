"""What is known of samplers: their names, and at which noise levels they call the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

ON_SCHEDULE = frozenset(
    f"sample_{name}"
    for name in (
        "euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp heun heunpp2 lms dpmpp_2m dpmpp_2m_cfg_pp "
        "dpmpp_2m_sde dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde dpmpp_3m_sde_gpu "
        "ddpm lcm ipndm ipndm_v deis res_multistep res_multistep_cfg_pp res_multistep_ancestral "
        "res_multistep_ancestral_cfg_pp gradient_estimation gradient_estimation_cfg_pp er_sde sa_solver "
        "sa_solver_pece"
    ).split()
)
"""Functions of ComfyUI's samplers that call the model at the schedule's noise levels only."""

POINTS = 16  # between two levels, fewer than 0.4 % of a schedule of 20 steps apart


def name_of(sampler: Any) -> str:
    """The name of the function behind one of ComfyUI's sampler objects; empty for objects of another kind."""
    return getattr(getattr(sampler, "sampler_function", None), "__name__", "")


def stays_on_schedule(sampler: Any) -> bool:
    """Whether a sampler calls the model at the schedule's noise levels only; False for one that is not known."""
    return name_of(sampler) in ON_SCHEDULE


def between(levels: Sequence[float]) -> Iterator[float]:
    """Noise levels between those of a schedule, at equal distances, for samplers that call the model there."""
    for high, low in pairwise(levels):
        yield from (high + (low - high) * point / POINTS for point in range(1, POINTS))
