"""Is the demo model fit to judge by? Captions obeyed, attention needed, autoencoder, judge, plain style sharing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.harness import Demo, auc, draw
from conditional_balance.engine.gates import LayerGate, WrittenGate, windowed
from conditional_balance.engine.grammar import parse
from conditional_balance.runtime.arch.unet import attention_layers
from conditional_balance.runtime.inject.reference import StyleReference
from conditional_balance.runtime.inject.style import StyleInjection, StyleSettings, inject_style
from demo import world
from demo.judge import Verdict, style_distance


def main() -> None:
    chosen = harness.options(__doc__, prompts=500, steps=20, judged=500, references=12, cfg=harness.CFG)
    demo, dice = Demo(cfg=chosen.cfg), torch.Generator().manual_seed(chosen.seed)
    results = {
        "autoencoder and judge": autoencoder_and_judge(demo, dice, chosen.judged),
        "style distance AUC": style_aucs(demo, dice, chosen.judged // 2),
        "captions": captions(demo, dice, chosen),
        "loss without attention": attention_needed(demo, dice),
        "style sharing on all layers": sharing(demo, dice, chosen),
        "what the style distance sees": seen(demo, dice, chosen.judged // 25),
    }
    harness.report(results, chosen)


def share(hits: Tensor) -> float:
    return round(float(hits.float().mean()), 4)


def autoencoder_and_judge(demo: Demo, dice: torch.Generator, count: int) -> dict[str, Any]:
    """PSNR in dB over all pixels, and how often the judge names what is drawn."""
    specs = world.random_specs(count, dice)
    fresh = draw(specs)
    restored = demo.autoencoded(fresh)
    result = {"PSNR": round(float(-10 * (restored - fresh).square().mean().log10()), 2)}
    for name, pictures in (("fresh", fresh), ("autoencoded", restored)):
        verdict = demo.verdict(pictures)
        result[name] = recognised(verdict, specs)
    return result


def recognised(verdict: Verdict, specs: world.Specs) -> dict[str, float]:
    """How often the judge sees the subject, the background and the style family that are meant."""
    return {
        "subject": share(verdict.subject == specs.subject),
        "background": share(verdict.background == specs.background),
        "style family": share(verdict.family == specs.family[:, 0]),
    }


def style_aucs(demo: Demo, dice: torch.Generator, count: int) -> dict[str, Any]:
    """Same style in two scenes against two styles; generated pictures are drawn ones half redrawn by the model."""
    result = {}
    for name, families in (("known styles", world.KNOWN), ("unseen styles", world.HELD_OUT)):
        first = world.random_specs(count, dice, families)
        second = world.random_specs(count, dice, families).in_style_of(first)
        pictures = [draw(first), draw(second)]
        kinds = {
            "fresh": pictures,
            "autoencoded": [demo.autoencoded(part) for part in pictures],
            "generated": [
                redrawn(demo, p, world.captions(s, families is world.KNOWN))
                for p, s in zip(pictures, (first, second), strict=True)
            ],
        }
        result[name] = {kind: pair_auc(demo, pair) for kind, pair in kinds.items()}
    return result


def pair_auc(demo: Demo, pair: list[Tensor]) -> float:
    first, second = (demo.verdict(pictures).style for pictures in pair)
    distances = style_distance(first[:, None], second[None])
    return round(auc(distances.diagonal(), distances[~torch.eye(len(first), dtype=torch.bool)]), 4)


def redrawn(demo: Demo, pictures: Tensor, prompts: list[str], denoise: float = 0.5) -> Tensor:
    """Image to image: the model's own handwriting at a known style."""
    latents = demo.encode(pictures)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    return demo.decode(
        comfy.sample.sample(
            demo.model,
            noise,
            10,
            demo.cfg,
            "euler",
            "normal",
            demo.conditioning(prompts),
            demo.conditioning([""]),
            latents,
            denoise=denoise,
            disable_pbar=True,
            seed=0,
        )
    )


