"""Everything that training needs, in one folder, for machines without network and with little more than torch."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from demo.world import atlas
from demo.world.words import new_vocabulary

CARRIED = ("einops", "tqdm", "psutil", "safetensors", "typing_extensions")  # what ComfyUI's networks import
CLASSES = (
    "comfy.ops",
    "comfy.cldm.cldm",
    "comfy.clip_model",
    "comfy.ldm.flux.model",
    "comfy.ldm.modules.diffusionmodules.openaimodel",
)
FILES_OF = """
import importlib, json, os, sys
sys.path.insert(0, os.environ["COMFYUI_PATH"])
import comfy.cli_args
comfy.cli_args.args.cpu = True
for name in sys.argv[1:]:
    importlib.import_module(name)
paths = [getattr(module, "__file__", None) for name, module in sys.modules.items() if name.split(".")[0] == "comfy"]
print(json.dumps(sorted(path for path in paths if path)))
"""


def prepare(folder: Path) -> None:
    """`atlas.bin`, `words.json`, `comfyui/` (the networks' few files) and `site/` (small packages they import)."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "atlas.bin").exists():
        print("drawing the atlas: a few minutes", flush=True)
        part = folder / "atlas.part"  # what is there counts as whole
        atlas.pack(atlas.draw_atlas(), part)
        os.replace(part, folder / "atlas.bin")
    new_vocabulary().save(folder / "words.json")
    copy_networks(folder / "comfyui")
    for name in CARRIED:
        copy_package(name, folder / "site")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"prepared {folder}: {size / 2**20:.1f} MiB", flush=True)


def copy_networks(target: Path) -> None:
    """ComfyUI's files that the networks' classes import, and no others."""
    root = Path(os.environ["COMFYUI_PATH"])
    order = [sys.executable, "-c", FILES_OF, *CLASSES]
    for file in json.loads(subprocess.run(order, capture_output=True, text=True, check=True).stdout.splitlines()[-1]):
        place = target / Path(file).relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    shutil.copy(root / "LICENSE", target / "LICENSE")


def copy_package(name: str, target: Path) -> None:
    source = Path(importlib.import_module(name).__file__)
    target.mkdir(parents=True, exist_ok=True)
    if source.name == "__init__.py":
        leave = shutil.ignore_patterns("__pycache__", "tests")
        shutil.copytree(source.parent, target / name, dirs_exist_ok=True, ignore=leave)
    else:
        shutil.copy(source, target / source.name)
