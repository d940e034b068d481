"""What the demo-world benchmarks share: the demo model through ComfyUI's sampler, judge, contact sheets, intervals."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management
import comfy.sample
import comfy.samplers
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks._command import command_line, keep
from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.engine.profile_file import load
from conditional_balance.engine.style import AUTO, POSITIONS
from conditional_balance.runtime.inject.prompts import encode_rows
from conditional_balance.runtime.inject.reference import StyleReference
from demo import judge, models, nets
from demo.autoencoder import CHANNELS
from demo.world import atlas, scenes
from demo.world.media import KNOWN_MEDIA, PLAIN
from demo.world.scenes import NOTHING, PLACE_NAMES, Named, Specs
from demo.world.subjects import BEST_DRAWN, KNOWN_SUBJECTS, SUBJECTS, WELL_DRAWN
from devtools.bootstrap import ROOT

CFG = 3.0
BATCH = 16
PREPARED = ROOT / ".cache" / "drawn"  # where `python dev.py train prepare` puts the drawings
PAINTINGS = ROOT / ".cache" / "paintings"
PROFILES = ROOT / "sensitivity_profiles"


class Content(NamedTuple):
    """What scenes are of: subjects, and media that may be laid over a hand."""

    subjects: tuple[str, ...]
    media: tuple[str, ...]


WELL = "well drawn"
CONTENTS = {
    "all subjects": Content(KNOWN_SUBJECTS, KNOWN_MEDIA),
    WELL: Content(WELL_DRAWN, KNOWN_MEDIA),
    "best drawn": Content(BEST_DRAWN, KNOWN_MEDIA),
    "best drawn, no medium": Content(BEST_DRAWN, (PLAIN,)),
}


def content(name: str) -> Content:
    if name not in CONTENTS:
        raise SystemExit(f"--content is one of {', '.join(map(repr, CONTENTS))}; it is {name!r}.")
    return CONTENTS[name]


def check_position(name: str) -> None:
    if name not in POSITIONS:
        raise SystemExit(f"--position is one of {', '.join(POSITIONS)}; it is {name!r}.")


def sharing(chosen: argparse.Namespace) -> str:
    """What `--position` and `--share` ask for beyond the default, as part of a name."""
    position = "" if chosen.position == AUTO else f" {chosen.position}"
    return position if chosen.share == 1 else f"{position} share {chosen.share:g}"


class Network(NamedTuple):
    """A network of the demo that paints, and the file with the profile of its layers."""

    load: Callable[..., Any]
    file: str
    profile: str


NETWORKS = {
    "unet": Network(models.load_unet, "unet.safetensors", "demo.style.safetensors"),
    "transformer": Network(models.load_transformer, "transformer.safetensors", "demo.transformer.style.safetensors"),
}


def network(name: str) -> Network:
    if name not in NETWORKS:
        raise SystemExit(f"--model is one of {', '.join(NETWORKS)}; it is '{name}'.")
    return NETWORKS[name]


def needed(path: Path, part: str) -> Path:
    """A file that training makes; it ends the benchmark where it is not there."""
    if not path.exists():
        raise SystemExit(f"There is no {path.name} in {path.parent.name}: run `python dev.py train {part}` first.")
    return path


def profile_file(name: str, weights: Path = models.WEIGHTS) -> Path:
    """Where `python dev.py train profile` puts the profile of a network's layers, shipped or in a folder of weights."""
    return (PROFILES if weights.resolve() == models.WEIGHTS else weights) / network(name).profile


def profile_of(name: str, weights: Path = models.WEIGHTS) -> SensitivityProfile:
    return load(needed(profile_file(name, weights), "profile"))


def weights_of(weights: Path, paints: str = "unet") -> tuple[Path, Path]:
    """The files of the network that paints and of its text encoder, on which pictures depend."""
    return weights / network(paints).file, weights / "text_encoder.safetensors"


def options(about: str | None, **defaults: Any) -> argparse.Namespace:
    """The options of a benchmark of the demo world: `--json`, `--pictures`, `--seed`, and its own with defaults."""
    parser = command_line(about, seed=0, **defaults)
    parser.add_argument("--pictures", type=Path, help="write contact sheets into this folder")
    return parser.parse_args()


def report(results: dict[str, Any], chosen: argparse.Namespace) -> None:
    """Print results as JSON and write them where `--json` says."""
    print(keep(results, chosen))


