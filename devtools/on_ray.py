"""The tasks of a profiling run on Ray: one loaded model an actor, on this machine or on a cluster.

Every machine sees the repository, ComfyUI, the checkpoint, the pictures and the work folder under the same paths; tasks
and results go through the work folder. So Ray carries names only, and an actor that is killed loses one task's work.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import torch

from devtools.bootstrap import ROOT

SILENT = 30.0  # seconds after which it is said that nothing moves
DEATHS = 20  # of one actor before the run ends


class Looker:
    """An actor: a loaded model that does one task after another."""

    def __init__(self, options: dict[str, Any], threads: int) -> None:
        sys.path.insert(0, str(ROOT))
        from devtools.bootstrap import import_pack, start_comfy

        if threads:
            torch.set_num_threads(threads)
        if "conditional_balance" not in sys.modules:
            start_comfy("--use-pytorch-cross-attention")
            import_pack()
        from devtools.profile import parts_of

        with torch.inference_mode():
            self.parts = parts_of(options)

    def do(self, task: tuple[str, int, int]) -> int:
        """Do a task, unless it is done; returns the process, for those who want to see it."""
        from conditional_balance.runtime.profile.parts import Task

        with torch.inference_mode():
            if not self.parts.done(Task(*task)):
                self.parts.do(Task(*task))
        return os.getpid()


def run(options: dict[str, Any], parts: Any, teller: Any) -> None:
    """Do all tasks of a run. Raises ValueError when the cluster cannot be reached or its actors keep dying."""
    with connected(options["ray"]):
        Run(lookers(options), parts, teller).until_done()


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Ray at an address, or one that lives here as long as the block."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    known = {"runtime_env": {"env_vars": {"PYTHONPATH": path, "COMFYUI_PATH": os.environ["COMFYUI_PATH"]}}}
    try:
        ray.init(address=address or "local", include_dashboard=False, log_to_driver=False, **known)
    except (ConnectionError, ValueError) as error:
        raise ValueError(
            f"Ray at '{address}' does not answer: start it, set RAY_AUTH_MODE=token in the environment if it asks for "
            "a token, or leave the address out."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def lookers(options: dict[str, Any]) -> list[Any]:
    """Actors that load the model, as many and with as much of the cluster each as the options say."""
    have, cpus = ray.cluster_resources(), options["cpus"]
    gpus = options["gpus"] if options["gpus"] is not None else float(have.get("GPU", 0) > 0)
    count = options["actors"] or max(1, int(have["GPU"] / gpus if gpus else have.get("CPU", 1)))
    threads = 0 if gpus else max(1, int(have.get("CPU", 1)) // count)
    made = ray.remote(Looker).options(num_gpus=gpus, num_cpus=cpus, max_restarts=DEATHS, max_task_retries=DEATHS)
    print(f"{count} actors, each with {cpus:g} CPUs and {gpus:g} GPUs.", flush=True)
    return [made.remote(options, threads) for _ in range(count)]


class Run:
    """Actors, what each is doing, and what can be done next."""

    def __init__(self, actors: Sequence[Any], parts: Any, teller: Any) -> None:
        self.parts, self.teller, self.idle = parts, teller, list(actors)
        self.busy: dict[Any, tuple[Any, Any]] = {}
        self.ready, self.missing = deque(), {}
        for group in parts.groups:
            self._begin(group)

    def _begin(self, group: int) -> None:
        todo = [task for task in self.parts.tasks(group, "moments") if not self.parts.done(task)]
        self.missing[group] = len(todo)
        self.ready.extend(todo)
        if not todo:
            self._compare(group)

    def _compare(self, group: int) -> None:
        """A group's moments are there: its pairs come next, before other groups' pictures."""
        todo = [task for task in self.parts.tasks(group, "sums") if not self.parts.done(task)]
        self.missing[group] = len(todo)
        self.ready.extendleft(todo)

    def until_done(self) -> None:
        while self.ready or self.busy:
            while self.ready and self.idle:
                actor, task = self.idle.pop(), self.ready.popleft()
                self.busy[actor.do.remote(tuple(task))] = actor, task
            done, _ = ray.wait(list(self.busy), timeout=SILENT)
            for one in done:
                self._finish(one)
            if not done:
                self._say_that_nothing_moves()

    def _finish(self, done: Any) -> None:
        actor, task = self.busy.pop(done)
        try:
            ray.get(done)
        except ray.exceptions.RayActorError as error:
            raise ValueError(f"A Ray actor could not start, or died {DEATHS} times over: {error}") from error
        except ray.exceptions.RayTaskError as error:
            raise ValueError(f"A Ray actor failed: {error.cause}") from error
        self.idle.append(actor)
        self.teller.done(task)
        self.missing[task.group] -= 1
        if self.missing[task.group] == 0:
            if task.kind == "moments":
                self._compare(task.group)
            else:
                self.parts.forget_moments(task.group)

    def _say_that_nothing_moves(self) -> None:
        """Tasks may be long; actors that the cluster has no room for wait for ever."""
        have, free = ray.cluster_resources(), ray.available_resources()
        room = ", ".join(f"{free.get(name, 0):g} of {have.get(name, 0):g} {name}s free" for name in ("CPU", "GPU"))
        print(
            f"  nothing has finished for {SILENT:.0f} s ({len(self.busy)} tasks under way; {room}). With less free "
            "than an actor takes it waits; lower --cpus, --gpus or --actors.",
            flush=True,
        )
