"""Selection policies: how a ranking becomes weights. One file each; this list is their order in the widget."""

from .base import POLICIES, Parameter, Policy, UnknownPolicy, lowest, parameters, policy_of, register
from .per_step import PerStep
from .static import Static

from .budget import Budget  # isort: skip
from .soft import Soft

from .baselines import EvenlySpaced, Random, Reversed  # isort: skip
from .content import Content, LowContent  # isort: skip

__all__ = [
    "POLICIES",
    "Budget",
    "Content",
    "EvenlySpaced",
    "LowContent",
    "Parameter",
    "PerStep",
    "Policy",
    "Random",
    "Reversed",
    "Soft",
    "Static",
    "UnknownPolicy",
    "lowest",
    "parameters",
    "policy_of",
    "register",
]
