"""Does the blend keep the subject and take the background? Against img2img, inpainting and attention's mask alone.

Each pair has a drawn picture whose subject is kept and a drawn reference in the same style, which shows another place,
in half of the pairs with another subject in it. The prompt names the kept subject before the reference's place. Blends
start from the first picture, redrawn from 20 % of the schedule on, so that its drawn mask says where the subject is.
img2img starts from the reference; so does inpainting, which is told the true mask: it is the upper bound. *composed* is
the drawing of what was asked for, autoencoded: what the judge makes of a perfect picture. Outside both subjects the
picture should be the reference's (PSNR); `seam` is how much steeper it is along the subject's outline than the drawn
composition; `theirs stays` is how much of the reference's subject still shows beside the kept one; `mask IoU` is the
last window's mask against the drawn one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import comfy.sample
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import harness
from benchmarks._workers import forked, gathered
from benchmarks.attribution import READ, iou
from benchmarks.harness import CFG, Demo, Paintings, Truth, described
from conditional_balance.engine.masks import MaskSettings, dilated, mask_of
from conditional_balance.engine.windows import parse_windows
from conditional_balance.runtime.attribution.find import ProbeSettings, find_subject
from conditional_balance.runtime.attribution.settings import AttributionSettings
from conditional_balance.runtime.attribution.subject import Subject, read_subject
from conditional_balance.runtime.inject.blend import PAPER, X0, Blend, blend_reference
from demo import models
from demo.world import scenes
from demo.world.media import laid
from demo.world.places import PHRASES
from demo.world.scenes import NOTHING, PLACE_NAMES, SIZE, Specs
from demo.world.subjects import WORDS

WINDOWS = "0.22-0.48, 0.48-0.68, 0.68-0.9"
STRENGTHS = (0.55, 0.7, 0.85)  # of img2img
KEPT_NOISE = 0.8  # denoise of the picture whose subject is kept
FOUND = AttributionSettings("value_norm", propagation=2)  # the node's defaults
MASK = MaskSettings(dilate=1.0)
COMPOSED = "composed"
LEFT_OUT = "blend x0, value_norm, the reference's subject left out"
REFERENCES = ("place alone", "place with a subject")
MEASURES = ("subject", "place", "both", "theirs stays", "PSNR outside", "seam", "mask IoU")


class Way(NamedTuple):
    """One way to make the picture: a blend, or img2img and inpainting of the reference."""

    name: str
    kind: str
    strength: float = KEPT_NOISE
    mode: str = X0
    attribution: AttributionSettings = FOUND
    against: bool = True  # is the place's word known?
    without: bool = False  # is the reference's own subject left out, where our attribution finds it?


def ways(model: str = "unet") -> Iterator[Way]:
    """The same names for every model; only layers differ."""
    yield Way(COMPOSED, COMPOSED)
    for strength in STRENGTHS:
        yield Way(f"img2img of the reference, {strength:g}", "img2img", strength)
    yield Way("inpainting with the true mask", "inpaint", 1.0)
    daam = AttributionSettings("attention", "all")
    yield Way("blend x0, attention alone (DAAM's rule)", "blend", attribution=daam, against=False)
    yield Way("blend x0, value_norm", "blend")
    yield Way("blend x0, value_norm, place's word unknown", "blend", against=False)
    yield Way(LEFT_OUT, "blend", without=True)
    gradients = AttributionSettings("grad_sam", READ[model].first, propagation=2)
    yield Way("blend x0, grad_sam", "blend", attribution=gradients)
    yield Way("blend paper, value_norm", "blend", mode=PAPER)


WAYS = tuple(way.name for way in ways())


class Job(NamedTuple):
    way: str
    index: int  # which pair; also the seed

    @property
    def references(self) -> str:
        return REFERENCES[self.index % 2]


class Pair(NamedTuple):
    """A kept picture and a reference [1, 3, 192, 192], what they should become, and both subjects' masks [192, 192]."""

    specs: Specs  # kept subject before the reference's place
    second: Specs  # the reference, which shows no subject where `theirs` is NOTHING
    theirs: int
    kept: Tensor
    reference: Tensor
    composed: Tensor
    mask: Tensor
    other_mask: Tensor


def main() -> None:
    chosen = harness.options(
        __doc__, count=16, steps=12, workers=2, prepared=harness.PREPARED, weights=models.WEIGHTS, model="unet",
        content=harness.WELL,
    )  # fmt: skip
    torch.set_num_threads(1)
    jobs = [Job(way, index) for index, way in itertools.product(range(chosen.count), WAYS)]
    shared = Demo(weights=chosen.weights, paints=chosen.model), Truth(chosen.prepared), chosen, paintings(chosen)
    with forked(chosen.workers, share_objects, *shared) as pool:
        rows = gathered(pool, run, jobs, lambda job: job.way, every=10 * len(WAYS))
        if chosen.pictures:
            show(pool, chosen)
    harness.report(summarised({way: torch.stack(parts) for way, parts in rows.items()}, chosen), chosen)


