"""One file for each attribution method, or for several that differ in one function. Every file here is found."""

from __future__ import annotations

import importlib
import pkgutil

from .base import METHODS, Method

__all__ = ["METHODS", "Method"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
