"""Starts ComfyUI, loads this pack under the name `conditional_balance`, and offers tiny models.

Without COMFYUI_PATH only the tests of `engine` and `render` are collected: they need no ComfyUI.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for devtools; ComfyUI goes before it
from devtools.bootstrap import import_engine_only, import_pack, start_comfy

os.environ["CONDITIONAL_BALANCE_CPU"] = "1"
torch.set_num_threads(1)
settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")
if "COMFYUI_PATH" in os.environ:
    pytest_plugins = ["comfy_server"]
    start_comfy()
    import_pack()
    import tiny  # needs ComfyUI
else:
    import_engine_only()
    collect_ignore_glob = ["test_*.py", "contracts/*", "demo/*", "workflows/*"]


@pytest.fixture(autouse=True)
def gradients_on() -> Iterator[None]:
    """Benchmarks turn gradients off for their whole process; the next test has them again."""
    yield
    torch.set_grad_enabled(True)


@pytest.fixture(scope="session")
def sd15_model():
    """A tiny SD1.5 as ModelPatcher, shared by all tests: clone it before you change it."""
    return tiny.tiny_model("sd15")


@pytest.fixture(scope="session")
def sdxl_model():
    """A tiny SDXL as ModelPatcher, shared by all tests: clone it before you change it."""
    return tiny.tiny_model("sdxl")


@pytest.fixture(scope="session")
def clip():
    """A tiny CLIP with the real tokenizer."""
    return tiny.tiny_clip()


@pytest.fixture(scope="session")
def vae():
    """A tiny VAE."""
    return tiny.tiny_vae()
