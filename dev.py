#!/usr/bin/env python3
"""Everything a developer of this pack does, in one script that needs nothing but Python 3.10 or newer.

    python dev.py demo            runs the demo workflow on a real ComfyUI and puts its pictures into out/
    python dev.py test [ARGS]     runs the linter, the type checker and every test; ARGS go to pytest
    python dev.py serve           opens ComfyUI with this pack and the demo nodes
    python dev.py bench [NAME]    runs a benchmark, or lists them
    python dev.py train [PART]    trains the demo models again
    python dev.py profile ...     measures a checkpoint on folders of pictures, on one machine or on many (--help)
    python dev.py pictures [NAME] makes the pictures of README, templates and help pages again, or of one demo workflow

ComfyUI is the one that COMFYUI_PATH names; else the one this pack is installed in; else a pinned release, fetched once
into .cache/. Python is the one that runs this script if it has all that is needed; else .venv, made here, into which
only what is missing is installed. To choose a build of torch yourself, install it in the Python that runs this script.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036 - for those who have another
    sys.exit("dev.py needs Python 3.10 or newer; this is " + sys.version.split()[0] + ".")

from devtools import browser, comfyui, environment, server, workflow
from devtools import profile as profile_command
from devtools.steps import Failed, print_any_text

ROOT = Path(__file__).resolve().parent
OUT = ROOT / "out"
TRAIN_TOOLS = ["resvg-py==0.5.0"]  # draws the demo world's SVGs
TEST_TOOLS = ["pytest", "pytest-xdist", "hypothesis", "ruff", "pyright", "matplotlib", *TRAIN_TOOLS]
BENCH_TOOLS = ["matplotlib", *TRAIN_TOOLS]
MOST_WORKERS = 4  # each needs, with its server, 2 GB of memory
PORT = 8190  # ComfyUI's own is 8188, and often in use


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit status."""
    commands = {"demo": demo, "test": test, "serve": serve, "bench": bench, "train": train, "profile": profile}
    commands["pictures"] = pictures
    if not arguments or arguments[0] not in commands:
        print(__doc__)
        return 0 if arguments in ([], ["-h"], ["--help"]) else 2
    try:
        return commands[arguments[0]](arguments[1:])
    except Failed as failure:
        print(f"\ndev.py stopped. {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped by you", file=sys.stderr)
        return 130


def ready(tools: list[str]) -> tuple[comfyui.ComfyUI, environment.Environment]:
    """Find ComfyUI and a Python for it, saying so."""
    comfy = comfyui.find()
    env = environment.prepare(comfy, tools)
    print(f"ComfyUI {comfy.version} in {comfy.path}\nPython in {env.python}\n", flush=True)
    return comfy, env


def test(arguments: list[str]) -> int:
    """The linter, the type checker, then every test; fails when one of them does."""
    comfy, env = ready(TEST_TOOLS)
    if os.environ.get("CONDITIONAL_BALANCE_RAY"):
        env = environment.with_ray(env)
    browser.prepare()
    lint = _run([env.python, "-m", "ruff", "check", ROOT], comfy, ROOT)
    pyright = [env.python, "-m", "pyright", "--project", ROOT, "--pythonpath", env.python]
    types = _run(pyright, comfy, ROOT, PYTHONPATH=str(comfy.path))
    workers = ["-n", min((os.cpu_count() or 1) + 1, MOST_WORKERS), "--dist", "worksteal"]  # one waits for a browser
    return _run([env.python, "-m", "pytest", "-q", *workers, *arguments], comfy, ROOT) or lint or types


def bench(arguments: list[str]) -> int:
    """One benchmark with its arguments, or the list of them."""
    if not arguments:
        return _list_benchmarks()
    script = ROOT / "benchmarks" / f"{arguments[0].replace('-', '_')}.py"
    if not script.exists():
        raise Failed(f"There is no benchmark '{arguments[0]}'. `python dev.py bench` lists them.")
    comfy, env = ready(BENCH_TOOLS)
    return _run([env.python, ROOT / "devtools" / "run.py", script, *arguments[1:]], comfy)


