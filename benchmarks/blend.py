"""Does the blend keep the subject and take the background? Against img2img, inpainting and attention's mask alone.

Each pair has a picture whose subject is kept and a reference in the same style with another subject and background. The
prompt names the kept subject before the reference's background. Blends start from the first picture, redrawn from 20 %
of the schedule on, so that its drawn mask says where the subject is. img2img starts from the reference; so does
inpainting, which is told the true mask: it is the upper bound. Outside both subjects the background should be the
reference's; `seam` is how much steeper the picture is along the subject's outline than the drawn composition. The
Frechet distance of pooled judge features to as many references needs a thousand pictures to mean anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import comfy.sample
import torch
from scipy import linalg
from torch import Tensor
from torch.nn import functional

from benchmarks import harness
from benchmarks.attribution import GROUP, alike, described, subject_of
from benchmarks.harness import CFG, Demo
from conditional_balance.engine.masks import MaskSettings, dilated
from conditional_balance.engine.windows import parse_windows
from conditional_balance.runtime.attribution.settings import AttributionSettings
from conditional_balance.runtime.attribution.subject import Subject
from conditional_balance.runtime.inject.blend import PAPER, X0, Blend, blend_reference
from demo import world

WINDOWS = "0.22-0.48, 0.48-0.68, 0.68-0.9"
STRENGTHS = (0.55, 0.7, 0.85)  # of img2img
KEPT = 0.8  # denoise of the picture whose subject is kept


FOUND = AttributionSettings("value_norm", propagation=2)  # the node's defaults
MASK = MaskSettings(dilate=1.0)


class Pairs(NamedTuple):
    """Kept pictures and references, drawn; their composition, and the subjects' masks [B, 128, 128]."""

    specs: world.Specs  # kept subject before the reference's background
    kept: Tensor
    references: Tensor
    composed: Tensor
    mask: Tensor
    other_mask: Tensor


class Way(NamedTuple):
    """One way to make the picture: a blend, or img2img and inpainting of the reference."""

    name: str
    kind: str
    strength: float = KEPT
    mode: str = X0
    attribution: AttributionSettings | None = None
    against: bool = True  # is the place's word known?


def ways() -> Iterator[Way]:
    for strength in STRENGTHS:
        yield Way(f"img2img of the reference, {strength:g}", "img2img", strength)
    yield Way("inpainting with the true mask", "inpaint", 1.0)
    yield Way(
        "blend x0, attention alone (DAAM's rule)", "blend", KEPT, X0, AttributionSettings("attention", "all"), False
    )
    paper = AttributionSettings("grad_sam", "o2-3", propagation=2)
    yield Way("blend x0, value_norm", "blend", attribution=FOUND)
    yield Way("blend x0, grad_sam", "blend", attribution=paper)
    yield Way("blend paper, value_norm", "blend", mode=PAPER, attribution=FOUND)
    yield Way("blend paper, grad_sam", "blend", mode=PAPER, attribution=paper)


def main() -> None:
    chosen = harness.options(__doc__, count=1000, steps=10, only="")  # --only: ways whose name holds this text
    demo, pairs = Demo(), drawn(chosen)
    latents = demo.encode(pairs.kept), demo.encode(pairs.references)
    real = features(demo, pairs.references)
    results: dict[str, Any] = {"pairs": chosen.count, "steps": chosen.steps, "ways": {}}
    for way in ways():
        if chosen.only in way.name:
            pictures = demo.decode(made(demo, pairs, latents, way, chosen))
            found = measured(demo, pairs, pictures) | {"Frechet distance": frechet(features(demo, pictures), real)}
            results["ways"][way.name] = found
            print(way.name, found, flush=True)
            if chosen.pictures and chosen.count >= 8:
                shown = torch.cat([pairs.kept[:8], pairs.references[:8], pictures[:8]])
                harness.sheet(shown, 8, chosen.pictures / f"{way.name}.png")
    if chosen.pictures:
        figure(demo, pairs, latents, chosen.pictures / "subject_kept.png")
    results["best img2img"] = best_img2img(results["ways"])
    harness.report(results, chosen)


def drawn(chosen: Any) -> Pairs:
    """Two scenes of one style that share neither subject nor background."""
    dice = torch.Generator().manual_seed(2000 + chosen.seed)
    first = world.random_specs(4 * chosen.count + 32, dice)
    second = world.random_specs(len(first), dice).in_style_of(first)
    apart = (first.subject != second.subject) & (first.background != second.background)
    places = apart.nonzero()[: chosen.count, 0]
    first, second = first[places], second[places]
    composed = replace(first, background=second.background, layout=second.layout)
    parts = [_render(specs) for specs in (first, second, composed)]
    return Pairs(composed, parts[0][0], parts[1][0], parts[2][0], parts[0][1], parts[1][1])


def _render(specs: world.Specs) -> tuple[Tensor, Tensor]:
    parts = [world.render(specs[rows]) for rows in torch.arange(len(specs)).split(32)]
    pictures, masks = zip(*parts, strict=True)
    return torch.cat(pictures), torch.cat(masks)


def made(demo: Demo, pairs: Pairs, latents: tuple[Tensor, Tensor], way: Way, chosen: Any) -> Tensor:
    """Latents [B, 8, 16, 16] of every pair."""
    captions = world.captions(pairs.specs)
    out = torch.zeros_like(latents[0])
    for rows in alike(demo, captions, pairs.specs):
        kept, reference = (part[rows] for part in latents)
        subject = subject_of(demo, [captions[i] for i in rows], pairs.specs[rows])
        if not way.against:
            subject = replace(subject, surroundings=())
        model, start, noise_mask = demo.model, reference, None
        if way.kind == "inpaint":
            noise_mask = functional.max_pool2d(pairs.mask[rows, None], 8)
        if way.kind == "blend":
            blend = Blend(reference, subject, parse_windows(WINDOWS), way.mode, way.attribution, MASK)
            model, start = blend_reference(demo.model, blend)[0], kept
        seed = chosen.seed + int(rows[0])
        out[rows] = sampled_from(demo, model, subject, start, way.strength, chosen.steps, seed, noise_mask)
    return out