def paintings(chosen: Any) -> Paintings:
    """They depend on the weights and on the pairs."""
    return Paintings(
        "blend",
        *harness.weights_of(chosen.weights, chosen.model),
        f"{harness.content(chosen.content)} {WINDOWS} {KEPT_NOISE} {MASK}",
        f"{READ[chosen.model].auto} {chosen.steps} {chosen.seed}",
    )


def share_objects(demo: Demo, truth: Truth, chosen: Any, kept: Paintings) -> None:
    global DEMO, TRUTH, CHOSEN, KEPT
    DEMO, TRUTH, CHOSEN, KEPT = demo, truth, chosen, kept


@lru_cache(4)
def pair(index: int) -> Pair:
    """Two scenes of one style that share neither subject nor place; every other reference is a place alone."""
    dice = torch.Generator().manual_seed(2000 + 1000 * CHOSEN.seed + index)
    subjects, media = harness.content(CHOSEN.content)
    many = scenes.random_specs(128, dice, subjects=subjects, media=media, alone=1.0)
    many = many[(many.place != NOTHING).nonzero()[:, 0]]
    first, second = many[:1], many[1:].in_style_of(many[torch.zeros(len(many) - 1, dtype=torch.long)])
    apart = (second.subject != first.subject)[:, 0] & (second.place != first.place)
    second = second[apart.nonzero()[:1, 0]]
    composed = replace(first, place=second.place, layout=second.layout)
    kept, masks = TRUTH.rendered(first)
    reference, other_masks = TRUTH.rendered(second)
    theirs = int(second.subject[0, 0])
    if index % 2 == 0:
        reference, theirs = laid(scenes.grounds(second, SIZE), second.medium, second.style), NOTHING
        other_masks = torch.zeros_like(masks)
    return Pair(composed, second, theirs, kept, reference, TRUTH.draw(composed), masks[0, 0], other_masks[0, 0])


def made(job: Job) -> tuple[Tensor, Tensor]:
    """The picture [1, 3, 192, 192] of one way, and the last window's mask [24, 24] if it found any."""
    asked, way = pair(job.index), next(way for way in ways(CHOSEN.model) if way.name == job.way)
    if way.kind == COMPOSED:
        return DEMO.autoencoded(asked.composed), torch.zeros(0)
    latent, mask = KEPT.of(f"{job.index:03} {job.way}", lambda: painted(asked, way, job.index)).split((8, 1), 1)
    return DEMO.decode(latent), mask[0, 0] if way.kind == "blend" else torch.zeros(0)


def painted(asked: Pair, way: Way, seed: int) -> Tensor:
    """Latents [1, 8, 24, 24] and behind them the last window's mask, or zeros."""
    kept, reference = DEMO.encode(asked.kept), DEMO.encode(asked.reference)
    subject = subject_of(asked.specs, way.against)
    mask = torch.zeros_like(kept[:, :1])
    if way.kind == "blend":
        left_out = found_in(asked, reference) if way.without and asked.theirs != NOTHING else None
        settings = way.mode, way.attribution, MASK
        blend = Blend(reference, subject, parse_windows(WINDOWS), *settings, left_out=left_out)
        model, attribution = blend_reference(DEMO.model, blend)
        latent = sampled_from(model, subject, kept, way.strength, seed)
        mask = attribution.of(latent).windows[-1].mask[None].to(latent)
    else:
        inside = functional.max_pool2d(asked.mask[None, None], 8) if way.kind == "inpaint" else None
        latent = sampled_from(DEMO.model, subject, reference, way.strength, seed, inside)
    return torch.cat([latent, mask], 1)


def found_in(asked: Pair, reference: Tensor) -> Tensor:
    """Where Grad-SAM Mask finds the reference's own subject by its word, [1, 24, 24]."""
    probe = ProbeSettings((0.5, 0.7), False, 0)
    return mask_of(find_subject(DEMO.model, reference, subject_of(asked.second, False), probe, FOUND).maps, MASK)


def subject_of(specs: Specs, against: bool) -> Subject:
    place = PHRASES[PLACE_NAMES[int(specs.place)]].split()[-1]
    word = WORDS[int(specs.subject[0, 0])]
    return read_subject(DEMO.clip, scenes.captions(specs)[0], word, place if against else "")


def sampled_from(
    model: Any, subject: Subject, start: Tensor, strength: float, seed: int, noise_mask: Tensor | None = None
) -> Tensor:
    """What KSampler makes of latents [1, 8, 24, 24]."""
    return comfy.sample.sample(
        model, comfy.sample.prepare_noise(start, seed), CHOSEN.steps, CFG, "euler", "normal", subject.conditioning,
        DEMO.conditioning([""]), start, denoise=strength, noise_mask=noise_mask, disable_pbar=True, seed=seed,
    )  # fmt: skip


