"""One real server for the whole test session: CPU, a base directory of its own, this pack and the demo nodes loaded."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devtools.server import Server, started


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server; `server.run(prompt)` runs an API-format prompt and returns what its output nodes showed."""
    comfy, base = Path(os.environ["COMFYUI_PATH"]), tmp_path_factory.mktemp("base")
    with started(Path(sys.executable), comfy, base, cpu=True) as running:
        yield running


@pytest.fixture(scope="session")
def object_info(server: Server) -> dict:
    """What the server says about every node."""
    return json.loads(server.get("/object_info"))
