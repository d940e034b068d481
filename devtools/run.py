"""Runs a script with ComfyUI started and the pack loaded: python devtools/run.py SCRIPT [ARGS]"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # for devtools and demo; ComfyUI goes before it

from devtools.bootstrap import import_pack, start_comfy
from devtools.steps import print_any_text

if __name__ == "__main__":
    print_any_text()
    sys.argv = sys.argv[1:]
    start_comfy("--use-pytorch-cross-attention")  # as on most GPUs, and the fastest on a CPU
    import_pack()
    runpy.run_path(sys.argv[0], run_name="__main__")
