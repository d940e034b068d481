"""LoRAs at chosen layers: what a style LoRA brings and loses by which layers it acts in, and two LoRAs that share them.

A style LoRA is trained on few drawings of few subjects by a hand, in a medium, that the model never saw; a subject
LoRA on drawings of a subject that it never saw, by the hands that it knows. Scenes show other subjects. *style
distance* is the judge's, to the style's drawings; *content*: subject and place are seen as prompted. *leak* is the
log-probability with which the judge sees a subject of the style's drawings, less that of the same prompt and seed
without the LoRA; *leaked*: it names one of them. Intervals are over scenes, not over LoRAs.
"""

from __future__ import annotations

import argparse
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks import harness
from benchmarks.harness import PROFILES, Demo, Paintings, Truth, described
from conditional_balance.engine.gates import LayerGate, RankedGate, WrittenGate, policy_of
from conditional_balance.engine.grammar import parse
from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.profile_file import load
from conditional_balance.runtime.arch.registry import architecture_of
from conditional_balance.runtime.inject.lora import gate_lora
from demo import models, nets
from demo.judge import style_distance
from demo.training.lora import How, Lessons, train_lora
from demo.world import scenes
from demo.world.scenes import Specs
from demo.world.sets import KNOWN_HANDS
from demo.world.subjects import SUBJECTS, WELL_DRAWN

PROFILE = PROFILES / "demo.style.safetensors"
LAMBDA = 0.43
STYLES = (("streamline-emojis", "chalk"), ("fxemoji", "brick"))  # hands and media that are held out
NEW_SUBJECTS = ("doughnut", "castle")  # one beside each style
DRAWINGS, DRAWN_SUBJECTS = 24, 6
Layers = Sequence[LayerId]
NONE, WHOLE, BOTH, DRAWN = "no LoRA", "whole", "both whole", "drawn"
WAYS = (
    NONE, WHOLE, "profile 0.2", "profile 0.43", "profile, style minus content 0.43", "weight norm 0.43",
    "random 0.43", "B-LoRA's style block (o1)", "all but profile 0.43",
)  # fmt: skip
PAIR_WAYS = (
    NONE, "style LoRA alone", "subject LoRA alone", BOTH, "profile 0.43 and the rest", "random 0.43 and the rest",
    "weight norm 0.43 and the rest", "B-LoRA's two blocks (o1, o0)", "style at profile 0.43, subject whole",
)  # fmt: skip
MEASURES = ("style distance", "hand distance", "content", "subject", "sure of the subject", "place", "leak", "leaked")


def main() -> None:
    chosen = harness.options(
        __doc__, scenes=10, steps=8, train=100, rank=8, prepared=harness.PREPARED, weights=models.WEIGHTS
    )
    torch.set_num_threads(1)
    bench = Bench(chosen)
    cases = [Case(bench, index) for index in range(len(STYLES))]
    found: dict[str, Any] = {"LoRAs": [case.told() for case in cases]}
    ways = {way: torch.cat([case.judged(case.alone, way) for case in cases]) for way in (*WAYS, DRAWN)}
    pairs = {way: torch.cat([case.judged(case.paired, way) for case in cases]) for way in PAIR_WAYS}
    found["style"], found["pair"] = summarised(ways), summarised(pairs)
    found["less whole"] = summarised(less(ways, WHOLE, [w for w in WAYS if w not in (NONE, WHOLE)]))
    found["pair, less both whole"] = summarised(less(pairs, BOTH, PAIR_WAYS[4:]))
    if chosen.pictures:
        for case in cases:
            case.show(chosen.pictures)
    harness.report(found | vars_of(chosen), chosen)


def vars_of(chosen: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(chosen, name) for name in ("scenes", "steps", "train", "rank", "seed")}


