"""Guidance by style: what Layer Contrast brings beside style sharing and plain CFG, what it loses, and what it costs.

References show one subject and are painted by the model under their own captions. Of each, two scenes are painted from
prompts that name no style: one of another subject, one of two, before another place. *style distance* is the judge's,
to the reference. *content*: all subjects and the place are seen as prompted. *leak* is the log-probability with which
the judge sees the reference's subject, less that of the same prompt and seed without style; *leaked*: it is what the
judge names. *spread* is the deviation of latents over that of the same scene without style: above 1, colours burn.
*forwards* are pictures that the network is run on, by picture and step.
"""

from __future__ import annotations

import argparse
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.harness import CFG, PROFILES, Demo, Painted, Paintings
from conditional_balance.engine.gates import LayerGate, RankedGate, WrittenGate
from conditional_balance.engine.grammar import parse
from conditional_balance.engine.profile_file import load
from conditional_balance.runtime.inject.contrast import LayerContrast, contrast_layers
from conditional_balance.runtime.inject.style import StyleInjection, inject_style
from demo import models
from demo.judge import style_distance
from demo.world import scenes
from demo.world.sets import KNOWN_HANDS
from demo.world.subjects import WELL_DRAWN

PROFILE = PROFILES / "demo.style.safetensors"
LAMBDA = 0.43
NONE, SHARED = "no style", "sharing, ranked 0.43"
MEASURES = ("style distance", "content", "subjects", "place", "leak", "leaked", "spread")


class Way(NamedTuple):
    """How style is taken: shared in layers, as guidance of a strength along layers, and the strength of CFG."""

    shared: str = ""
    strength: float = 0.0
    rescale: float = 0.0
    layers: str = "ranked"
    cfg: float = CFG


WAYS = {
    NONE: Way(),
    "no style, cfg 6": Way(cfg=6.0),
    "StyleAligned: sharing, all layers": Way("all"),
    SHARED: Way("ranked"),
    "sharing, ranked 0.43, cfg 6": Way("ranked", cfg=6.0),
    "contrast 0.5": Way(strength=0.5),
    "contrast 1": Way(strength=1.0),
    "contrast 1.5": Way(strength=1.5),
    "contrast 3": Way(strength=3.0),
    "contrast 5": Way(strength=5.0),
    "contrast 1.5, rescale 0.7": Way(strength=1.5, rescale=0.7),
    "contrast 3, rescale 0.7": Way(strength=3.0, rescale=0.7),
    "contrast 5, rescale 0.7": Way(strength=5.0, rescale=0.7),
    "contrast 3, all layers": Way(strength=3.0, layers="all"),
    "both: sharing and contrast 1": Way("ranked", strength=1.0),
    "both: sharing and contrast 3": Way("ranked", strength=3.0),
}
BESIDE_SHARING = [name for name in WAYS if name not in (NONE, SHARED, "no style, cfg 6")]


def main() -> None:
    chosen = harness.options(__doc__, references=8, prompts=1, steps=8, weights=models.WEIGHTS)
    torch.set_num_threads(1)
    studio = Studio(chosen)
    measured: dict[str, list[Tensor]] = {name: [] for name in WAYS}
    for index in range(chosen.references):
        case = Case(studio, index)
        for name, found in case.judged().items():
            measured[name].append(found)
        print(f"{index + 1} of {chosen.references} references", flush=True)
        if chosen.pictures:
            harness.sheet(case.sheet(), len(case.wanted), chosen.pictures / f"guidance {index}.png")
    results = summarised({name: torch.stack(parts) for name, parts in measured.items()}, chosen)
    harness.report(results | {"forwards": forwards(Case(studio, 0))}, chosen)


