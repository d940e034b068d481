"""One real server for the whole test session: CPU, a base directory of its own, this pack and the demo nodes loaded."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devtools.server import PACKS, Server, started


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server; `server.run(prompt)` runs an API-format prompt and returns what its output nodes showed."""
    comfy, base = Path(os.environ["COMFYUI_PATH"]), tmp_path_factory.mktemp("base")
    if not (PACKS["conditional_balance_demo"] / "weights" / "controlnet.safetensors").exists():
        _with_new_control_net(base / "custom_nodes" / "conditional_balance_demo")
    with started(Path(sys.executable), comfy, base, cpu=True) as running:
        yield running


def _with_new_control_net(pack: Path) -> None:
    """A copy of the demo nodes with a ControlNet as it is before training, where no trained one is shipped."""
    from safetensors.torch import save_file

    from demo import models

    shutil.copytree(PACKS["conditional_balance_demo"], pack, ignore=shutil.ignore_patterns("__pycache__"))
    net = models.new_control_net("cpu", unet=models.load_unet().model.diffusion_model)
    weights = {name: weight.half().contiguous() for name, weight in net.state_dict().items()}
    save_file(weights, str(pack / "weights" / "controlnet.safetensors"))


@pytest.fixture(scope="session")
def object_info(server: Server) -> dict:
    """What the server says about every node."""
    return json.loads(server.get("/object_info"))
