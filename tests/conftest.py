"""Starts ComfyUI, loads this pack under the name `conditional_balance`, and offers tiny models.

Without COMFYUI_PATH only the tests of `engine` and `render` are collected: they need no ComfyUI.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Servers and commands that tests start take this over too: where all cores are busy, several threads of one process
# wait for one another in loops, and sampling takes many times the processor time of a single thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

gc.disable()  # until everything is imported, which makes much and throws nothing away
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for devtools; ComfyUI goes before it
from devtools.bootstrap import import_engine_only, import_pack, start_comfy

os.environ["CONDITIONAL_BALANCE_CPU"] = "1"
torch.set_num_threads(1)
settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")
if "COMFYUI_PATH" in os.environ:
    pytest_plugins = ["comfy_server"]
    # As on most GPUs, and the fastest on a CPU; servers that tests start have what ComfyUI chooses for a CPU.
    start_comfy("--use-pytorch-cross-attention")
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


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Lets the garbage collector leave out torch, ComfyUI and thousands of tests, none of which is ever thrown away."""
    gc.collect()
    gc.freeze()
    gc.enable()


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
