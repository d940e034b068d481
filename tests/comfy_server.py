"""One real server for the whole test session: CPU, a base directory of its own, this pack and the demo nodes loaded.

Beside them a node that gives tiny models of every family, and the picture that ComfyUI's input folder comes with.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from devtools.server import Server, started


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server; `server.run(prompt)` runs an API-format prompt and returns what its output nodes showed."""
    comfy, base = Path(os.environ["COMFYUI_PATH"]), tmp_path_factory.mktemp("base")
    for folder in ("custom_nodes", "input"):
        (base / folder).mkdir()
    here = str(Path(__file__).parent)
    node = f"import sys\nsys.path.append({here!r})\nfrom tiny_family_node import NODE_CLASS_MAPPINGS\n"
    (base / "custom_nodes" / "tiny_family.py").write_text(node)
    Image.effect_mandelbrot((96, 64), (-2, -1, 1, 1), 40).save(base / "input" / "example.png")
    with started(Path(sys.executable), comfy, base, cpu=True) as running:
        yield running


@pytest.fixture(scope="session")
def object_info(server: Server) -> dict:
    """What the server says about every node."""
    return json.loads(server.get("/object_info"))
