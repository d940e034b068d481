"""How a subject is looked for."""

from __future__ import annotations

from dataclasses import dataclass

from .methods import METHODS, Method

DEFAULT = "auto"
WEIGHTINGS = ("uniform", "by layer", "by head")


@dataclass(frozen=True)
class AttributionSettings:
    """How a subject is found. `layers` is the gate grammar or "auto"; `probes` are backward passes of `grad_sam`.

    `weighting` of layers and heads in the other maps' mean: all alike, or by how far scaling them moves the prediction.
    `propagation` is how many times the map spreads along fine self-attention.
    """

    method: str = "jvp"
    layers: str = DEFAULT
    weighting: str = "uniform"
    propagation: int = 0
    probes: int = 2

    def __post_init__(self) -> None:
        for name, value, known in (("method", self.method, METHODS), ("weighting", self.weighting, WEIGHTINGS)):
            if value not in known:
                raise ValueError(f"'{name}' is '{value}'; choose one of {', '.join(known)}.")

    @property
    def way(self) -> Method:
        """The method itself."""
        return METHODS[self.method]