class Demo:
    """The demo model, `paints` one of NETWORKS, and its judge; on CPUs in the precision that is fastest there."""

    def __init__(
        self,
        dtype: torch.dtype | None = None,
        cfg: float = CFG,
        weights: Path = models.WEIGHTS,
        paints: str = "unet",
    ) -> None:
        self.cfg = cfg
        torch.set_grad_enabled(False)
        if dtype is None and comfy.model_management.cpu_mode():
            dtype = nets.fast_dtype("cpu")
        file, texts = weights_of(weights, paints)
        self.model = network(paints).load(needed(file, paints), dtype)
        self.clip = models.load_clip(needed(texts, "unet"))
        self.vae = models.load_vae(needed(weights / "autoencoder.safetensors", "autoencoder"))
        self.judge = judge.load_judge()
        self._prompts: dict[str, tuple[Tensor, Tensor]] = {}

    def conditioning(self, prompts: Sequence[str]) -> list[list[Any]]:
        """One prompt per row; each text is encoded once."""
        for text in set(prompts) - self._prompts.keys():
            [[rows, extra]] = encode_rows(self.clip, [text])
            self._prompts[text] = rows, extra["pooled_output"]
        rows, pooled = zip(*(self._prompts[text] for text in prompts), strict=True)
        return [[torch.cat(rows), {"pooled_output": torch.cat(pooled)}]]

    def sample(self, model: Any, prompts: Sequence[str], seed: int, steps: int = 20) -> Tensor:
        """Latents [B, 8, 24, 24], euler on the normal schedule, through the sampler that KSampler uses."""
        latent = torch.zeros(len(prompts), CHANNELS, nets.CELLS, nets.CELLS)
        noise = comfy.sample.prepare_noise(latent, seed)
        positive, negative = self.conditioning(prompts), self.conditioning([""])
        return comfy.sample.sample(
            model, noise, steps, self.cfg, "euler", "normal", positive, negative, latent, disable_pbar=True, seed=seed
        )

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, 192, 192] in [0, 1]."""
        return torch.cat([self.vae.decode(part).movedim(-1, 1) for part in latents.split(BATCH)]).clamp(0, 1)

    def encode(self, pictures: Tensor) -> Tensor:
        return torch.cat([self.vae.encode(part.movedim(1, -1)) for part in pictures.split(BATCH)])

    def autoencoded(self, pictures: Tensor) -> Tensor:
        return self.decode(self.encode(pictures))


class Paintings:
    """Latents that were painted, kept in a folder named after all that they depend on.

    A run that was stopped goes on where it was, and pictures are judged again without being painted again.
    """

    def __init__(self, bench: str, *parts: Path | str) -> None:
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part.read_bytes() if isinstance(part, Path) else part.encode())
        self.folder = PAINTINGS / f"{bench}-{digest.hexdigest()[:12]}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def of(self, name: str, paint: Callable[[], Tensor]) -> Tensor:
        path = self.folder / f"{name}.pt"
        if not path.exists():
            part = path.with_suffix(".part")
            torch.save(paint(), part)
            part.replace(path)
        return torch.load(path, weights_only=True)


class Truth:
    """The drawings, and scenes made of them."""

    def __init__(self, prepared: Path = PREPARED) -> None:
        if not (prepared / "atlas.bin").exists():
            raise SystemExit(f"There are no drawings in {prepared}: run `python dev.py train prepare` first.")
        self.atlas = atlas.unpack(prepared / "atlas.bin")
        self.small = self.atlas.half()

    def rendered(self, specs: scenes.Specs) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, 192, 192] and masks [B, 2, 192, 192], a few at a time so that they stay in the cache."""
        rows = torch.arange(len(specs)).split(8)
        pictures, masks = zip(*(scenes.render(specs[part], self.atlas, self.small) for part in rows), strict=True)
        return torch.cat(pictures), torch.cat(masks)

    def draw(self, specs: scenes.Specs) -> Tensor:
        return self.rendered(specs)[0]

    def scenes_by(self, hand: str, count: int, dice: torch.Generator) -> scenes.Specs:
        """Scenes of what a hand draws, with no medium over it."""
        names = tuple(SUBJECTS[row] for row in self.atlas.drawn_by(hand))
        return scenes.random_specs(count, dice, (hand,), names, (PLAIN,))


class Painted(NamedTuple):
    """A style reference: what it shows, its picture [1, 3, H, W] as the model sees it, and the reference itself."""

    specs: Specs
    picture: Tensor
    source: StyleReference


def painted_reference(demo: Demo, specs: Specs, seed: int, steps: int) -> Painted:
    """One that the model paints under its own caption, as the paper's are."""
    told = scenes.captions(specs)
    latent = demo.sample(demo.model, told, seed, steps)
    return Painted(specs, demo.decode(latent), StyleReference(latent, demo.conditioning(told)))


