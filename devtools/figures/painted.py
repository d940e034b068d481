"""Figures that are painted: the same prompts with a node and without it."""

from __future__ import annotations

from PIL import Image

from .. import demo_scenes
from ..contact import parts, sheet, stacked
from ..graph import Graph, Link
from ..studio import Studio, figure, overview

# Jobs


@figure("CBStyleFromPicture")
def style_of_picture(studio: Studio, graph: Graph) -> Image.Image:
    model = graph.add("CBLoadDemoModel")
    picture = graph.add("CBDemoPictures", **demo_scenes.REFERENCE)
    taken = {**_checkpoint(model), "image": [picture, 0], "shows": demo_scenes.SHOWS}
    styled = graph.add("CBStyleFromPicture", **taken)
    prompts = "\n".join(demo_scenes.PROMPTS)
    painted = [_painted(graph, model, source, prompts) for source in (model, styled)]
    (shown, without, taken) = studio.shoot(graph, [picture, 0], *painted)
    rows = [("without", [*shown, *without]), ("with", [None, *taken])]
    return sheet(rows, ["the picture", *demo_scenes.PROMPTS], tile=170)


@figure("CBKeepSubject")
def subject_in_surroundings(studio: Studio, graph: Graph) -> Image.Image:
    model, prompt = graph.add("CBLoadDemoModel"), demo_scenes.SUBJECT["prompt"]
    picture = graph.add("CBDemoPictures", **demo_scenes.SURROUNDINGS)
    words = demo_scenes.SUBJECT | {"phrase": ""}
    kept = graph.add("CBKeepSubject", **_checkpoint(model), image=[picture, 0], **words)
    painted = _painted(graph, model, kept, prompt, positive=[kept, 2])
    shown = studio.shoot(graph, [picture, 0], _painted(graph, model, model, prompt), painted)
    return sheet([("", [first for first, *_ in shown])], ["picture", "without", "with"])


@figure("CBStyleAndStructure")
def style_over_structure(studio: Studio, graph: Graph) -> Image.Image:
    model, control = graph.add("CBLoadDemoModel"), graph.add("CBLoadDemoControlNet")
    picture = graph.add("CBDemoPictures", **demo_scenes.REFERENCE)
    scene = graph.add("CBDemoPictures", **demo_scenes.EDGES | {"scenes": demo_scenes.PROMPTS[0]})
    common = {**_checkpoint(model), "control_net": [control, 0], "style_image": [picture, 0]}
    common |= {"structure_image": [scene, 2], "prompt": demo_scenes.PROMPTS[0], "shows": demo_scenes.SHOWS}
    amounts = {"ControlNet alone": {"lambda": 0.0, "kept": 1.0}, "with style": {"lambda": 0.57, "kept": 0.15}}
    nodes = [graph.add("CBStyleAndStructure", **common, **amount) for amount in amounts.values()]
    painted = [_painted(graph, model, node, "", positive=[node, 1]) for node in nodes]
    shown = studio.shoot(graph, [picture, 0], [scene, 2], *painted)
    return sheet([("", [first for first, *_ in shown])], ["style", "structure", *amounts])


@figure("CBSuggestAmount")
def tried_amounts(studio: Studio, graph: Graph) -> Image.Image:
    model = graph.add("CBLoadDemoModel")
    picture = graph.add("CBDemoPictures", **demo_scenes.REFERENCE)
    styled = graph.add("CBStyleFromPicture", **_checkpoint(model), image=[picture, 0], shows=demo_scenes.SHOWS)
    tried = graph.add("CBSuggestAmount", image=_painted(graph, model, styled, demo_scenes.PROMPTS[0]))
    ((strip,),) = studio.shoot(graph, [tried, 1])
    return stacked([strip], strip.width)


def _checkpoint(model: str) -> dict[str, Link]:
    return {name: [model, slot] for slot, name in enumerate(("model", "clip", "vae"))}


def _painted(graph: Graph, model: str, source: str, prompts: str, positive: Link | None = None) -> Link:
    """Decoded pictures of prompts, one on each line, painted by the first output of a node."""
    lines = prompts.count("\n") + 1
    positive = positive or [graph.add("CBPromptBatch", clip=[model, 1], prompts=prompts), 0]
    negative = _empty(graph, model)
    side = demo_scenes.SIDE
    canvas = graph.add("EmptyLatentImage", width=side, height=side, batch_size=lines)
    sampled = graph.add(
        "KSampler", model=[source, 0], positive=positive, negative=negative, latent_image=[canvas, 0],
        seed=demo_scenes.SEED, **demo_scenes.SAMPLING,
    )  # fmt: skip
    return [graph.add("VAEDecode", samples=[sampled, 0], vae=[model, 2]), 0]


