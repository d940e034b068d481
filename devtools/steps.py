"""Steps of work a person can follow: what is being done, how long it took, and what to do when it fails."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

HEARTBEAT = 3.0  # seconds between dots


class Failed(Exception):
    """A step that did not work: the message says which, and what to do about it."""


def print_any_text() -> None:
    """From now on what a terminal or a file cannot show is printed as escapes, and does not end the script."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")


def step(what: str, command: Sequence[str | Path], cure: str, env: Mapping[str, str] | None = None) -> None:
    """Run a command behind one line that names the step, grows dots while it works, and ends in its seconds.

    Raises Failed with the end of the command's output and the cure when it ends badly.
    """
    print(f"  {what} ", end="", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
        code = _wait(command, output, env)
        seconds = time.monotonic() - start
        if code:
            print(f" failed after {seconds:.0f} s", flush=True)
            raise Failed(f"{_tail(output)}\n\nThe step '{what}' failed. {cure}")
    print(f" {seconds:.0f} s", flush=True)


def _wait(command: Sequence[str | Path], output, env: Mapping[str, str] | None) -> int:
    try:
        process = subprocess.Popen([str(part) for part in command], stdout=output, stderr=subprocess.STDOUT, env=env)
    except OSError as error:
        raise Failed(f"'{command[0]}' cannot be started: {error}") from error
    try:
        while True:
            try:
                return process.wait(HEARTBEAT)
            except subprocess.TimeoutExpired:
                print(".", end="", flush=True)
    finally:
        if process.poll() is None:
            process.kill()


def _tail(output) -> str:
    output.seek(0)
    return "\n".join(output.read().decode(errors="replace").splitlines()[-25:])
