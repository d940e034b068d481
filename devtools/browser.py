"""A browser for the tests of the front end: Chromium that is there or can be installed, driven by playwright-core."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from .comfyui import CACHE, ROOT
from .steps import Failed, step

PLAYWRIGHT_MODULE = CACHE / "browser" / "node_modules" / "playwright-core" / "index.mjs"
LOCKS = ROOT / "devtools" / "locks" / "browser"
COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Microsoft/Edge/Application/msedge.exe",
)


def find_browser() -> str | None:
    """The path of a Chromium, Chrome or Edge on this machine."""
    commands = (shutil.which(command) for command in COMMANDS)
    return next((path for path in (*commands, *PLACES) if path and Path(path).exists()), None)


def missing() -> str | None:
    """What the browser tests lack on this machine, in a sentence; None when they can run."""
    if not shutil.which("node"):
        return "There is no Node.js: install it to run the browser tests."
    if find_browser() is None:
        return "There is no Chromium, Chrome or Edge: install one to run the browser tests."
    if not PLAYWRIGHT_MODULE.exists():
        return "playwright-core is not installed yet: run `python dev.py test` once."
    return None


def prepare() -> None:
    """Install what can be: Chromium where we are root on Debian (a container), playwright-core into the cache.

    Elsewhere, and without network, the tests skip with the reason; with CI=true, where nobody would read it, that is a
    failure.
    """
    try:
        _install()
    except Failed as failure:
        print(f"  {str(failure).splitlines()[-1]} The tests of the front end are left out.", flush=True)
    if os.environ.get("CI") and (reason := missing()):
        raise Failed(f"{reason} (CI is set, so they may not be skipped.)")


def _install() -> None:
    if find_browser() is None and _is_root() and shutil.which("apt-get"):
        step("reading the list of system packages", ["apt-get", "update", "-qq"], "Check the network.")
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]
        step(
            "installing Chromium",
            install,
            "Install Chromium by hand.",
            os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        )
    npm = shutil.which("npm")
    if npm and find_browser() and not PLAYWRIGHT_MODULE.exists():
        target = CACHE / "browser"
        target.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(LOCKS / name, target)
        install = [npm, "ci", "--prefix", target, "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        step("installing playwright-core", install, "Check the network.")


def visited(script: Path, **orders: Any) -> str:
    """What a script that drives the browser prints. It gets its orders, and where to find the browser, as JSON."""
    orders |= {"playwright": str(PLAYWRIGHT_MODULE), "browser": find_browser()}
    command = ["node", script, json.dumps(orders)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=1800)
    if done.returncode:
        raise Failed(f"{script.name} failed:\n{done.stderr}")
    return done.stdout


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0
