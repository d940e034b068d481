"""Trains the demo models on a machine without network: `python3 demo/gpu.py PREPARED RESULTS [OPTION ...]`.

PREPARED is the folder that `python dev.py train prepare` has made, options are those of `demo/train.py`;
torch with numpy is all that must be there. Checkpoints and weights stay in PREPARED/trained, so that a second call goes
on where the first stopped. RESULTS receives the weights and sheets as pieces of one archive of at most 15 MiB each;
`python3 demo/gpu.py --join RESULTS FOLDER` makes files of them again.
"""

from __future__ import annotations

import io
import sys
import tarfile
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIECE = 15 * 2**20


def main(arguments: list[str]) -> None:
    if len(arguments) < 2:
        raise SystemExit(__doc__)
    if arguments[0] == "--join":
        return join(Path(arguments[1]), Path(arguments[2]))
    prepared, results, *rest = arguments
    out = Path(prepared).resolve() / "trained"
    make_importable(Path(prepared).resolve())
    from demo import train

    try:
        train.main([*rest, "--prepared", prepared, "--out", str(out), "--processes", "1"])
    finally:
        split(out, Path(results))


def make_importable(prepared: Path) -> None:
    """This repository and ComfyUI's networks before, carried packages behind what is installed here."""
    sys.path[:0] = [str(prepared / "comfyui"), str(ROOT)]
    sys.path.append(str(prepared / "site"))
    try:
        import PIL  # noqa: F401
    except ImportError:  # ComfyUI's networks import it and use none of it
        sys.modules["PIL"] = types.ModuleType("PIL")
        sys.modules["PIL"].Image = sys.modules["PIL"].ImageDraw = sys.modules["PIL"].ImageFont = None
    import comfy.cli_args
    import torch

    comfy.cli_args.args.cpu = not torch.cuda.is_available()


def split(out: Path, results: Path) -> None:
    """All but checkpoints, as `trained.tar.00` and so on."""
    results.mkdir(parents=True, exist_ok=True)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as files:
        for path in sorted(out.iterdir()):
            if path.suffix in (".safetensors", ".png", ".ppm", ".txt", ".log"):
                files.add(path, path.name)
    content = archive.getvalue()
    for number, start in enumerate(range(0, len(content), PIECE)):
        (results / f"trained.tar.{number:02}").write_bytes(content[start : start + PIECE])
    print(f"{len(content) / 2**20:.1f} MiB in {results}", flush=True)


def join(results: Path, folder: Path) -> None:
    pieces = sorted(results.glob("trained.tar.*"))
    if not pieces:
        raise SystemExit(f"There are no pieces trained.tar.* in {results}.")
    folder.mkdir(parents=True, exist_ok=True)
    content = b"".join(piece.read_bytes() for piece in pieces)
    with tarfile.open(fileobj=io.BytesIO(content)) as files:
        for member in files.getmembers():
            if member.isfile() and "/" not in member.name:
                (folder / member.name).write_bytes(files.extractfile(member).read())


if __name__ == "__main__":
    main(sys.argv[1:])
