"""Runs a benchmark on a machine without network: `python3 devtools/elsewhere.py FOLDER SCRIPT [ARGUMENT ...]`.

FOLDER is what `python dev.py bench gpu --prepare FOLDER` has made where there is a network: ComfyUI's own Python files,
and small packages that such machines often lack. Beside it and this repository the machine needs NEEDED. Nodes are not
loaded.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CARRIED = ("einops", "psutil", "safetensors", "torchsde", "tqdm", "trampoline", "typing_extensions")
NEEDED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "scipy": "scipy",
    "transformers": "transformers",
    "PIL": "Pillow",
    "yaml": "PyYAML",
}
"""Packages that must be there already, by the name under which they are imported."""
PARTS = ("comfy", "comfy_execution", "utils")
LARGEST = 1_000_000  # bytes: tokenizers' vocabularies stay behind


def prepare(comfy: Path, folder: Path) -> None:
    """Copy what a machine must be brought: `comfyui/` of the ComfyUI at `comfy`, and `site/`."""
    files = [*comfy.glob("*.py"), comfy / "LICENSE", *(file for part in PARTS for file in (comfy / part).rglob("*"))]
    for file in files:
        if file.suffix in (".py", ".json", "") and file.is_file() and file.stat().st_size < LARGEST:
            place = folder / "comfyui" / file.relative_to(comfy)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
    for name in CARRIED:
        _copy_package(name, folder / "site")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"prepared {folder}: {size / 2**20:.1f} MiB")


def _copy_package(name: str, target: Path) -> None:
    found = importlib.util.find_spec(name)
    assert found is not None and found.origin is not None, name
    source = Path(found.origin)
    target.mkdir(parents=True, exist_ok=True)
    if source.name == "__init__.py":
        leave = shutil.ignore_patterns("__pycache__", "tests")
        shutil.copytree(source.parent, target / name, dirs_exist_ok=True, ignore=leave)
    else:
        shutil.copy(source, target / source.name)


def main(arguments: list[str]) -> None:
    if len(arguments) < 2:
        raise SystemExit(__doc__)
    folder, script = Path(arguments[0]).resolve(), str(Path(arguments[1]).resolve())
    if not (folder / "comfyui" / "comfy").is_dir():
        raise SystemExit(f"{folder} holds no comfyui/: make it with `python dev.py bench gpu --prepare FOLDER`.")
    os.environ["COMFYUI_PATH"] = str(folder / "comfyui")
    sys.path[0] = str(ROOT)
    sys.path.append(str(folder / "site"))  # behind what is installed here
    if lacking := [package for name, package in NEEDED.items() if importlib.util.find_spec(name) is None]:
        raise SystemExit(f"This Python lacks {', '.join(lacking)}: install it, or choose another Python.")
    from devtools.bootstrap import import_engine_only, start_comfy

    sys.argv = [script, *arguments[2:]]
    start_comfy("--use-pytorch-cross-attention")
    import_engine_only()
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