class Bench:
    """The models, and where LoRAs and paintings are kept."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.chosen, self.demo, self.truth = chosen, Demo(weights=chosen.weights), Truth(chosen.prepared)
        self.profile = load(PROFILE)
        code = Path(__file__).parent.parent / "demo" / "training" / "lora.py"
        files = harness.weights_of(chosen.weights)
        self.trained = Paintings("lora-weights", *files, code, f"{chosen.train} {chosen.rank} {chosen.seed}").folder
        self.kept = Paintings("lora", *files, code, PROFILE, " ".join(map(str, vars_of(chosen).values())))
        self.layers = architecture_of(self.demo.model).layers

    def lora(self, name: str, specs: Specs, prompts: list[str]) -> dict[str, Tensor]:
        """Trained once, and kept as a file that any loader reads."""
        path = self.trained / f"{name}.safetensors"
        if not path.exists():
            print(f"training {name}", flush=True)
            unet = nets.new_unet("cpu")
            unet.load_state_dict({key: weight.float() for key, weight in load_file(self._unet).items()})
            lessons = self.lessons(specs, prompts)
            how = How(self.chosen.rank, self.chosen.train, seed=self.chosen.seed)
            weights = train_lora(unet.requires_grad_(False), lessons, how)
            save_file(weights, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
        return load_file(path)

    @property
    def _unet(self) -> Path:
        return self.chosen.weights / "unet.safetensors"

    def lessons(self, specs: Specs, prompts: list[str]) -> Lessons:
        [[context, extra]] = self.demo.conditioning([*prompts, ""])
        y = torch.nn.functional.pad(extra["pooled_output"].float(), (0, nets.SIZE_WIDTH))
        return Lessons(self.demo.encode(self.truth.draw(specs)), context.float(), y)

    def ranked(self, share: float, policy: str = "static") -> list[LayerId]:
        """The layers of a ranking of the profile, the same at every noise level, as a LoRA's weights are."""
        gate = RankedGate(self.profile, share, policy_of(policy, {}))
        open_at = gate.weights(1.0, self.layers, self.demo.model.get_model_object("model_sampling").percent_to_sigma)
        return [layer for layer, weight in zip(self.layers, open_at.amax(0).tolist(), strict=True) if weight]

    def at_random(self, count: int, seed: int) -> list[LayerId]:
        return random.Random(seed).sample(list(self.layers), count)

    def heaviest(self, lora: dict[str, Tensor], count: int) -> list[LayerId]:
        """The layers in whose blocks the LoRA adds most to the weights, by the norm of what it adds."""
        heavy: dict[LayerId, float] = defaultdict(float)
        for key, down in lora.items():
            if key.endswith("lora_down.weight"):
                change = lora[key.replace("lora_down", "lora_up")] @ down
                heavy[layer_of(key)] += float(change.square().sum())
        return sorted(self.layers, key=lambda layer: -heavy[layer])[:count]


def layer_of(key: str) -> LayerId:
    """The attention layer in whose block a LoRA's weight is."""
    found = re.match(r"lora_unet_(input|output|middle)_blocks?(?:_(\d+))?_1_transformer_blocks_(\d+)_", key)
    if found is None:
        raise ValueError(f"{key} belongs to no attention layer.")
    return LayerId(found[1], int(found[2] or 0), int(found[3]))


class Scenes(NamedTuple):
    """What is painted to try LoRAs, under prompts without style; `ways` names the layers of style and subject LoRA."""

    told: str
    specs: Specs
    prompts: list[str]
    ways: dict[str, tuple[Layers, Layers]]


