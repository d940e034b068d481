"""What the layer map costs the front end: drawing SDXL's 70 layers x 14 noise levels, and loading the page."""

from __future__ import annotations

import json
import os
import statistics
import sys
from pathlib import Path

from benchmarks._command import command_line, keep
from devtools import browser, comfyui
from devtools.server import started

PROFILE = "sdxl-base-1.0.style.published.safetensors"
GOALS = {"drawing in ms": 16}


def main() -> None:
    chosen = command_line(__doc__, rounds=15).parse_args()
    if reason := browser.missing():
        raise SystemExit(reason)
    comfy = Path(os.environ["COMFYUI_PATH"])
    with started(Path(sys.executable), comfy, comfyui.CACHE / "face", cpu=True) as running:
        script = Path(__file__).with_suffix(".mjs")
        seen = json.loads(browser.visited(script, url=running.url, profile=PROFILE, rounds=chosen.rounds))
    loads = {name: statistics.median(times) for name, times in seen["loads"].items()}
    drawings = sorted(seen["drawings"])
    results = {
        "drawing in ms": {"median": round(statistics.median(drawings), 2), "slowest of 50": round(drawings[-1], 2)},
        "page load in ms": {name: round(time) for name, time in loads.items()},
        "page load, with the pack over without": round(loads["with"] / loads["without"], 3),
        "goals": GOALS,
    }
    print(keep(results, chosen))


if __name__ == "__main__":
    main()
