"""Why per-step and static rankings differ at low lambda: one layer swapped at a time, on the scenes of `balance`.

Each way is a gate of `balance`, or that gate with the layers that set the two rankings apart put in or taken out. A
swap that is the cause moves one ranking's figures to the other's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import balance, harness
from benchmarks._workers import forked, gathered
from benchmarks.balance import MEASURES, Job
from benchmarks.harness import Demo
from conditional_balance.engine.gates import CombinedGate, LayerGate, WrittenGate
from conditional_balance.engine.grammar import parse
from conditional_balance.runtime.inject.style import StyleInjection, StyleSettings, inject_style
from demo import models

KNOWN = "known hands"


class Ways(NamedTuple):
    """The two gates of `balance` that keep the same share of layers."""

    step: LayerGate
    static: LayerGate


def layers(text: str) -> LayerGate:
    return WrittenGate(parse(text))


def both(one: LayerGate, other: LayerGate) -> LayerGate:
    return CombinedGate(one, other, "or")


def common(one: LayerGate, other: LayerGate) -> LayerGate:
    return CombinedGate(one, other, "and")


def without(one: LayerGate, other: LayerGate) -> LayerGate:
    return CombinedGate(one, other, "minus")


SWAPS: Mapping[tuple[float, str], Callable[[Ways], LayerGate]] = MappingProxyType(
    {
        (0.1, "per-step"): lambda ways: ways.step,
        (0.1, "per-step without o5.0"): lambda ways: without(ways.step, layers("o5.0")),
        (0.1, "static"): lambda ways: ways.static,
        (0.1, "static, and o5.0 where per-step has it"): lambda ways: both(
            ways.static, common(ways.step, layers("o5.0"))
        ),
        (0.2, "per-step"): lambda ways: ways.step,
        (0.2, "per-step, and i1.0 throughout"): lambda ways: both(ways.step, layers("i1.0")),
        (0.2, "per-step, and o5.0's queries throughout"): lambda ways: both(ways.step, layers("q:o5.0")),
        (0.2, "static"): lambda ways: ways.static,
        (0.2, "static without i1.0 where per-step shuts it"): lambda ways: without(
            ways.static, without(layers("i1.0"), ways.step)
        ),
        (0.2, "static without o5.0 where per-step shuts it"): lambda ways: without(
            ways.static, without(layers("o5.0"), ways.step)
        ),
    }
)


def main() -> None:
    chosen = harness.options(
        __doc__, references=16, prompts=1, steps=8, cfg=harness.CFG, workers=2, weights=models.WEIGHTS,
        content=harness.WELL,
    )  # fmt: skip
    chosen.model = "unet"  # whose layers are swapped
    torch.set_num_threads(1)
    profile = harness.profile_of(chosen.model, chosen.weights)
    shared = Demo(cfg=chosen.cfg, weights=chosen.weights), None, profile, chosen, *balance.kept(chosen)
    jobs = [(*swap, index) for index in range(chosen.references) for swap in SWAPS]
    with forked(chosen.workers, balance.share_objects, *shared) as pool:
        rows = gathered(pool, measured, jobs, lambda job: job[:2], every=1)
    harness.report(summarised({swap: torch.stack(parts) for swap, parts in rows.items()}, chosen), chosen)


def measured(job: tuple[float, str, int]) -> Tensor:
    """Measures [scenes, MEASURES] of one reference under one way."""
    amount, name, index = job
    kept = Job(KNOWN, f"swap {name}", amount, index)
    latents = balance.PAINTED.of(kept.name, partial(painted, job))
    return balance.MEASURED.of(kept.name, lambda: balance.measures(kept, balance.DEMO.decode(latents)))


def painted(job: tuple[float, str, int]) -> Tensor:
    amount, name, index = job
    reference, wanted = balance.pair(KNOWN, index)
    gates = (balance.gate_of(Job(KNOWN, policy, amount, index)) for policy in ("ranked", "static"))
    sharing = StyleInjection(SWAPS[amount, name](Ways(*gates)), reference.source, StyleSettings(1.0))
    prompts = harness.captions_without_style(wanted)
    model = inject_style(balance.DEMO.model, sharing)
    return balance.DEMO.sample(model, prompts, index, balance.CHOSEN.steps)


def summarised(found: dict[tuple[float, str], Tensor], chosen: Any) -> dict[str, Any]:
    """Means of every way, and what it has beyond the gate that it was made of."""
    base = {swap: (swap[0], swap[1].replace(",", "").split()[0]) for swap in found}
    return {
        "references": chosen.references,
        "steps": chosen.steps,
        "cfg": chosen.cfg,
        "measures": MEASURES,
        "ways": {told(swap): balance.row(values) for swap, values in found.items()},
        "beyond the gate it was made of": {
            told(swap): balance.row(values - found[base[swap]]) for swap, values in found.items() if base[swap] != swap
        },
        "per-step minus static": {
            f"{amount:g}": balance.row(found[amount, "per-step"] - found[amount, "static"]) for amount in (0.1, 0.2)
        },
    }


def told(swap: tuple[float, str]) -> str:
    return f"{swap[0]:g}, {swap[1]}"


if __name__ == "__main__":
    main()