def figure(demo: Demo, pairs: Pairs, latents: tuple[Tensor, Tensor], path: Path) -> None:
    """Subject, reference, mask and result of the first four pairs in which the judge sees what was asked."""
    from matplotlib import pyplot

    columns = ("the subject's picture", "the reference", "the mask found", "the result")
    rows = list(itertools.islice(_convincing(demo, pairs, latents), 4))
    canvas, axes = pyplot.subplots(len(rows), 4, figsize=(8.4, 2.3 * len(rows)), layout="constrained", squeeze=False)
    for place, title in zip(axes[0], columns, strict=True):
        place.set_title(title)
    for line, (caption, pictures) in zip(axes, rows, strict=True):
        for place, picture in zip(line, pictures, strict=True):
            place.imshow(picture, cmap="gray", vmin=0, vmax=1)
            place.set(xticks=[], yticks=[])
        line[0].set_ylabel(caption.replace(", ", ",\n"), fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=130)


def _convincing(
    demo: Demo, pairs: Pairs, latents: tuple[Tensor, Tensor], steps: int = 20
) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """Captions, with pictures to show, of blends in which the judge sees subject and background."""
    for number, caption in enumerate(world.captions(pairs.specs)):
        row = slice(number, number + 1)
        subject = subject_of(demo, [caption], pairs.specs[row])
        blend = Blend(latents[1][row], subject, parse_windows(WINDOWS), attribution=FOUND, mask=MASK)
        model, attribution = blend_reference(demo.model, blend)
        sampled = sampled_from(demo, model, subject, latents[0][row], KEPT, steps, number)
        result = demo.decode(sampled)
        verdict, specs = demo.verdict(result), pairs.specs[row]
        if verdict.subject == specs.subject and verdict.background == specs.background:
            mask = attribution.of(sampled).windows[-1].mask[0]
            drawn = (part[number].movedim(0, -1) for part in (pairs.kept, pairs.references))
            yield caption, (*drawn, mask, result[0].movedim(0, -1).clamp(0, 1))


def sampled_from(
    demo: Demo, model: Any, subject: Subject, start: Tensor, strength: float, steps: int, seed: int,
    noise_mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """What KSampler makes of latents [B, 8, 16, 16]."""
    return comfy.sample.sample(
        model, comfy.sample.prepare_noise(start, seed), steps, CFG, "euler", "normal", subject.conditioning,
        demo.conditioning([""]), start, denoise=strength, noise_mask=noise_mask, disable_pbar=True, seed=seed,
    )  # fmt: skip


def measured(demo: Demo, pairs: Pairs, pictures: Tensor) -> dict[str, Any]:
    """Subject and background as the judge sees them, background as it is, and the seam."""
    verdict = demo.verdict(pictures)
    outside = ~(dilated(pairs.mask > 0.5, 2) | dilated(pairs.other_mask > 0.5, 2))
    reference = demo.autoencoded(pairs.references)
    return {
        "subject": described(verdict.subject == pairs.specs.subject),
        "background": described(verdict.background == pairs.specs.background),
        "PSNR outside": described(psnr(pictures, reference, outside)),
        "seam": described(steepness(pictures, pairs.mask) / steepness(pairs.composed, pairs.mask)),
    }


def psnr(pictures: Tensor, reference: Tensor, inside: Tensor) -> Tensor:
    """dB over the pixels that count, picture by picture."""
    errors = (pictures - reference).square().mean(1) * inside
    return -10 * (errors.sum((1, 2)) / inside.sum((1, 2)).clamp_min(1)).clamp_min(1e-10).log10()


def steepness(pictures: Tensor, mask: Tensor) -> Tensor:
    """Mean change of lightness from pixel to pixel in a ring of three pixels around the mask."""
    ring = dilated(mask > 0.5, 3) & ~(mask > 0.5)
    light = pictures.mean(1)
    down, right = functional.pad(light.diff(dim=1), (0, 0, 0, 1)), functional.pad(light.diff(dim=2), (0, 1))
    change = (down.square() + right.square()).sqrt() * ring
    return change.sum((1, 2)) / ring.sum((1, 2)).clamp_min(1)


def features(demo: Demo, pictures: Tensor) -> Tensor:
    """What the judge's content network sees, pooled: [B, 128]."""
    parts = [
        demo.judge.content.body(functional.avg_pool2d(part, 2) * 2 - 1).mean((2, 3)) for part in pictures.split(GROUP)
    ]
    return torch.cat(parts).double()


def frechet(made: Tensor, real: Tensor) -> float:
    """Squared Frechet distance of two Gaussians (Heusel et al. 2017, eq. 6)."""
    covariances = [each.T.cov().numpy() for each in (made, real)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    gap = float((made.mean(0) - real.mean(0)).square().sum())
    return round(gap + float((covariances[0] + covariances[1] - 2 * root).trace()), 4)


def best_img2img(found: dict[str, Any]) -> str | None:
    """The strength at which subject and background are both seen most often (by their product)."""
    tried = {name: row for name, row in found.items() if "img2img" in name}
    scores = {name: row["subject"]["mean"] * row["background"]["mean"] for name, row in tried.items()}
    return max(scores, key=scores.get) if scores else None


if __name__ == "__main__":
    main()
