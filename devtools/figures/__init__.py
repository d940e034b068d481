"""The figure of every node's help page: what it shows, and how it comes out of the demo workflows' runs.

A figure is a function under `@figure`. Those that build on a workflow get its prompt just after it ran, when every
result of it is still cached, and add what else they want to see.
"""

from ..studio import FIGURES, OVERVIEWS
from . import charts, painted, profiles

__all__ = ["FIGURES", "OVERVIEWS", "charts", "painted", "profiles"]