def drawn_reference(demo: Demo, truth: Truth, specs: Specs) -> Painted:
    """A drawing, whose style no word names."""
    latent = demo.encode(truth.draw(specs))
    told = captions_without_style(specs)
    return Painted(specs, demo.decode(latent), StyleReference(latent, demo.conditioning(told)))


def captions_without_style(specs: Specs) -> list[str]:
    said = torch.ones(len(specs), dtype=torch.bool)
    return scenes.captions(specs, Named(said, said, ~said))


def scenes_beside(
    reference: Specs,
    count: int,
    dice: torch.Generator,
    alone: Sequence[float] = (1.0, 0.0),
    subjects: tuple[str, ...] = WELL_DRAWN,
) -> Specs:
    """`count` scenes in a reference's style for each share `alone` of scenes of one subject: none of them shows its
    subject or its place."""
    parts = []
    for share in alone:
        many = scenes.random_specs(32 * count, dice, subjects=subjects, alone=share)
        other = (many.subject != reference.subject[0, 0]).all(1) & (many.place != reference.place)
        parts.append(many[other.nonzero()[:count, 0]])
    specs = scenes.joined(*parts)
    return specs.in_style_of(reference[torch.zeros(len(specs), dtype=torch.long)])


def subjects_seen(judged: judge.Judge, pictures: Tensor, specs: Specs) -> Tensor:
    """Log-probabilities [N, 2, 72] of what is where a subject belongs; of one alone in both places."""
    found = torch.empty(len(pictures), 2, len(SUBJECTS))
    alone = specs.subject[:, 1] == NOTHING
    if alone.any():
        found[alone] = judged.subjects(pictures[alone])[:, None]
    if not alone.all():
        found[~alone] = judged.pairs(pictures[~alone], specs.relation[~alone])
    return found


def as_prompted(found: Tensor, specs: Specs) -> tuple[Tensor, Tensor]:
    """Whether all subjects [N] of `specs` are seen where they belong, and how sure the judge is of them."""
    wanted = torch.where(specs.subject == NOTHING, specs.subject[:, :1], specs.subject)
    sure = found.gather(2, wanted[:, :, None])[:, :, 0].exp()
    return (found.argmax(2) == wanted).all(1), sure.mean(1)


def place_as_prompted(judged: judge.Judge, pictures: Tensor, specs: Specs) -> Tensor:
    wanted = torch.where(specs.place == NOTHING, len(PLACE_NAMES), specs.place)
    return judged.places(pictures).argmax(1) == wanted


def interval(values: Tensor, groups: Tensor, statistic: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """95 % bootstrap interval of a statistic, drawing whole groups (references), 1000 times."""
    names = groups.unique()
    rows = [values[groups == name] for name in names]
    dice = np.random.default_rng(0)
    draws = [statistic(torch.cat([rows[i] for i in dice.integers(len(rows), size=len(rows))])) for _ in range(1000)]
    low, high = np.quantile([float(value) for value in draws], (0.025, 0.975))
    return float(low), float(high)


def described(values: Tensor, groups: Tensor, statistic: Callable[[Tensor], Tensor] = torch.mean) -> dict[str, float]:
    """A statistic with its 95 % interval over groups."""
    low, high = interval(values, groups, statistic)
    return {"mean": round(float(statistic(values)), 4), "low": round(low, 4), "high": round(high, 4)}


def means(values: Tensor, measures: Sequence[str]) -> dict[str, Any]:
    """Of measures [references, scenes, M], with intervals over references; the first half of the scenes are of one
    subject."""
    groups = torch.arange(len(values)).repeat_interleave(values.shape[1])
    flat = values.flatten(0, 1)
    found = {name: described(flat[:, column], groups) for column, name in enumerate(measures)}
    for name, half in zip(("one subject", "both of two"), values.chunk(2, 1), strict=True):
        right = half[:, :, measures.index("subjects")]
        found[name] = described(right.flatten(), torch.arange(len(right)).repeat_interleave(right.shape[1]))
    return found


def auc(same: Tensor, different: Tensor) -> float:
    """Probability that a same-style distance is below a different-style one."""
    ordered = different.flatten().sort().values
    return 1 - float(torch.searchsorted(ordered, same.flatten().contiguous()).double().mean()) / len(ordered)


def sheet(pictures: Tensor, columns: int, path: Path) -> None:
    """A contact sheet of [B, 3, H, W] pictures."""
    count, _, height, width = pictures.shape
    rows = count // columns
    table = pictures[: rows * columns].reshape(rows, columns, 3, height, width).permute(0, 3, 1, 4, 2)
    table = table.reshape(rows * height, columns * width, 3).clamp(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 * table).round().byte().numpy()).save(path)