def _list_benchmarks() -> int:
    sources = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "benchmarks").glob("[a-z]*.py"))}
    scripts = {path: ast.parse(source) for path, source in sources.items() if '"__main__"' in source}
    for script, parsed in scripts.items():
        about = ast.get_docstring(parsed) or ""
        print(f"{script.stem.replace('_', '-'):16} {about.partition(chr(10))[0]}")
    return 0


def train(arguments: list[str]) -> int:
    """The training of the demo models, from nothing or from where it stopped."""
    comfy, env = ready(TRAIN_TOOLS)
    return _run([env.python, ROOT / "devtools" / "run.py", ROOT / "demo" / "train.py", *arguments], comfy)


def profile(arguments: list[str]) -> int:
    """A checkpoint measured without a graph; Ray is installed only when it is asked for."""
    options = profile_command.parser().parse_args(arguments)
    comfy, env = ready([])
    if options.ray is not None:
        env = environment.with_ray(env)
    return _run([env.python, ROOT / "devtools" / "run.py", ROOT / "devtools" / "profile.py", *arguments], comfy)


def pictures(arguments: list[str]) -> int:
    """Every picture that the repository ships, from the demo workflows."""
    comfy, env = ready(BENCH_TOOLS)
    script = [ROOT / "devtools" / "run.py", ROOT / "devtools" / "pictures.py"]
    return _run([env.python, *script, *(["--cpu"] if env.cpu else []), *arguments], comfy)


def _run(command: list[str | Path | int], comfy: comfyui.ComfyUI, folder: Path | None = None, **variables: str) -> int:
    """Run in the folder where this script was called, so that paths given there mean what they say, or in another."""
    env = os.environ | {"COMFYUI_PATH": str(comfy.path)} | variables
    return subprocess.run([str(part) for part in command], cwd=folder, env=env).returncode


def serve(arguments: list[str]) -> int:
    """The ordinary server and front end, until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="dev.py serve")
    parser.add_argument("--port", type=int, default=PORT, help=f"where to listen on this machine (default: {PORT})")
    port = parser.parse_args(arguments).port
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends with this script
    comfy, env = ready([])
    with server.started(env.python, comfy.path, comfyui.CACHE / "base", env.cpu, port, previews=True) as running:
        print(f"Open {running.url} in a browser. Ctrl-C stops the server; its log is {running.log}.", flush=True)
        while True:
            running.check()
            time.sleep(1)


def demo(arguments: list[str]) -> int:
    """The demo workflows on a fresh server; their pictures end up in out/."""
    argparse.ArgumentParser(prog="dev.py demo").parse_args(arguments)
    workflows = sorted((ROOT / "demo" / "example_workflows").glob("*.json"))
    if not workflows:
        raise Failed("There is no demo workflow in demo/example_workflows/ of this copy of the repository.")
    comfy, env = ready([])
    base = comfyui.CACHE / "demo"
    shutil.rmtree(base / "output", ignore_errors=True)  # so that file names do not count on from the last run
    with server.started(env.python, comfy.path, base, env.cpu) as running:
        known = json.loads(running.get("/object_info"))
        for path in workflows:
            _run_demo(running, path, known)
    return 0


def _run_demo(running: server.Server, path: Path, known: dict) -> None:
    graph = json.loads(path.read_text(encoding="utf-8"))
    print(f"running {path.name}", flush=True)
    start = time.monotonic()
    prompt = workflow.to_prompt(graph, known)
    outputs = running.run(prompt, tell=lambda line: print(f"  {time.monotonic() - start:3.0f} s  {line}", flush=True))
    print(f"  done in {time.monotonic() - start:.0f} s", flush=True)
    for picture in (picture for output in outputs.values() for picture in output.get("images", [])):
        if picture["type"] == "output":
            print(f"  {_save(running, picture)}")


def _save(running: server.Server, picture: dict[str, str]) -> Path:
    target = OUT / picture["subfolder"] / picture["filename"]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(running.fetch(picture))
    return target.relative_to(ROOT)


if __name__ == "__main__":
    print_any_text()
    sys.exit(main(sys.argv[1:]))