class Case:
    """One style, a new subject, and the scenes that are painted with their LoRAs."""

    def __init__(self, bench: Bench, index: int) -> None:
        self.bench, self.demo, self.index, self.subject = bench, bench.demo, index, NEW_SUBJECTS[index]
        self.hand, self.medium = STYLES[index]
        self.dice = torch.Generator().manual_seed(1000 * (bench.chosen.seed + 1) + index)
        known = [name for name in WELL_DRAWN if SUBJECTS.index(name) in bench.truth.atlas.drawn_by(self.hand)]
        shown = [known[at] for at in torch.randperm(len(known), generator=self.dice)[:DRAWN_SUBJECTS]]
        self.shown = torch.tensor([SUBJECTS.index(name) for name in shown])
        self.drawings = self.scenes_of(DRAWINGS, shown)
        self.pictures = self.demo.autoencoded(bench.truth.draw(self.drawings))
        self.style_lora = bench.lora(
            f"style {self.hand} {self.medium}", self.drawings, harness.captions_without_style(self.drawings)
        )
        portraits = scenes.random_specs(DRAWINGS, self.dice, KNOWN_HANDS, (self.subject,), alone=1.0)
        self.subject_lora = bench.lora(f"subject {self.subject}", portraits, scenes.captions(portraits))
        others = self.scenes_of(bench.chosen.scenes, [name for name in known if name not in shown])
        self.alone = Scenes("alone", others, harness.captions_without_style(others), self.ways_alone())
        new = self.scenes_of(bench.chosen.scenes, [self.subject])
        self.paired = Scenes("paired", new, harness.captions_without_style(new), self.ways_paired())

    def scenes_of(self, count: int, subjects: Sequence[str]) -> Specs:
        """Scenes of one subject in this case's one style: its hand, its medium, and the medium's parameters."""
        specs = scenes.random_specs(count, self.dice, (self.hand,), tuple(subjects), (self.medium,), 1.0, 0.0)
        style = torch.Generator().manual_seed(self.index)
        one = scenes.random_specs(1, style, (self.hand,), media=(self.medium,), plain=0.0)
        return specs.in_style_of(one[torch.zeros(count, dtype=torch.long)])

    def ways_alone(self) -> dict[str, tuple[Layers, Layers]]:
        bench, all_layers = self.bench, self.bench.layers
        ranked = bench.ranked(LAMBDA)
        count = len(ranked)
        styles = {
            NONE: (),
            WHOLE: all_layers,
            "profile 0.2": bench.ranked(0.2),
            "profile 0.43": ranked,
            "profile, style minus content 0.43": bench.ranked(LAMBDA, "style, low content"),
            "weight norm 0.43": bench.heaviest(self.style_lora, count),
            "random 0.43": bench.at_random(count, self.index),
            "B-LoRA's style block (o1)": [layer for layer in all_layers if str(layer).startswith("o1.")],
            "all but profile 0.43": rest_of(all_layers, ranked),
        }
        return {way: (layers, ()) for way, layers in styles.items()}

    def ways_paired(self) -> dict[str, tuple[Layers, Layers]]:
        all_layers, ways = self.bench.layers, self.ways_alone()
        parted = {f"{way} and the rest": ways[way][0] for way in ("profile 0.43", "random 0.43", "weight norm 0.43")}
        return {
            NONE: ((), ()),
            "style LoRA alone": (all_layers, ()),
            "subject LoRA alone": ((), all_layers),
            BOTH: (all_layers, all_layers),
            **{way: (layers, rest_of(all_layers, layers)) for way, layers in parted.items()},
            "B-LoRA's two blocks (o1, o0)": tuple(
                [layer for layer in all_layers if str(layer).startswith(block)] for block in ("o1.", "o0.")
            ),
            "style at profile 0.43, subject whole": (ways["profile 0.43"][0], all_layers),
        }

    def latents(self, which: Scenes, way: str) -> Tensor:
        """[scenes, 8, 24, 24]; of a few drawings, what the model would see of them."""
        if way == DRAWN:
            return self.demo.encode(self.bench.truth.draw(which.specs))

        def paint() -> Tensor:
            model = self.demo.model
            for lora, layers in zip((self.style_lora, self.subject_lora), which.ways[way], strict=True):
                model = gate_lora(model, None, lora, gate_of(layers), 1.0, 0.0).model if layers else model
            return self.demo.sample(model, which.prompts, self.index, self.bench.chosen.steps)

        return self.bench.kept.of(f"{self.index} {which.told} {way}", paint)

    def judged(self, which: Scenes, way: str) -> Tensor:
        """[scenes, MEASURES]; the leak against no LoRA."""
        judge, pictures = self.demo.judge, self.demo.decode(self.latents(which, way))
        seen, without = (judge.subjects(self.demo.decode(self.latents(which, each))) for each in (way, NONE))
        right, sure = harness.as_prompted(seen[:, None].expand(-1, 2, -1), which.specs)
        place = harness.place_as_prompted(judge, pictures, which.specs)
        distances = (
            style_distance(embed(pictures)[:, None], embed(self.pictures)).mean(1)
            for embed in (judge.style, judge.hands)
        )
        leak = (each[:, self.shown].exp().sum(1).log() for each in (seen, without))
        leaked = torch.isin(seen.argmax(1), self.shown)
        columns = *distances, right & place, right, sure, place, torch.sub(*leak), leaked
        return torch.stack([column.float() for column in columns], 1)

    def show(self, folder: Path) -> None:
        """Contact sheets: drawings of the style, then a row for every way."""
        for which in (self.alone, self.paired):
            rows = [self.pictures[: len(which.specs)]]
            rows += [self.demo.decode(self.latents(which, way)) for way in which.ways]
            harness.sheet(torch.cat(rows), len(which.specs), folder / f"lora {self.index} {which.told}.png")

    def told(self) -> dict[str, Any]:
        """What was learnt, and the layers of each way, for who reads the results."""
        return {
            "style": f"{self.hand}, {self.medium}",
            "subject": self.subject,
            "subjects of the style's drawings": [SUBJECTS[at] for at in self.shown.tolist()],
            "layers": {way: " ".join(map(str, layers)) for way, (layers, _) in self.alone.ways.items()},
        }


def rest_of(layers: Layers, taken: Layers) -> list[LayerId]:
    return [layer for layer in layers if layer not in taken]


def gate_of(layers: Layers) -> LayerGate:
    return WrittenGate(parse(", ".join(map(str, layers))))


def summarised(ways: dict[str, Tensor]) -> dict[str, Any]:
    """Means of [scenes, MEASURES] with intervals over scenes."""
    return {
        way: {name: described(found[:, at], torch.arange(len(found))) for at, name in enumerate(MEASURES)}
        for way, found in ways.items()
    }


def less(ways: dict[str, Tensor], whole: str, names: Sequence[str]) -> dict[str, Tensor]:
    return {way: ways[way] - ways[whole] for way in names}


if __name__ == "__main__":
    main()
