"""Gates: which attention layers take part, how strongly, at which noise level."""

from .averaged import changes, mean_weights
from .base import LayerGate, ToSigma, inside
from .combined import OPERATIONS, CombinedGate, ScaledGate, WindowedGate, WindowReversed, pinned, windowed
from .policies import POLICIES, Policy, UnknownPolicy, parameters, policy_of
from .ranked import RankedGate, ScoresNotFinite, layer_count
from .written import WrittenGate

__all__ = [
    "OPERATIONS",
    "POLICIES",
    "CombinedGate",
    "LayerGate",
    "Policy",
    "RankedGate",
    "ScaledGate",
    "ScoresNotFinite",
    "ToSigma",
    "UnknownPolicy",
    "WindowReversed",
    "WindowedGate",
    "WrittenGate",
    "changes",
    "inside",
    "layer_count",
    "mean_weights",
    "parameters",
    "pinned",
    "policy_of",
    "windowed",
]
