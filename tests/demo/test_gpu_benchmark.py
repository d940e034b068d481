"""The benchmark for a GPU is tried before one is rented: every part in the smallest shape, what is brought is whole."""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from devtools import elsewhere

ROOT = Path(__file__).resolve().parents[2]
OURS = ("benchmarks", "conditional_balance", "demo", "devtools")
BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py"))


def smallest() -> argparse.Namespace:
    return argparse.Namespace(**gpu.SMALLEST, json=None, prepare=None)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_finds_what_it_imports(name: str) -> None:
    try:
        importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as lacking:
        assert not str(lacking.name).startswith(OURS), lacking
        pytest.skip(f"needs {lacking.name}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_part_runs_in_the_smallest_shape(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "half", lambda device: dtype)
    monkeypatch.setattr(gpu, "MODELS", {"SD3.5 Medium": gpu.Case.sd35_medium})
    (parts,) = gpu.measured(smallest())["models"].values()
    assert len(parts) == 4
    assert not [part for part in parts.values() if "not measured" in part]
    assert parts["style, first row of two"]["over plain"]["plain"] == 1.0


def test_what_cannot_run_is_named_and_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*given: Any) -> Any:
        raise KeyError("no such card")

    class Fine:
        parts = staticmethod(lambda: {"a": broken, "b": lambda: {"seconds": 1}})

    monkeypatch.setattr(gpu, "MODELS", {"broken": broken, "fine": lambda *given: Fine})
    found = gpu.measured(argparse.Namespace(**gpu.SMALLEST, json=tmp_path / "gpu.json"))["models"]
    assert found["broken"]["model"]["not measured"] == "KeyError: 'no such card'"
    assert found["fine"] == {"a": {"not measured": "KeyError: 'no such card'"}, "b": {"seconds": 1}}
    assert '"seconds": 1' in (tmp_path / "gpu.json").read_text()


def test_what_is_brought_holds_the_networks_and_is_small(tmp_path: Path) -> None:
    elsewhere.prepare(Path(os.environ["COMFYUI_PATH"]), tmp_path)
    for file in ("comfyui/comfy/samplers.py", "comfyui/folder_paths.py", "site/torchsde/__init__.py"):
        assert (tmp_path / file).is_file()
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 30 * 2**20


def test_a_folder_that_holds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no comfyui/"):
        elsewhere.main([str(tmp_path), "benchmarks/gpu.py"])
