"""Starts ComfyUI without its server and loads this pack, the way tests, benchmarks and training need them."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def start_comfy(*flags: str) -> None:
    """Make `comfy` and `nodes` of the ComfyUI at COMFYUI_PATH importable, on the CPU where torch has no accelerator.

    `flags` are ComfyUI's own.

    ComfyUI parses the command line when it is first imported, so it must not see the arguments of pytest or a script.
    """
    logging.getLogger().addFilter(_not_of_sound)
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    argv, sys.argv = sys.argv, [sys.argv[0], *_cpu_flag(), *flags]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
        import utils.extra_config  # noqa: F401 - as main.py does, before nodes.py puts comfy/utils.py in front of it
    finally:
        sys.argv = argv


def _not_of_sound(record: logging.LogRecord) -> bool:
    """Leaves out what ComfyUI says where torchaudio is missing: no picture needs it, and it would follow a summary."""
    return "torchaudio missing" not in record.getMessage()


def _cpu_flag() -> list[str]:
    import torch

    has_accelerator = torch.cuda.is_available() or torch.backends.mps.is_available()
    return [] if has_accelerator and "CONDITIONAL_BALANCE_CPU" not in os.environ else ["--cpu"]


def import_pack() -> None:
    """Load the repository root as the package `conditional_balance`: its `nodes/` must not shadow ComfyUI's `nodes`."""
    spec = importlib.util.spec_from_file_location(
        "conditional_balance", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["conditional_balance"] = module
    spec.loader.exec_module(module)


def import_engine_only() -> None:
    """Make `conditional_balance.engine` and `.render`, which need no ComfyUI, importable where there is none.

    Where ComfyUI's models can be imported, `.runtime` can be as well.
    """
    package = types.ModuleType("conditional_balance")
    package.__path__ = [str(ROOT)]
    sys.modules["conditional_balance"] = package
