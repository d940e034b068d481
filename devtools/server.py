"""Starts an ordinary ComfyUI server in a base directory of its own, with this pack in it, and runs workflows on it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import frontend
from .comfyui import ROOT
from .steps import Failed

PACKS = {"conditional_balance": ROOT, "conditional_balance_demo": ROOT / "demo"}
START_SECONDS = 120.0
TELL_SECONDS = 5.0
MODEL_FOLDERS = ("checkpoints", "loras", "controlnet", "vae", "clip")


@dataclass(frozen=True)
class Server:
    """A running server; `base` holds its input, output and custom_nodes, `log` what it prints."""

    process: subprocess.Popen
    port: int
    base: Path
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> bytes:
        """The body at a path of the server. Raises urllib.error.HTTPError for anything but success."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read()

    def submit(self, prompt: Mapping[str, Any], workflow: Mapping[str, Any] | None = None) -> str:
        """Queue an API-format prompt and return its id. Raises Failed with the server's reasons if it is refused.

        Pictures that the run saves carry the prompt, and `workflow`, the graph that the front end opens from them.
        """
        extra = {"extra_pnginfo": {"workflow": workflow}} if workflow else {}
        body = json.dumps({"prompt": prompt, "extra_data": extra}).encode()
        request = urllib.request.Request(self.url + "/prompt", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["prompt_id"]
        except urllib.error.HTTPError as refusal:
            raise Failed(f"The server refused the workflow: {_reasons(json.load(refusal))}") from refusal

    def run(
        self,
        prompt: Mapping[str, Any],
        timeout: float = 600.0,
        tell: Callable[[str], None] = lambda line: None,
        workflow: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Run an API-format prompt to its end; returns what each output node showed, by node id.

        Pictures carry `workflow` as `submit` says.
        Every few seconds `tell` hears the last line of the log, which has ComfyUI's own progress.
        Raises Failed when a node fails, the server dies, or `timeout` seconds pass.
        """
        prompt_id = self.submit(prompt, workflow)
        start = told = time.monotonic()
        while time.monotonic() < start + timeout:
            self.check()
            history = json.loads(self.get(f"/history/{prompt_id}"))
            if prompt_id in history:
                return _outputs(history[prompt_id])
            if time.monotonic() > told + TELL_SECONDS:
                told = time.monotonic()
                tell(self.log_tail(1))
            time.sleep(0.2)
        raise Failed(f"The workflow did not end within {timeout:.0f} s.\n{self.log_tail()}")

    def fetch(self, picture: Mapping[str, str]) -> bytes:
        """The file of a picture named in a node's output."""
        return self.get("/view?" + urllib.parse.urlencode(picture))

    def check(self) -> None:
        """Raises Failed, with the end of its log, if the server has died."""
        if self.process.poll() is not None:
            raise Failed(f"{self.log_tail()}\n\nThe server stopped by itself (exit status {self.process.returncode}).")

    def log_tail(self, lines: int = 25) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.replace("\r", "\n").splitlines()[-lines:])


def _reasons(refusal: Mapping[str, Any]) -> str:
    reasons = [refusal["error"]["message"]] if isinstance(refusal.get("error"), dict) else [str(refusal.get("error"))]
    for node in (refusal.get("node_errors") or {}).values():
        reasons += [f"{node['class_type']}: {error['message']} ({error['details']})" for error in node["errors"]]
    return "; ".join(reasons)


def _outputs(entry: Mapping[str, Any]) -> dict[str, Any]:
    if entry["status"]["status_str"] == "success":
        return entry["outputs"]
    for event, data in entry["status"]["messages"]:
        if event == "execution_error":
            trace = "".join(data["traceback"])
            raise Failed(f"{trace}\nThe node {data['node_type']} failed: {data['exception_message'].strip()}")
    raise Failed("The workflow was interrupted.")


@contextmanager
def started(
    python: Path, comfy: Path, base: Path, cpu: bool, port: int | None = None, previews: bool = False
) -> Iterator[Server]:
    """A server that has answered once; it is stopped on the way out. Raises Failed when it does not come up.

    With `previews`, samplers show the picture as it forms.
    """
    if port is not None:
        _check_free(port)
    _lay_out(base)
    port = port or _free_port()
    log = base / "server.log"
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with log.open("wb") as output:
        command = [python, comfy / "main.py", *_arguments(base, port, cpu, previews)]
        process = subprocess.Popen([str(part) for part in command], stdout=output, stderr=subprocess.STDOUT, env=env)
    try:
        server = Server(process, port, base, log)
        _wait_for(server)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def _arguments(base: Path, port: int, cpu: bool, previews: bool) -> list[str | Path]:
    listen = ["--listen", "127.0.0.1", "--port", str(port), "--base-directory", base, "--disable-auto-launch"]
    alone = ["--database-url", "sqlite:///:memory:", "--disable-api-nodes"]
    shown = frontend.wanted()
    alone += ["--front-end-root", str(shown)] if shown else []
    alone += ["--preview-method", "auto"] if previews else []
    return [*listen, *alone, *(["--cpu"] if cpu else [])]


def _check_free(port: int) -> None:
    """Raises Failed when something listens on a port of this machine."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise Failed(f"Port {port} is taken, perhaps by another ComfyUI: stop that, or choose another with --port.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _lay_out(base: Path) -> None:
    """A base directory with the folders ComfyUI expects, and the packs that exist linked into custom_nodes."""
    for folder in ("custom_nodes", "input", "output", "temp", "user", *(f"models/{name}" for name in MODEL_FOLDERS)):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for name, pack in PACKS.items():
        link = base / "custom_nodes" / name
        if (pack / "__init__.py").exists() and link.resolve() != pack.resolve():
            _link(link, pack)


def _link(link: Path, target: Path) -> None:
    windows = os.name == "nt"
    if os.path.lexists(link):  # it points elsewhere: the repository was moved or copied
        os.rmdir(link) if windows else os.unlink(link)
    if windows:
        import _winapi  # a junction, unlike a symbolic link, needs no rights

        _winapi.CreateJunction(str(target), str(link))
    else:
        link.symlink_to(target, target_is_directory=True)


def _wait_for(server: Server) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        server.check()
        try:
            server.get("/system_stats")
            return
        except OSError:
            time.sleep(0.2)
    raise Failed(f"{server.log_tail()}\n\nThe server did not answer within {START_SECONDS:.0f} s.")
