"""All kept results and the tables made of them, again, in a stated order: `--list` shows it.

First whether the demo world is fit to judge by, then what is asked of its UNet and of its transformer, then costs. It
takes many hours on two cores, less where pictures are already painted. What needs a UNet trained on (see `bench bars
--weights`) is left out, and said, unless `--repeated` and `--control` name the folders.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BEST = '--content "best drawn, no medium"'
BARS = 'bars --references 12 --judged 8 --steps 8 --only "best drawn, no medium"'
BARS_TRANSFORMER = 'bars --model transformer --references 12 --judged 8 --steps 8 --only "no medium"'
BALANCE_BEST = f"balance --setting known --steps 8 {BEST}"
BALANCE_TRANSFORMER = f"balance --model transformer --setting known --references 16 --steps 8 {BEST}"
BALANCE_DRAWN = 'balance --setting drawn --steps 8 --content "best drawn"'
COMMANDS = (
    ("bars", "bars --references 32 --judged 400 --steps 8"),
    ("subjects", "subjects --scenes 24"),
    ("subjects_640", "subjects --scenes 640 --settings 3x8"),
    ("bars_cfg4.5", f"{BARS} --cfg 4.5"),
    ("bars_cfg6", f"{BARS} --cfg 6"),
    ("ranking", "ranking --levels 2"),
    ("layers", "layers --references 4 --prompts 2 --steps 8 --rounds 4"),
    ("suggest", "suggest --references 12"),
    ("balance", "balance --setting known --references 16 --steps 8 --chart docs/balance.png"),
    ("balance_best", f"{BALANCE_BEST} --references 32 --chart docs/balance_best.png"),
    ("balance_drawn", f"{BALANCE_DRAWN} --references 32 --prompts 4"),
    ("bars_share1", f"{BARS} --share 1"),
    ("bars_share2", f"{BARS} --share 2"),
    ("bars_share4", f"{BARS} --share 4"),
    ("bars_repeated", f"{BARS} --weights REPEATED"),
    ("bars_control", f"{BARS} --weights CONTROL"),
    ("balance_repeated", f"{BALANCE_BEST} --references 32 --weights REPEATED"),
    ("balance_control", f"{BALANCE_BEST} --references 32 --only ranked --weights CONTROL"),
    ("balance_repeated_more", f"{BALANCE_BEST} --references 64 --seed 1 --only random --weights REPEATED"),
    ("balance_unseen", "balance --setting unseen --steps 8"),
    ("swaps", "swaps"),
    ("balance_transformer", BALANCE_TRANSFORMER),
    ("balance_transformer_keep", f"{BALANCE_TRANSFORMER} --position keep"),
    ("layers_transformer", "layers --model transformer --references 4 --prompts 2 --steps 8 --rounds 4"),
    ("positions", f"positions --references 16 --steps 8 {BEST}"),
    ("bars_transformer", BARS_TRANSFORMER),
    ("bars_transformer_keep", f"{BARS_TRANSFORMER} --position keep"),
    ("bars_transformer_untwist", f"{BARS_TRANSFORMER} --position untwist"),
    ("attribution_transformer", "attribution --model transformer --seed 1"),
    ("blend_transformer", "blend --model transformer"),
    ("structure", "structure --chart docs/structure.png"),
    ("structure_best", f"structure --references 24 --rounds 1 {BEST}"),
    ("attribution", "attribution --seed 1"),
    ("attribution_best", f"attribution --seed 1 {BEST}"),
    ("blend", "blend"),
    ("blend_best", f"blend --count 24 {BEST}"),
    ("references", "references"),
    ("guidance", "guidance"),
    ("lora", "lora"),
    ("microcond", "microcond --rounds 9"),
    ("scale", "scale --sizes 500 5000 --levels 2 --side 64 --series 0"),
    ("scale", "scale --sizes 500 5000 --levels 12 --side 64 --series 0"),
    ("scale", "scale --sizes --levels 12 --side 64 --actors 2 --series 192"),
    ("profile", "profile"),
    ("style", "style"),
    ("face", "face"),
)


class Command(NamedTuple):
    result: str  # the file in results, without its ending
    benchmark: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(("python", "dev.py", "bench", self.benchmark, *self.arguments))


def commands() -> Iterator[Command]:
    for result, line in COMMANDS:
        benchmark, *arguments = shlex.split(line)
        yield Command(result, benchmark, (*arguments, "--json", f"benchmarks/results/{result}.json"))


def main() -> None:
    names = list(dict.fromkeys(result for result, _ in COMMANDS))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="show the commands and run none")
    parser.add_argument("--begin", choices=names, metavar="RESULT", default=names[0], help="go on with this one")
    parser.add_argument("--only", nargs="+", choices=names, metavar="RESULT", default=names, help="make these alone")
    parser.add_argument("--repeated", type=Path, help="folder of a UNet trained on with --repeated 1")
    parser.add_argument("--control", type=Path, help="of one trained on so with --repeated 0")
    chosen = parser.parse_args()
    wanted = set(names[names.index(chosen.begin) :]) & set(chosen.only)
    for command in commands():
        if command.result not in wanted:
            continue
        if chosen.list:
            print(command)
        else:
            folders = {"REPEATED": chosen.repeated, "CONTROL": chosen.control}
            made(command, folders)
    if not chosen.list:
        run("tables", ())


def made(command: Command, folders: dict[str, Path | None]) -> None:
    for name, folder in folders.items():
        if name in command.arguments and folder is None:
            print(f"{command.result}: left out, as --{name.lower().replace('_', '-')} names no folder", flush=True)
            return
    print(f"{command.result}: {command}", flush=True)
    arguments = (str(folders[part].resolve()) if folders.get(part) else part for part in command.arguments)
    if run(command.benchmark, tuple(arguments)):
        sys.exit(f"{command.result} was not made: mend what it says above, and go on with --begin {command.result}.")


def run(benchmark: str, arguments: tuple[str, ...]) -> int:
    script = ROOT / "benchmarks" / f"{benchmark}.py"
    return subprocess.run([sys.executable, ROOT / "devtools" / "run.py", script, *arguments], cwd=ROOT).returncode


if __name__ == "__main__":
    main()
