"""`dev.py profile`: the node's file without a graph, after any kill, and on Ray."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image

from conditional_balance.engine.profile_file import load
from conditional_balance.nodes.profile import CBProfileSensitivity
from conditional_balance.runtime.profile.clusters import load_clusters
from conditional_balance.runtime.profile.parts import Parts
from conditional_balance.runtime.profile.profiling import Measurement, Settings, profile_model
from demo import models
from devtools import profile as profile_command
from devtools.server import ROOT

STYLES, EACH = 3, 7
LEVELS = 2
SIDE = 192


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Three styles of seven scenes each, named by their scene: colours of its own laid over each scene's stripes."""
    folder = tmp_path_factory.mktemp("series")
    dice = torch.Generator().manual_seed(0)
    scenes = torch.rand(EACH, 1, SIDE // 16, SIDE // 16, generator=dice)
    drawn = torch.nn.functional.interpolate(scenes, (SIDE, SIDE), mode="bilinear")
    for style in range(STYLES):
        paper, ink = torch.rand(2, 3, 1, 1, generator=dice)
        (folder / f"style {style}").mkdir()
        for number, one in enumerate(paper + (ink - paper) * drawn):
            pixels = (255 * one.movedim(0, -1).clamp(0, 1)).round().byte().numpy()
            Image.fromarray(pixels).save(folder / f"style {style}" / f"scene {'abcdefg'[number]}.png")
    return folder


def command(pictures: Path, out: Path, *more: str) -> list[str]:
    script = [sys.executable, ROOT / "devtools" / "run.py", ROOT / "devtools" / "profile.py"]
    levels = ["--noise-levels", str(LEVELS), "--size", str(SIDE)]
    return [str(part) for part in (*script, "demo", pictures, out, *levels, *more)]


# As many threads as each of two actors has on this machine: another number of them rounds moments otherwise.
THREADS = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2))}


def run(pictures: Path, out: Path, *more: str) -> subprocess.CompletedProcess:
    done = subprocess.run(command(pictures, out, *more), env=os.environ | THREADS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def loaded():
    return models.load_unet(), models.load_clip(), models.load_vae()


@pytest.fixture(scope="module")
def by_node(pictures: Path, loaded):
    """What the node makes of the same folder."""
    model, clip, vae = loaded
    prompt = clip.encode_from_tokens_scheduled(clip.tokenize("a picture"))
    with torch.inference_mode():
        out = CBProfileSensitivity.execute(
            model=model, clusters=load_clusters(pictures, 1000), vae=vae, positive=prompt, measures="style",
            noise_levels=LEVELS, features="q and k", seed=0, aspect="from images", size=SIDE,
            distance="jensen_shannon",
        )  # fmt: skip
    return out.args[0]


def assert_same(found, expected, to: float) -> None:
    assert found.layers == expected.layers and torch.equal(found.sigmas, expected.sigmas)
    pairs = [(found.scores, expected.scores), (found.low, expected.low), (found.high, expected.high)]
    pairs += list(zip(found.content, expected.content, strict=True))
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=to, atol=to)
    told = [{k: v for k, v in one.provenance.items() if k not in ("time", "cost")} for one in (found, expected)]
    assert told[0] == told[1]
    passes = [one.provenance["cost"]["forward_passes"] for one in (found, expected)]
    assert passes[0] == passes[1] == STYLES * EACH * LEVELS


@pytest.fixture(scope="module")
def by_command(pictures: Path, tmp_path_factory):
    """What the command makes of it in one process."""
    out = tmp_path_factory.mktemp("command") / "mine.safetensors"
    done = run(pictures, out)
    assert not out.with_name("mine.safetensors.work").exists()
    assert "Saved as" in done.stdout and "about" in done.stdout
    return load(out)


def test_it_makes_the_file_of_the_node(by_command, by_node) -> None:
    """As near as sums in another order allow: the command may have more threads than the tests' process."""
    assert_same(by_command, by_node, 1e-4)


def parts_of(loaded, pictures: Path, folder: Path, **settings) -> Parts:
    model, clip, vae = loaded
    prompt = clip.encode_from_tokens_scheduled(clip.tokenize("a picture"))
    chosen = {"name": "style", "levels": LEVELS, "features": ("q", "k"), "distance": "jensen_shannon", "seed": 0,
              "aspect": "from images", "side": SIDE} | settings  # fmt: skip
    measurement = Measurement(model, load_clusters(pictures, 1000), vae, prompt, None, Settings(**chosen))
    return Parts(measurement, folder, {"positive": "a picture"})


def do_all(parts: Parts, stop_after: int = 1000) -> int:
    """Do what is not done; returns how much that was."""
    did = 0
    for group in parts.groups:
        for task in (*parts.tasks(group, "moments"), *parts.tasks(group, "sums")):
            if not parts.done(task) and did < stop_after:
                parts.do(task)
                did += 1
        if all(parts.done(task) for task in parts.tasks(group, "sums")):
            parts.forget_moments(group)
    return did


@pytest.fixture(scope="module")
def never_stopped(loaded, pictures: Path, tmp_path_factory):
    """By how many pairs are looked at: a run in parts that nothing has stopped, and how many tasks it did."""

    @cache
    def done(most_pairs: int) -> tuple[Parts, int]:
        with torch.inference_mode():
            parts = parts_of(loaded, pictures, tmp_path_factory.mktemp("whole") / "work", most_pairs=most_pairs)
            return parts, do_all(parts)

    return done