def seen(demo: Demo, dice: torch.Generator, count: int) -> dict[str, dict[str, float]]:
    """How far drawn scenes of the reference's family come to its style by its colours alone, by its strokes alone, and
    by half of the way in everything: the distance is steep near zero."""
    result = {}
    for family in world.KNOWN:
        references, scenes = (world.random_specs(count, dice, (family,)) for _ in range(2))
        style = demo.verdict(demo.autoencoded(draw(references))).style
        drawn = {
            "none": scenes,
            "colours": taking(world.COLOURS, scenes, references),
            "strokes": taking(world.STROKES, scenes, references),
            "half of all": halfway(scenes, references),
            "all": scenes.in_style_of(references),
        }
        distances = [style_distance(demo.verdict(demo.autoencoded(draw(s))).style, style) for s in drawn.values()]
        result[family] = dict(zip(list(drawn)[1:-1], way_gone(torch.stack(distances, 1)), strict=True))
    return result


def taking(names: tuple[str, ...], scenes: world.Specs, references: world.Specs) -> world.Specs:
    """The scenes with the named style parameters of the references."""
    columns = torch.tensor([name in names for name in world.PARAMETERS])
    return replace(scenes, style=torch.where(columns, references.style, scenes.style))


def halfway(scenes: world.Specs, references: world.Specs) -> world.Specs:
    """The scenes with every style parameter halfway to the references'; hue takes the short way round its circle."""
    gap = references.style - scenes.style
    hue = world.PARAMETERS.index("hue")
    gap[:, hue] = (gap[:, hue] + 0.5) % 1 - 0.5
    return replace(scenes, style=scenes.style + gap / 2)


def captions(demo: Demo, dice: torch.Generator, chosen: Any) -> dict[str, float]:
    """How often fresh prompts get what they ask for."""
    specs = world.random_specs(chosen.prompts, dice)
    prompts = world.captions(specs)
    parts = [
        demo.sample(demo.model, prompts[i : i + 50], chosen.seed + i, chosen.steps) for i in range(0, len(prompts), 50)
    ]
    pictures = demo.decode(torch.cat(parts))
    if chosen.pictures:
        harness.sheet(pictures[:64], 8, chosen.pictures / "samples.png")
    return recognised(demo.verdict(pictures), specs)


def attention_needed(demo: Demo, dice: torch.Generator) -> dict[str, dict[str, float]]:
    """Loss with an attention's output zeroed over loss with it, by noise level.

    Beside them, what captions are worth: the loss under an empty one, which the model is trained for, and under another
    picture's. Zeroing cross-attention cannot cost much more than the former.
    """
    specs = world.random_specs(128, dice)
    latents, captions = demo.encode(draw(specs)), world.captions(specs)
    prompts = demo.conditioning(captions)
    changed = {
        "self-attention": (silenced(demo.model, "attn1"), prompts),
        "cross-attention": (silenced(demo.model, "attn2"), prompts),
        "empty caption": (demo.model, demo.conditioning([""] * len(captions))),
        "another's caption": (demo.model, demo.conditioning(captions[1:] + captions[:1])),
    }
    result = {}
    for sigma in (0.3, 1.0, 3.0, 10.0):
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
        whole = loss(demo.model, latents, noise, sigma, prompts)
        result[f"sigma {sigma}"] = {
            name: round(loss(model, latents, noise, sigma, said) / whole, 3) for name, (model, said) in changed.items()
        }
    return result


def silenced(model: Any, name: str) -> Any:
    """The model with every self- or cross-attention giving zeros."""
    quiet = model.clone()
    setter = quiet.set_model_attn1_replace if name == "attn1" else quiet.set_model_attn2_replace
    for layer in attention_layers(model):
        setter(lambda q, k, v, extra: torch.zeros_like(q), *layer)
    return quiet