class Studio:
    """The model, and where its paintings are kept."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.demo, self.chosen = Demo(weights=chosen.weights), chosen
        self.ranked = RankedGate(load(PROFILE), LAMBDA)
        files = (*harness.weights_of(chosen.weights), PROFILE)
        settings = f"{chosen.prompts} {chosen.steps} {chosen.seed}"
        self.kept = Paintings("guidance", *files, " ".join(WELL_DRAWN), settings)

    def gate(self, layers: str) -> LayerGate:
        return self.ranked if layers == "ranked" else WrittenGate(parse("all"))


class Case:
    """One reference and the scenes that take its style."""

    def __init__(self, studio: Studio, index: int) -> None:
        chosen = studio.chosen
        dice = torch.Generator().manual_seed(1000 * (chosen.seed + 1) + index)
        hand = (KNOWN_HANDS[index % len(KNOWN_HANDS)],)
        self.studio, self.demo, self.index = studio, studio.demo, index
        self.specs = scenes.random_specs(1, dice, hand, WELL_DRAWN, alone=1.0)
        self.wanted = harness.scenes_beside(self.specs, chosen.prompts, dice)
        self.prompts = harness.captions_without_style(self.wanted)

    @cached_property
    def reference(self) -> Painted:
        return harness.painted_reference(self.demo, self.specs, self.index, self.studio.chosen.steps)

    def latents(self, name: str) -> Tensor:
        file = f"{self.index:03} {name}".replace(":", "")
        return self.studio.kept.of(file, lambda: self.paint(WAYS[name], self.prompts))

    def paint(self, way: Way, prompts: list[str]) -> Tensor:
        self.demo.cfg = way.cfg
        return self.demo.sample(self.model(way), prompts, self.index, self.studio.chosen.steps)

    def model(self, way: Way, remember: bool = True) -> Any:
        model, source = self.demo.model, self.reference.source
        if way.shared:
            model = inject_style(model, StyleInjection(self.studio.gate(way.shared), source, remember=remember))
        if way.strength:
            injection = StyleInjection(self.studio.gate(way.layers), source, remember=remember)
            model = contrast_layers(model, LayerContrast(injection, way.strength, way.rescale))
        return model

    def judged(self) -> dict[str, Tensor]:
        """[scenes, MEASURES] of every way; leak and spread against those without style."""
        theirs = int(self.specs.subject[0, 0])
        plain = self.latents(NONE)
        without = self.seen(NONE)[:, :, theirs].amax(1)
        found = {}
        for name in WAYS:
            seen, pictures = self.seen(name), self.demo.decode(self.latents(name))
            right, _ = harness.as_prompted(seen, self.wanted)
            place = harness.place_as_prompted(self.demo.judge, pictures, self.wanted)
            style = (self.demo.judge.style(each) for each in (pictures, self.reference.picture))
            leaked = (seen.argmax(2) == theirs).any(1)
            spread = self.latents(name).flatten(1).std(1) / plain.flatten(1).std(1)
            columns = style_distance(*style), right & place, right, place, seen[:, :, theirs].amax(1) - without
            found[name] = torch.stack([each.float() for each in (*columns, leaked, spread)], 1)
        return found

    def seen(self, name: str) -> Tensor:
        return harness.subjects_seen(self.demo.judge, self.demo.decode(self.latents(name)), self.wanted)

    def sheet(self) -> Tensor:
        """The reference, and a row for every way."""
        first = self.reference.picture.expand(len(self.wanted), -1, -1, -1)
        return torch.cat([first, *(self.demo.decode(self.latents(name)) for name in WAYS)])


def forwards(case: Case) -> dict[str, dict[str, float]]:
    """Pictures that the network is run on, by picture and step: under a reference for the first time, and again."""
    network, rows = case.demo.model.model.diffusion_model, []
    counted = network.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    found: dict[str, dict[str, float]] = {}
    case.reference  # noqa: B018 - painted before anything is counted
    try:
        for name, way in WAYS.items():
            found[name] = {}
            for told, remember in (("first seed", False), ("second seed", True)):
                rows.clear()
                case.demo.cfg = way.cfg
                case.demo.sample(case.model(way, remember), case.prompts[:1], 1, case.studio.chosen.steps)
                if remember:
                    rows.clear()
                    case.demo.sample(case.model(way, remember), case.prompts[:1], 2, case.studio.chosen.steps)
                found[name][told] = sum(rows) / case.studio.chosen.steps
    finally:
        counted.remove()
    return found


def summarised(measured: dict[str, Tensor], chosen: argparse.Namespace) -> dict[str, Any]:
    """Of [references, scenes, MEASURES]: means of every way, and what each has beyond sharing."""
    return {
        "pairs": measured[NONE].shape[0] * measured[NONE].shape[1],
        "references": chosen.references,
        "steps": chosen.steps,
        "ways": {name: row(values) for name, values in measured.items()},
        "less sharing": {name: row(measured[name] - measured[SHARED]) for name in BESIDE_SHARING},
    }


def row(values: Tensor) -> dict[str, Any]:
    return harness.means(values, MEASURES)


if __name__ == "__main__":
    main()
