"""The way of a picture through the noise levels: sigma to x, as a run of a sampler or an inversion went it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

ROUNDING = 1e-3
"""Of a noise level: samplers round sigmas on their way."""


class OutsideTrajectory(ValueError):
    """A noise level that the way does not reach; `high` and `low` are its ends."""

    def __init__(self, sigma: float, high: float, low: float) -> None:
        super().__init__(f"sigma {sigma:.4g} lies outside of {high:.4g} to {low:.4g}")
        self.sigma, self.high, self.low = sigma, high, low


@dataclass(frozen=True)
class Trajectory:
    """States [T, C, ..., H, W] of one picture, in the model's scale, at falling `sigmas` [T].

    Between two of them the way is straight, as Euler's steps are.
    """

    sigmas: torch.Tensor
    states: torch.Tensor

    @classmethod
    def of(cls, seen: dict[float, torch.Tensor]) -> Trajectory:
        """From the states [C, ..., H, W] by noise level, in any order."""
        levels = sorted(seen, reverse=True)
        return cls(torch.tensor(levels, dtype=torch.float64), torch.stack([seen[level] for level in levels]))

    @property
    def ends(self) -> tuple[float, float]:
        """The highest and the lowest noise level."""
        return float(self.sigmas[0]), float(self.sigmas[-1])

    def reaches(self, sigma: float) -> bool:
        """Whether a noise level lies on the way."""
        high, low = self.ends
        return low * (1 - ROUNDING) <= sigma <= high * (1 + ROUNDING)

    def at(self, sigma: float) -> torch.Tensor:
        """The state [C, ..., H, W] at a noise level. Raises OutsideTrajectory beyond the ends."""
        if not self.reaches(sigma):
            raise OutsideTrajectory(sigma, *self.ends)
        after = int((self.sigmas >= sigma).sum())  # the first level below sigma
        if after in (0, len(self.sigmas)):
            return self.states[min(after, len(self.sigmas) - 1)]
        high, low = float(self.sigmas[after - 1]), float(self.sigmas[after])
        part = (high - sigma) / (high - low)
        return self.states[after - 1] if part == 0 else torch.lerp(self.states[after - 1], self.states[after], part)
