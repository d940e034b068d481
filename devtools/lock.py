"""Renews devtools/locks/: `python devtools/lock.py`, with uv installed.

python.txt holds versions and hashes of what the pinned ComfyUI and dev.py's tools need, on Python 3.10 and newer and on
every system. torch is left out: it comes from wherever the user has it, and without it nothing else changes. ray.txt
holds Ray, for those who ask for it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dev import BENCH_TOOLS, TEST_TOOLS, TRAIN_TOOLS
from devtools.comfyui import CACHE, VERSION, ComfyUI
from devtools.environment import LOCK, RAY_LOCK, TORCHES, UNNAMED

HEAD = "# Made by devtools/lock.py with uv: versions and hashes of the packages that dev.py installs.\n"


RAY = "ray==2.60.0"


def main() -> None:
    pinned = ComfyUI(CACHE / f"ComfyUI-{VERSION}", own=False)
    needs = {*pinned.requirements, *UNNAMED, *TEST_TOOLS, *BENCH_TOOLS, *TRAIN_TOOLS} - set(TORCHES)
    with tempfile.TemporaryDirectory() as scratch:
        wanted, never = Path(scratch) / "wanted.in", Path(scratch) / "never.txt"
        wanted.write_text("\n".join(sorted(needs)) + "\n", encoding="utf-8")
        never.write_text("".join(f"{name} ; python_version < '0'\n" for name in TORCHES), encoding="utf-8")
        _lock(LOCK, wanted, "--override", never, "--upgrade")
        wanted.write_text(f"{RAY}\n", encoding="utf-8")
        _lock(RAY_LOCK, wanted, "--constraint", LOCK)


def _lock(lock: Path, wanted: Path, *how: str | Path) -> None:
    options = ["--universal", "--generate-hashes", "--python-version", "3.10", "--only-binary", ":all:"]
    command = ["uv", "pip", "compile", *options, "--no-header", "--no-annotate", "--quiet", *how, wanted]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    lock.write_text(HEAD + made.stdout, encoding="utf-8")


if __name__ == "__main__":
    main()
