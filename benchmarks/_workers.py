"""Processes that work on the jobs of a benchmark, and what they find."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Hashable, Iterator, Sequence
from multiprocessing.pool import Pool
from typing import Any, TypeVar

import torch

Job = TypeVar("Job")
Found = TypeVar("Found")
Name = TypeVar("Name", bound=Hashable)


def forked(count: int, share: Callable[..., None], *shared: Any) -> Pool:
    """Processes of one thread each that see the objects of this one: `share` makes them globals of the benchmark."""
    return multiprocessing.get_context("fork").Pool(count, _prepare, (share, shared))


def _prepare(share: Callable[..., None], shared: tuple[Any, ...]) -> None:
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    share(*shared)


def outcomes(pool: Pool, run: Callable[[Job], Found], jobs: Sequence[Job], every: int) -> Iterator[Found]:
    """What `run` finds, in the order of the jobs; after `every` jobs it says how many are done."""
    for number, found in enumerate(pool.imap(run, jobs), 1):
        yield found
        if number % every == 0:
            print(f"{number} of {len(jobs)}", flush=True)


def gathered(
    pool: Pool, run: Callable[[Job], Found], jobs: Sequence[Job], name_of: Callable[[Job], Name], every: int
) -> dict[Name, list[Found]]:
    """The same under each job's name."""
    rows: dict[Name, list[Found]] = {}
    for job, found in zip(jobs, outcomes(pool, run, jobs, every), strict=True):
        rows.setdefault(name_of(job), []).append(found)
    return rows