def _empty(graph: Graph, model: str) -> Link:
    return [graph.add("CLIPTextEncode", clip=[model, 1], text=""), 0]


# Style


@figure("CBStyleInjection", of="style_balanced_demo")
def injected(studio: Studio, graph: Graph) -> Image.Image:
    plain = graph.first("VAEDecode", without="CBStyleInjection")
    styled = graph.first("VAEDecode", upstream="CBSelectLayers")
    (reference, *_), before, after = studio.shoot(graph, _reference(graph), [plain, 0], [styled, 0])
    rows = [("", [shown, *pair]) for shown, *pair in zip([reference, None], before, after, strict=False)]
    return sheet(rows, ["reference", "without", "with"])


@figure("CBBeforeAfter", of="style_balanced_demo")
def set_side_by_side(studio: Studio, graph: Graph) -> Image.Image:
    plain = graph.first("VAEDecode", without="CBStyleInjection")
    styled = graph.first("VAEDecode", upstream="CBSelectLayers")
    shown = graph.add("CBBeforeAfter", before=[plain, 0], after=[styled, 0], reference=_reference(graph))
    ((strip, *_),) = studio.shoot(graph, [shown, 0])
    return sheet([("", [strip])], ["reference, before, after"], tile=2 * strip.height)


@figure("CBStyleReference", of="style_balanced_demo")
def referred(studio: Studio, graph: Graph) -> Image.Image:
    styled = graph.first("VAEDecode", upstream="CBSelectLayers")
    first, other = _reference(graph), [graph.changed(_reference(graph)[0], **demo_scenes.OTHER), 0]
    told = graph.input(graph.first("CBStyleReference"), "prompt")[0]
    swapped = graph.rebuilt(styled, _reference(graph)[0], other[0])
    swapped = graph.rebuilt(swapped, told, graph.changed(told, text=demo_scenes.OTHER_SHOWS))
    references = studio.shoot(graph, first, other)
    results = studio.shoot(graph, [styled, 0], [swapped, 0])
    rows = [("", [shown[0], *taken[:3]]) for shown, taken in zip(references, results, strict=True)]
    return sheet(rows, ["reference", "", "takes its style", ""], tile=130)


def _reference(graph: Graph) -> Link:
    """The picture that the workflow's style reference encodes."""
    latent = graph.input(graph.first("CBStyleReference"), "latent")
    return graph.input(latent[0], "pixels")


@figure("CBPromptBatch", of="style_balanced_demo")
def prompted(studio: Studio, graph: Graph) -> Image.Image:
    lines = graph.input(graph.first("CBPromptBatch"), "prompts").splitlines()
    (pictures,) = studio.shoot(graph, [graph.first("VAEDecode", without="CBStyleInjection"), 0])
    labels = [f"{number}   {line}" for number, line in enumerate(filter(str.strip, lines), 1)]
    return sheet([(label, [picture]) for label, picture in zip(labels, pictures, strict=True)], tile=130)


# Subjects


@figure("CBSubject", of="subject_kept_demo")
def named(studio: Studio, graph: Graph) -> Image.Image:
    subject = graph.first("CBSubject")
    phrase, around = graph.input(subject, "phrase"), graph.input(subject, "surroundings")
    swapped = graph.changed(subject, phrase=around, surroundings=phrase)
    picture = [_plain(graph), 0]
    masks = [[_found(graph, each, picture), 1] for each in (subject, swapped)]
    (drawn,), (found,), (rest,) = studio.shoot(graph, picture, *masks)
    heads = ["", f"phrase: {phrase}", f"phrase: {around}"]
    return sheet([("", [drawn, found, rest])], heads, title=f"prompt: {graph.input(subject, 'prompt')}", tile=200)


@figure("CBGradSAMMask", of="subject_kept_demo")
def masked(studio: Studio, graph: Graph) -> Image.Image:
    picture = [_plain(graph), 0]
    found = _found(graph, graph.first("CBSubject"), picture)
    mask = graph.add("MaskToImage", mask=[found, 0])
    (drawn,), (white,), (shown,) = studio.shoot(graph, picture, [mask, 0], [found, 1])
    return sheet([("", [drawn, white, shown])], ["picture", "mask", "overlay"], tile=200)