def loss(model: Any, latents: Tensor, noise: Tensor, sigma: float, prompts: list) -> float:
    """Squared error of the predicted noise, [B] levels all `sigma`."""
    noisy = latents + sigma * noise
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompts, prompts)
    guider.set_cfg(1.0)
    sampler = comfy.samplers.KSAMPLER(
        lambda predict, x, sigmas, extra_args, **_: predict(x, sigmas[:1].expand(len(x)), **extra_args)
    )
    clean = guider.sample(noise, latents, sampler, torch.tensor([sigma, 0.0]), disable_pbar=True)
    return float(((noisy - clean) / sigma - noise).square().mean())


def sharing(demo: Demo, dice: torch.Generator, chosen: Any) -> dict[str, Any]:
    """Mean style distance to the reference: no sharing, sharing on all layers, and drawn in that very style.

    Sharing as far as its operator goes (arXiv 2312.02133, code): as it is; the reference counting twice, as its authors
    set it for pictures that they did not generate (a shift of ln 2); and the values' moments moved as well. And as it
    is down to sigma 1 only, to see when it acts.
    """
    everywhere = WrittenGate(parse("i, m, o"))
    early = windowed(everywhere, 0.0, percent_at(demo.model, 1.0))
    ways = {
        "share 1": (everywhere, StyleSettings()),
        "share 1 above sigma 1": (early, StyleSettings()),
        "share 2": (everywhere, StyleSettings(share=2.0)),
        "share 2, values too": (everywhere, StyleSettings(share=2.0, adain_v=True)),
    }
    families, rows = [], []
    for index in range(chosen.references):
        reference = world.random_specs(1, dice)
        scenes = world.random_specs(8, dice).in_style_of(reference[torch.zeros(8, dtype=torch.long)])
        families.append(world.FAMILY_NAMES[int(reference.family[0, 0])])
        rows.append(style_distances(demo, reference, scenes, ways, chosen.seed + index, chosen.steps))
    names = ("none", *ways, "same style")
    distances = torch.stack(rows)
    by_family = {name: way_gone(distances[[family == name for family in families]]) for name in sorted(set(families))}
    return {
        "distance": dict(zip(names, (round(mean, 4) for mean in distances.mean(0).tolist()), strict=True)),
        "share of the way": dict(zip(ways, way_gone(distances), strict=True)),
        "by family": {name: dict(zip(ways, gone, strict=True)) for name, gone in by_family.items()},
    }


def percent_at(model: Any, sigma: float) -> float:
    """Where in the schedule, from 0 to 1, the noise has come down to `sigma`."""
    return 1 - float(model.get_model_object("model_sampling").timestep(torch.tensor(sigma))) / 999


def style_distances(
    demo: Demo,
    reference: world.Specs,
    scenes: world.Specs,
    ways: dict[str, tuple[LayerGate, StyleSettings]],
    seed: int,
    steps: int,
) -> Tensor:
    """Mean distances of scenes to a reference: without sharing, shared in each of the ways, and drawn in its style."""
    picture, prompts = draw(reference), world.captions(scenes)
    target = StyleReference(demo.encode(picture), demo.conditioning(world.captions(reference)))
    sharing = (inject_style(demo.model, StyleInjection(gate, target, settings)) for gate, settings in ways.values())
    shown = [demo.decode(demo.sample(model, prompts, seed, steps)) for model in (demo.model, *sharing)]
    style = demo.verdict(demo.autoencoded(picture)).style
    return torch.stack(
        [
            style_distance(demo.verdict(pictures).style, style).mean()
            for pictures in (*shown, demo.autoencoded(draw(scenes)))
        ]
    )


def way_gone(distances: Tensor) -> list[float]:
    """How far each way to share comes from no sharing (first) to the same style (last); [references, ways + 2]."""
    none, *shared, same = distances.mean(0).tolist()
    return [round((none - distance) / (none - same), 4) for distance in shared]


if __name__ == "__main__":
    main()
