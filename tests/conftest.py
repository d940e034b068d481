"""Puts ComfyUI (from COMFYUI_PATH) and this pack, under the name `conditional_balance`, on the import path."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def start_comfy() -> None:
    """Import ComfyUI for the CPU; its argument parser must not see pytest's own arguments."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    argv, sys.argv = sys.argv, [sys.argv[0], "--cpu"]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args  # noqa: F401
    finally:
        sys.argv = argv


def import_pack() -> None:
    """Load the repository root as the package `conditional_balance`, so that its `nodes/` never shadows ComfyUI's."""
    spec = importlib.util.spec_from_file_location(
        "conditional_balance", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["conditional_balance"] = module
    spec.loader.exec_module(module)


start_comfy()
import_pack()