def _plain(graph: Graph) -> str:
    """What the workflow's sampler draws when Grad-SAM Blend only measures."""
    blend = graph.first("CBGradSAMBlend")
    return graph.rebuilt(graph.first("VAEDecode"), blend, graph.changed(blend, mode="only measure"))


def _found(graph: Graph, subject: str, picture: Link) -> str:
    """Add a Grad-SAM Mask on a picture."""
    model = graph.first("CBLoadDemoModel")
    latent = graph.add("VAEEncode", pixels=picture, vae=[model, 2])
    return graph.add("CBGradSAMMask", model=[model, 0], latent=[latent, 0], subject=[subject, 1], image=picture)


@figure("CBGradSAMBlend", of="subject_kept_demo")
def blended(studio: Studio, graph: Graph) -> Image.Image:
    encoded = graph.input(graph.first("CBGradSAMBlend"), "reference")[0]
    reference, kept = graph.input(encoded, "pixels"), [graph.first("VAEDecode"), 0]
    (around,), (alone,), (result,) = studio.shoot(graph, reference, [_plain(graph), 0], kept)
    return sheet([("", [alone, around, result])], ["without", "reference", "with"], tile=200)


@overview("subject_masks", of="subject_kept_demo")
def subject_masks(studio: Studio, graph: Graph) -> Image.Image:
    blend, shown = graph.first("CBGradSAMBlend"), graph.first("CBAttributionPreview")
    phrase = graph.input(graph.first("CBSubject"), "phrase")
    reference = graph.input(graph.input(blend, "reference")[0], "pixels")
    links = [_plain(graph), 0], [shown, 1], reference, [graph.first("VAEDecode"), 0]
    (alone,), (*_, found), (around,), (result,) = studio.shoot(graph, *links)
    heads = ["the model alone", f"where its {phrase} is", "reference", "blended"]
    return sheet([("", [alone, parts(found, 3)[0], around, result])], heads, tile=194)


@figure("CBAttributionPreview", of="subject_kept_demo")
def previewed(studio: Studio, graph: Graph) -> Image.Image:
    (windows,) = studio.shoot(graph, [graph.first("CBAttributionPreview"), 1])
    labels = [part.strip() for part in graph.input(graph.first("CBGradSAMBlend"), "windows").split(",")]
    rows = [(label, parts(window, 3)) for label, window in zip(labels, windows, strict=True)]
    return sheet(rows, ["map", "mask", "overlay"])


# Trajectories


@figure("CBRecordTrajectory", of="style_balanced_demo")
def led_by_a_run(studio: Studio, graph: Graph) -> Image.Image:
    decode = graph.first("VAEDecode", upstream="CBStyleInjection")
    sampler, injection = graph.input(decode, "samples")[0], graph.first("CBStyleInjection")
    model, prompt = graph.first("CBLoadDemoModel"), "a house in the hills, stained glass style"
    text = graph.add("CLIPTextEncode", clip=[model, 1], text=prompt)
    size = graph.changed(graph.input(sampler, "latent_image")[0], batch_size=1)
    recorder = graph.add("CBRecordTrajectory", model=[model, 0])
    painted = graph.changed(sampler, model=[recorder, 0], positive=[text, 0], latent_image=[size, 0])
    way = graph.add(
        "CBStyleReference", mode="trajectory", latent=[painted, 0], prompt=[text, 0], trajectory=[recorder, 1]
    )
    led = graph.rebuilt(decode, injection, graph.changed(injection, reference=[way, 0]))
    plain = graph.first("VAEDecode", without="CBStyleInjection")
    shown = graph.add("VAEDecode", samples=[painted, 0], vae=[model, 2])
    (reference,), *results = studio.shoot(graph, [shown, 0], [plain, 0], [led, 0])
    rows = [("", [part, *two]) for part, *two in zip([reference, None], *results, strict=False)]
    return sheet(rows, ["recorded run", "without", "led by it"], tile=160)