@pytest.mark.parametrize("most_pairs", [250_000, 60])
def test_a_run_that_was_stopped_anywhere_goes_on(
    loaded, pictures: Path, never_stopped, tmp_path: Path, most_pairs: int
) -> None:
    """All pairs, and a sample in several groups: each stopped after every third task, and never."""
    with torch.inference_mode():
        whole, count = never_stopped(most_pairs)
        assert (len(whole.groups) == 1) == (most_pairs > 1000)
        did = []
        while not did or did[-1]:
            again = parts_of(loaded, pictures, tmp_path / "again", most_pairs=most_pairs)
            (tmp_path / "again" / ".left.part").write_bytes(b"half a file")
            did.append(do_all(again, 3))
        assert sum(did) == count and len(did) > 2
        one, other = whole.finish(), again.finish()
    assert torch.equal(one.scores, other.scores) and torch.equal(one.low, other.low)
    assert ("pairs" in one.provenance) == (most_pairs < 1000)
    assert one.provenance["cost"]["forward_passes"] == STYLES * EACH * LEVELS
    assert not list((tmp_path / "again").glob("moments*"))


def test_a_sample_in_parts_is_the_sample_of_the_node(loaded, pictures: Path, never_stopped) -> None:
    model, clip, vae = loaded
    prompt = clip.encode_from_tokens_scheduled(clip.tokenize("a picture"))
    with torch.inference_mode():
        parts, _ = never_stopped(60)
        settings = parts.run.settings
        expected = profile_model(model, load_clusters(pictures, 1000), vae, prompt, None, settings)
        torch.testing.assert_close(parts.finish().scores, expected.scores, rtol=1e-6, atol=1e-6)


def test_a_folder_of_another_run_is_refused(loaded, pictures: Path, tmp_path: Path) -> None:
    with torch.inference_mode():
        parts_of(loaded, pictures, tmp_path / "work")
        with pytest.raises(ValueError, match="another run"):
            parts_of(loaded, pictures, tmp_path / "work", seed=1)


def test_a_folder_cut_into_other_tasks_is_refused(
    loaded, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an earlier version may have left it: its files would count some pairs twice."""
    with torch.inference_mode():
        parts_of(loaded, pictures, tmp_path / "work")
        monkeypatch.setattr("conditional_balance.runtime.profile.parts.CHUNKS", 2)
        with pytest.raises(ValueError, match="another run"):
            parts_of(loaded, pictures, tmp_path / "work")


def test_wrong_names_are_one_sentence_and_paths_are_those_of_the_folder_one_is_in(tmp_path: Path) -> None:
    (here := tmp_path / "mes pi\u00e8ces").mkdir()
    command = [sys.executable, ROOT / "dev.py", "profile", "none.safetensors", "pictures", "out"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert done.returncode and f"There is no checkpoint {here / 'none.safetensors'}:" in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(ValueError, match="is a folder: name the file to write"):
        profile_command.main(["demo", str(tmp_path), str(here)])


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--aspect=4x3", "'4x3' is not from images or a width and a height"),
        ("--aspect=3:0", "'3:0' is not from images"),
        ("--noise-levels=0", "'0' is not a whole number from 1 to 50"),
        ("--noise-levels=300", "from 1 to 50"),
        ("--limit=-1", "'-1' is not a whole number of 2 or more"),
        ("--size=-64", "from 0 to 4096"),
        ("--pairs=0", "of 1 or more"),
        ("--seed=x", "'x' is not a whole number from 0"),
    ],
)
def test_a_number_outside_its_range_is_refused_before_anything_is_loaded(option: str, words: str, capsys) -> None:
    with pytest.raises(SystemExit):
        profile_command.parser().parse_args(["demo", "pictures", "out", option])
    assert words in capsys.readouterr().err
    assert vars(profile_command.parser().parse_args(["demo", "pictures", "out", "--aspect=16:9"]))["aspect"] == "16:9"


needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed.")


@needs_ray
def test_two_actors_of_which_one_is_killed_make_the_same_file(pictures: Path, by_command, tmp_path: Path) -> None:
    out = tmp_path / "mine.safetensors"
    started = subprocess.Popen(
        command(pictures, out, "--ray", "--actors", "2"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    killed: list[int] = []

    def kill_one() -> None:
        """The actor that wrote the first moments dies at once."""
        while started.poll() is None and not killed:
            if list((tmp_path / "mine.safetensors.work").glob("moments*")):
                actors = [pid for pid in _children(started.pid) if "Looker" in _name(pid)]
                if actors:
                    os.kill(actors[0], signal.SIGKILL)
                    killed.append(actors[0])
            time.sleep(0.05)

    thread = threading.Thread(target=kill_one)
    thread.start()
    text, _ = started.communicate(timeout=600)
    thread.join()
    assert started.returncode == 0, text
    assert killed and "2 actors" in text
    assert_same(load(out), by_command, 1e-6)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _children(pid: int) -> list[int]:
    """All processes below one, by /proc."""
    parents: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            after = status.read_text().rpartition(")")[2].split()
            parents.setdefault(int(after[1]), []).append(int(status.parent.name))
        except (OSError, IndexError):
            continue
    found, waiting = [], [pid]
    while waiting:
        below = parents.get(waiting.pop(), [])
        found += below
        waiting += below
    return found