def run(job: Job) -> Tensor:
    """MEASURES of one picture."""
    asked = pair(job.index)
    picture, mask = made(job)
    found = harness.subjects_seen(DEMO.judge, picture, asked.specs)
    subject = harness.as_prompted(found, asked.specs)[0]
    place = harness.place_as_prompted(DEMO.judge, picture, asked.specs)
    outside = ~(dilated(asked.mask[None] > 0.5, 2) | dilated(asked.other_mask[None] > 0.5, 2))
    columns = {
        "subject": subject, "place": place, "both": subject & place,
        "theirs stays": staying(picture, asked),
        "PSNR outside": psnr(picture, DEMO.autoencoded(asked.reference), outside),
        "seam": steepness(picture, asked.mask) / steepness(asked.composed, asked.mask),
        "mask IoU": agreement(mask, asked.mask),
    }  # fmt: skip
    return torch.stack([columns[name].float()[0] for name in MEASURES])


def staying(picture: Tensor, asked: Pair) -> Tensor:
    """How much [1] of the reference's subject, outside of the kept one, is nearer to the reference than to the drawing
    of what was asked for; NaN where it shows none."""
    off, wanted = ((picture - truth).square().sum(1) for truth in (asked.reference, asked.composed))
    theirs = (asked.other_mask > 0.5) & (asked.mask < 0.5)
    return (off < wanted)[:, theirs].float().mean(1)


def agreement(mask: Tensor, truth: Tensor) -> Tensor:
    """IoU [1] of a mask on cells with the drawn one on pixels; NaN of none."""
    if not len(mask):
        return torch.full((1,), torch.nan)
    found = functional.interpolate(mask[None, None].float(), size=truth.shape)[0] > 0.5
    return iou(found, truth[None] > 0.5)


def psnr(pictures: Tensor, reference: Tensor, inside: Tensor) -> Tensor:
    """dB over the pixels that count, picture by picture."""
    errors = (pictures - reference).square().mean(1) * inside
    return -10 * (errors.sum((1, 2)) / inside.sum((1, 2)).clamp_min(1)).clamp_min(1e-10).log10()


def steepness(pictures: Tensor, mask: Tensor) -> Tensor:
    """Mean change of lightness from pixel to pixel in a ring of three pixels around the mask [H, W]."""
    ring = (dilated(mask[None] > 0.5, 3) & ~(mask[None] > 0.5)).float()
    light = pictures.mean(1)
    down, right = functional.pad(light.diff(dim=1), (0, 0, 0, 1)), functional.pad(light.diff(dim=2), (0, 1))
    change = (down.square() + right.square()).sqrt() * ring
    return change.sum((1, 2)) / ring.sum((1, 2)).clamp_min(1)


def summarised(measured: dict[str, Tensor], chosen: Any) -> dict[str, Any]:
    """Of measures [pairs, MEASURES]: means with intervals over pairs, all and by kind of reference."""
    kinds = {"all": slice(None)} | {name: slice(start, None, 2) for start, name in enumerate(REFERENCES)}
    parts = {kind: {way: row(values[rows]) for way, values in measured.items()} for kind, rows in kinds.items()}
    tried = {way: found for way, found in parts["all"].items() if "img2img" in way}
    best = max(tried, key=lambda way: tried[way]["both"]["mean"])
    about = {"pairs": chosen.count, "content": chosen.content, "steps": chosen.steps}
    return about | {"best img2img": best, "ways": parts}


def row(values: Tensor) -> dict[str, Any]:
    columns = dict(zip(MEASURES, values.T, strict=True))
    told = {name: column[column.isfinite()] for name, column in columns.items()}  # some are of some pairs or ways only
    return {name: described(column, torch.arange(len(column))) for name, column in told.items() if len(column)}


SHOWN = (
    "blend x0, value_norm", LEFT_OUT, "blend x0, grad_sam", "blend paper, value_norm", "img2img of the reference, 0.7",
    "inpainting with the true mask",
)  # fmt: skip


def show(pool: Any, chosen: Any, pairs: int = 12) -> None:
    """A sheet: what is kept, the reference, and what SHOWN make of them, a column a pair."""
    columns = torch.stack(pool.map(column, range(min(pairs, chosen.count))))
    harness.sheet(columns.transpose(0, 1).flatten(0, 1), len(columns), chosen.pictures / "blend.png")


def column(index: int) -> Tensor:
    asked = pair(index)
    return torch.cat([asked.kept, asked.reference, *(made(Job(way, index))[0] for way in SHOWN)])


if __name__ == "__main__":
    main()