@figure("CBInvertLatent", of="style_balanced_demo")
def inverted(studio: Studio, graph: Graph) -> Image.Image:
    model = graph.first("CBLoadDemoModel")
    many = graph.input(graph.first("CBStyleReference"), "latent")
    latent = [graph.add("LatentFromBatch", samples=many, batch_index=0, length=1), 0]
    texts = [graph.add("CLIPTextEncode", clip=[model, 1], text=text) for text in ("", "a boat by the sea")]
    common = {"model": [model, 0], "positive": [texts[0], 0], "latent": latent, "steps": 20}
    ways = [
        graph.add("CBInvertLatent", **common, mode=mode, refinements=each)
        for mode, each in (("plain", 0), ("direct", 1))
    ]
    empty = graph.add("LatentMultiply", samples=latent, multiplier=0.0)
    sampler = graph.add("KSamplerSelect", sampler_name="euler")
    links = []
    for way, text in ((ways[0], texts[0]), (ways[1], texts[0]), (ways[1], texts[1])):
        guider = graph.add("BasicGuider", model=[way, 1], conditioning=[text, 0])
        back = graph.add("SamplerCustomAdvanced", noise=[way, 2], guider=[guider, 0], sampler=[sampler, 0],
                         sigmas=[way, 3], latent_image=[empty, 0])  # fmt: skip
        links.append([graph.add("VAEDecode", samples=[back, 0], vae=[model, 2]), 0])
    (reference, *_), *shown = studio.shoot(graph, _reference(graph), *links)
    heads = ["picture", "plain, 0 refinements", "direct", "another prompt"]
    return sheet([("", [reference, *(first for first, *_ in shown)])], heads, tile=160)


# Guidance


@figure("CBProject", of="style_balanced_demo")
def projected(studio: Studio, graph: Graph) -> Image.Image:
    decode = graph.first("VAEDecode", without="CBStyleInjection")
    sampler, vae = graph.input(decode, "samples")[0], graph.input(decode, "vae")
    picture = [graph.add("CBDemoPictures", **demo_scenes.REPAINTED), 0]
    latent = [graph.add("VAEEncode", pixels=picture, vae=vae), 0]
    results = [[decode, 0]]
    for known in ("low resolution", "colour"):
        held = graph.add("CBProject", model=graph.input(sampler, "model"), latent=latent, known=known, cell=32)
        results.append([graph.changed(decode, samples=[graph.changed(sampler, model=[held, 0]), 0]), 0])
    (held_to,), *shown = studio.shoot(graph, picture, *results)
    rows = [("", [part, *three]) for part, *three in zip([held_to, None], *shown, strict=False)]
    return sheet(rows, ["picture", "without", "low resolution", "colour"], tile=130)


@figure("CBNoiseBlend", of="noise_blend_demo")
def blended_prompts(studio: Studio, graph: Graph) -> Image.Image:
    one, other, region = graph.all("VAEDecode")
    blend = graph.first("CBNoiseBlend")
    given = {name: graph.input(blend, name) for name in ("model", "conditioning")}
    sampler = graph.input(one, "samples")[0]
    links = [[one, 0], [other, 0], [region, 0]]
    for changed in ({"own_prompt": "stays"}, {"end_percent": 0.35}):
        mixed = graph.changed(sampler, model=[graph.add("CBNoiseBlend", **given, **changed), 0])
        links.append([graph.changed(one, samples=[mixed, 0]), 0])
    shown = studio.shoot(graph, *links)
    heads = ["prompt", "other prompt", "by region", "both", "by noise level"]
    return sheet([("", [first for first, *_ in shown])], heads, tile=128)


@figure("CBLayerContrast", of="style_balanced_demo")
def guided_by_style(studio: Studio, graph: Graph) -> Image.Image:
    decode, injection = graph.first("VAEDecode", without="CBStyleInjection"), graph.first("CBStyleInjection")
    sampler = graph.input(decode, "samples")[0]
    given = {name: graph.input(injection, name) for name in ("gate", "reference")}
    results = [[decode, 0]]
    for strength in (1.5, 3.0):
        led = graph.add("CBLayerContrast", model=graph.input(sampler, "model"), strength=strength, **given)
        results.append([graph.changed(decode, samples=[graph.changed(sampler, model=[led, 0]), 0]), 0])
    (reference, *_), *shown = studio.shoot(graph, _reference(graph), *results)
    rows = [("", [part, *three]) for part, *three in zip([reference, None], *shown, strict=False)]
    return sheet(rows, ["reference", "without", "strength 1.5", "strength 3"], tile=130)
