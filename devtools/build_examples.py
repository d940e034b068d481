"""Writes example workflows and blueprints for the front end: python devtools/run.py devtools/build_examples.py

Node ids, slots and the order of widgets come from the node list of a running ComfyUI, so that a change of a schema
needs no editing by hand: build again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from devtools import comfyui, demo_scenes, environment, examples, families, server
from devtools.comfyui import ROOT
from devtools.families import Family, Loaded, result, style_of_picture
from devtools.sheet import Blueprint, Sheet, Source, save

DEMO = {"seed": demo_scenes.SEED, **demo_scenes.SAMPLING}
SDXL = DEMO | {"seed": 10, "steps": 30, "cfg": 5.0}
BASE_SDXL = "sd_xl_base_1.0.safetensors"
HUGGING_FACE = "https://huggingface.co"
BASE_SD15 = "v1-5-pruned-emaonly-fp16.safetensors"
CANNY_SDXL = "diffusers_xl_canny_full.safetensors"
MODELS = {
    BASE_SDXL: ("stabilityai/stable-diffusion-xl-base-1.0", "", "checkpoints"),
    BASE_SD15: ("Comfy-Org/stable-diffusion-v1-5-archive", "", "checkpoints"),
    CANNY_SDXL: ("lllyasviel/sd_control_collection", "", "controlnet"),
    **families.MODELS,
}
"""Repository, folder inside it, and folder of ComfyUI's models: the front end offers to download what is missing."""
PUBLISHED = "sdxl-base-1.0.style.published.safetensors"
DEMO_PROFILE = "demo.style.safetensors"
BALANCED = 0.2  # lambda at which the demo model takes the style as far as with all layers and keeps the content
WITH_STRUCTURE = 0.57  # style amount beside a ControlNet, as README says
OWN_PROMPT = "a red fox in the snow"
AMOUNT, SIX_CHOICES = "style amount", "Six choices of layers"
MAP = "cb_layer_map"  # the name of js/layer_map's widget
SQUARE = {"upscale_method": "lanczos", "width": 1024, "height": 1024, "crop": "center"}


class Painting(NamedTuple):
    """What the branches of a comparison share."""

    model: Source
    vae: Source
    profile: Source
    picture: Source
    reference: Source
    positive: Source
    negative: Source
    canvas: Source
    sampling: dict[str, Any]


Drawn = Callable[[Sheet, Painting, dict[str, Source]], Source]
"""What draws the branches of a comparison, from what they share and what they are given besides, to a sheet."""


class Painter(NamedTuple):
    """A model, and how it paints: the demo's, or a checkpoint; `prefix` begins the names of saved pictures."""

    model: Source
    clip: Source
    vae: Source
    side: int
    sampling: dict[str, Any]
    prefix: str

    def text(self, sheet: Sheet, title: str, text: Source | str) -> Source:
        return sheet.add("CLIPTextEncode", title, clip=self.clip, text=text), 0

    def canvas(self, sheet: Sheet, width: int, height: int, count: int = 1) -> Source:
        return sheet.add("EmptyLatentImage", width=width, height=height, batch_size=count), 0

    def decoded(self, sheet: Sheet, latent: Source) -> Source:
        return sheet.add("VAEDecode", samples=latent, vae=self.vae), 0


def _demo_painter(sheet: Sheet) -> Painter:
    model = sheet.add("CBLoadDemoModel")
    return Painter(*Loaded.of(model), demo_scenes.SIDE, DEMO, "demo_")


def _sdxl_painter(sheet: Sheet) -> Painter:
    model = sheet.add("CheckpointLoaderSimple", ckpt_name=BASE_SDXL)
    return Painter(*Loaded.of(model), 1024, SDXL, "")


def _loaded_square(sheet: Sheet, title: str) -> Source:
    """A picture of the user's own, at SDXL's size."""
    picture = sheet.add("LoadImage", title, tall=360, image="example.png")
    return sheet.add("ImageScale", image=(picture, 0), **SQUARE), 0


def profile_demo(sheet: Sheet) -> None:
    """Measure the demo model on six styles that paint the same five scenes."""
    sheet.next_column("Model")
    sheet.note(
        "## Where does this model keep style?\n\nSix clusters, each five pictures in one style, all of the same scenes."
        " **Profile Sensitivity** noises them, runs the model and measures, for every attention layer, how alike it finds"
        " pictures of one style. **subjects** names the scenes, so that the report tells style and content apart.\n\n"
        "Press **Run**. Then measure your own checkpoint:"
        " template *5 Measure your checkpoint*.",
    )
    model = sheet.add("CBLoadDemoModel")
    prompt = sheet.add("CLIPTextEncode", "Prompt for all pictures", clip=(model, 1), text="a picture")
    empty = sheet.add("CLIPTextEncode", "Negative", clip=(model, 1), text="")
    clusters: Source | None = None
    scenes = "\n".join(demo_scenes.CLUSTER_SCENES)
    subjects = ", ".join(scene.split()[1] for scene in demo_scenes.CLUSTER_SCENES)
    for number, (style, hand, medium) in enumerate(demo_scenes.CLUSTERS):
        if number % 3 == 0:
            sheet.next_column(f"Clusters {number + 1} to {number + 3}")
        pictures = sheet.add("CBDemoPictures", hand=hand, medium=medium, seed=7, scenes=scenes)
        previous = {"previous": clusters} if clusters else {}
        named = {"name": style, "subjects": subjects}
        clusters = (sheet.add("CBImageClusters", images=(pictures, 0), **named, **previous), 0)
    _measured(sheet, model, clusters, (prompt, 0), (empty, 0), demo_scenes.SIDE, "demo.style.mine")


def profile_sdxl(sheet: Sheet) -> None:
    """Measure a checkpoint on a folder of pictures for each style."""
    sheet.next_column("Model")
    sheet.note(
        "## Profile your checkpoint\n\n1. Make a folder in ComfyUI's *input* folder and in it one folder for each"
        " style: at least two, better six or more, with 5 to 12 pictures each. Best draw the same"
        " subjects in every style and give equal subjects equal file names (*cat.png* in each folder): they are read as"
        " subjects, and style and content are told apart.\n2. Press **R** and"
        " choose it as *folder*.\n3. Choose your checkpoint: SDXL, or SD1.5 with **size** 512.\n4. Press **Run**; it"
        " takes minutes.\n\nThe profile is saved under **name**. Choose it afterwards in *Load Sensitivity Profile*, in"
        " every workflow with this checkpoint.",
        380,
    )
    model = sheet.add("CheckpointLoaderSimple", ckpt_name=BASE_SDXL)
    sheet.next_column("Pictures and prompts")
    clusters = sheet.add("CBLoadImageClusters", folder="styles")
    prompt = sheet.add("CLIPTextEncode", "Prompt for all pictures", clip=(model, 1), text="a picture")
    empty = sheet.add("CLIPTextEncode", "Negative", clip=(model, 1), text="")
    _measured(sheet, model, (clusters, 0), (prompt, 0), (empty, 0), 1024, "my-sdxl.style")


def _measured(
    sheet: Sheet, model: int, clusters: Source, positive: Source, negative: Source, size: int, name: str
) -> None:
    sheet.next_column("Measure", 420)
    measured = sheet.add(
        "CBProfileSensitivity", model=(model, 0), clusters=clusters, vae=(model, 2), positive=positive,
        negative=negative, size=size,
    )  # fmt: skip
    sheet.add("CBSaveSensitivityProfile", profile=(measured, 0), name=name)
    sheet.next_column("Heat map", 560)
    sheet.add("SaveImage", tall=560, images=(measured, 1), filename_prefix=f"{name.partition('.')[0]}_heat_map")


def effect_demo(sheet: Sheet) -> None:
    """Every layer opened by itself, and the layers that act most."""
    sheet.next_column("What it shows")
    sheet.note(
        "## What does each layer do?\n\nFour prompts are painted without the reference. Then **Measure Layers** lets the"
        " reference's style into one attention layer at a time, at two noise levels, without sampling again. The map"
        " is bright where a layer brings the style by itself; the report names layers that move the layout.\n\nPress"
        " **Run**. The last row is painted through the layers that bring the most style.",
    )
    shared = _demo_painting(sheet)
    sheet.next_column("plain")
    latent, plain = _sampled(sheet, shared, "plain", shared.model)
    gate = _effect(sheet, shared, latent, noise_levels=2)
    rows = {"plain": plain, "measured": _row(sheet, shared, "measured", gate)}
    _saved(sheet, _contact_sheet(sheet, shared, rows), "demo_what_layers_do")


def effect_sdxl(sheet: Sheet) -> None:
    """The same for SDXL."""
    sheet.next_column("What it shows")
    sheet.note(
        "## What does each layer do? (SDXL)\n\n1. Choose an SDXL checkpoint.\n2. Load a reference picture, and say in its"
        " prompt what it shows and in which style.\n3. Press **Run**.\n\nTwo prompts are painted without the reference."
        " Then **Measure Layers** lets its style into one attention layer at a time: 71 model calls for each of four"
        " noise levels, about as long as ten pictures. The map is bright where a layer brings the style by itself. The"
        " result is painted through the layers that bring the most style.",
    )
    shared = _sdxl_painting(sheet)
    sheet.next_column("plain")
    latent, _ = _sampled(sheet, shared, "plain", shared.model)
    painted = _row(sheet, shared, "measured", _effect(sheet, shared, latent))
    sheet.next_column("Result", 760)
    sheet.add("SaveImage", tall=640, images=painted, filename_prefix="what_layers_do")


def _effect(sheet: Sheet, shared: Painting, plain: Source, **widgets: Any) -> Source:
    """The measured effect of every layer on what was painted plainly, shown; a gate of the layers that act most."""
    sheet.next_column("What each layer does", 560)
    measured = sheet.add(
        "CBMeasureLayers", model=shared.model, reference=shared.reference, latent=plain, positive=shared.positive,
        profile=shared.profile, **widgets,
    )  # fmt: skip
    sheet.add("SaveImage", tall=400, images=(measured, 1), filename_prefix="what_layers_do_map")
    return sheet.add("CBSelectLayers", profile=(measured, 0), **{"lambda": BALANCED}), 0


def recorded_demo(sheet: Sheet) -> None:
    """Three styles of three subjects, measured while they are painted."""
    sheet.next_column("Model")
    sheet.note(
        "## Measure while it paints\n\nEach sampler paints the same three subjects in a style of its own, with the same"
        " noise. **Record Sensitivity** before it writes down what the attention layers do: *label* names the style,"
        " *subject* what is shown. **Profile from Recording** makes a ranking of all that was recorded, of style and of"
        " content.\n\nPress **Run**. Pictures made in later runs are added to the recording: it lies in"
        " *output/sensitivity_recordings*, under the name in **series**.",
    )
    _recorded(sheet, _demo_painter(sheet), demo_scenes.RECORDED_STYLES, "drawing", "demo.style.recorded")


def recorded_sdxl(sheet: Sheet) -> None:
    """The same for SDXL."""
    sheet.next_column("Model")
    sheet.note(
        "## Measure while it paints (SDXL)\n\n1. Choose an SDXL checkpoint. SD1.5: set the size to 512.\n2. Write the same"
        " subjects in every style, one prompt a line; **label** names the style, **subject** the subjects in the order of"
        " the lines.\n3. Press **Run**: nine pictures are painted and recorded.\n\nFor a better ranking change the"
        " prompts, *label* and *subject*, and press **Run** again: pictures are added to **series** until you give"
        " another name. Five styles of five subjects rank well.\n\nThe profile is saved under **name**; choose it in *Load"
        " Sensitivity Profile*.",
        400,
    )
    styles = "watercolor", "oil", "ink"
    _recorded(sheet, _sdxl_painter(sheet), styles, "painting", "my-sdxl.style.recorded")


def _recorded(sheet: Sheet, painter: Painter, styles: Sequence[str], work: str, name: str) -> None:
    """Each style's prompts, such as "a cat by the sea, ink drawing", painted; and the profile of them all."""
    subjects = demo_scenes.RECORDED_SUBJECTS
    negative = painter.text(sheet, "Negative", "")
    canvas = painter.canvas(sheet, painter.side, painter.side, len(subjects))
    painted: Source | None = None
    for style in styles:
        sheet.next_column(style)
        prompts = "\n".join(f"a {subject} by the sea, {style} {work}" for subject in subjects)
        positive = sheet.add("CBPromptBatch", clip=painter.clip, prompts=prompts)
        recording = sheet.add("CBRecordSensitivity", model=painter.model, label=style, subject=", ".join(subjects))
        sampled = sheet.add(
            "KSampler", f"Sample: {style}", model=(recording, 0), positive=(positive, 0), negative=negative,
            latent_image=canvas, **painter.sampling,
        )  # fmt: skip
        if painted:
            painted = (sheet.add("LatentBatch", samples1=painted, samples2=(sampled, 0)), 0)
        else:
            painted = (sampled, 0)
    sheet.next_column("What was recorded", 480)
    pictures = sheet.add("VAEDecode", samples=painted, vae=painter.vae)
    sheet.add("SaveImage", tall=480, images=(pictures, 0), filename_prefix=f"{painter.prefix}recorded")
    sheet.next_column("Profile", 420)
    profile = sheet.add("CBProfileFromRecording", after=painted)
    sheet.add("CBSaveSensitivityProfile", profile=(profile, 0), name=name)
    sheet.next_column("Heat map", 560)
    sheet.add("SaveImage", tall=560, images=(profile, 1), filename_prefix=f"{name}_heat_map")


def style_demo(sheet: Sheet) -> None:
    """No style, the layers that one style amount keeps, all layers: what a first-time user drags and sees."""
    sheet.next_column("1  Press Run")
    sheet.note(
        "## Style, balanced\n\nPress **Run**: the first row paints four prompts without the reference picture, the last"
        " one takes its style through all 21 attention layers, and the row between through the few that **style"
        " amount** keeps.\n\nDrag **style amount** in *Select Layers*: the map lights up the layers that will listen; press"
        " **Run** again and the middle row changes.\n\nAt 0 it is the first row and at 1 the last: look for the least that"
        " brings the style over and leaves what you asked for in the picture.",
        360,
    )
    sheet.next_column("2  Drag style amount", 380)
    gate = sheet.add("CBSelectLayers", **{"lambda": BALANCED})
    sheet.next_column("3  Press Run again and compare", 640)
    result = sheet.add("SaveImage", "Result", tall=616, filename_prefix="demo_style_lambda")
    sheet.next_band()
    shared = _demo_painting(sheet)
    sheet.join(shared.profile, gate, "profile")
    rows = _folded(sheet, shared, "No style, your amount, all of it", _three_amounts, gate=(gate, 0))
    sheet.join(rows, result, "images")


def _three_amounts(sheet: Sheet, shared: Painting, given: dict[str, Source]) -> Source:
    rows = {"no style taken": _row(sheet, shared, "no style taken")}
    rows["your amount"] = _row(sheet, shared, "your amount", given["gate"])
    rows["all layers"] = _every_layer(sheet, shared)
    return _contact_sheet(sheet, shared, rows)


def style_sweep_demo(sheet: Sheet) -> None:
    """One prompt batch, from no sharing over three lambdas to sharing on all layers."""
    sheet.next_column("Sweep")
    sheet.note(
        "## More and more style\n\nEvery row paints the same four prompts with the same noise. The reference's style"
        " enters through no layer, through the 20, 43 and 70 % that the profile ranks most style-sensitive, and through"
        " all.\n\nPress **Run**. To try one style amount after another by hand, open *1 Style from a picture, step by step*.",
    )
    shared = _demo_painting(sheet)
    _saved(sheet, _folded(sheet, shared, "Five amounts of style", _five_amounts), "demo_style_balanced")


def _five_amounts(sheet: Sheet, shared: Painting, given: dict[str, Source]) -> Source:
    rows = {"plain": _row(sheet, shared, "plain")}
    for share in (0.2, 0.43, 0.7):
        rows[f"style {share}"] = _row(sheet, shared, f"style {share}", **{"lambda": share})
    rows["all layers"] = _every_layer(sheet, shared)
    return _contact_sheet(sheet, shared, rows)


def compare_demo(sheet: Sheet) -> None:
    """Does the ranking matter? As many layers by rank, evenly spaced, drawn at random, and the lowest ranked."""
    sheet.next_column("How many layers")
    sheet.note(
        "## Which layers take the style?\n\nAll rows paint the same prompts with the same noise and reference. Those"
        " between *plain* and *all layers* share through **equally many** layers: the ones that the profile ranks"
        " first, evenly spaced ones, ones drawn at random, and the ones that it ranks last.\n\nChange **style amount**,"
        " the share of layers, and press **Run**. The rows lie inside *Six choices of layers*: its button opens it.",
    )
    compared = _folded(sheet, _demo_painting(sheet), SIX_CHOICES, _six_rows, {AMOUNT: BALANCED})
    _saved(sheet, compared, "demo_compare_layers")


def _six_rows(sheet: Sheet, shared: Painting, given: dict[str, Source]) -> Source:
    return _contact_sheet(sheet, shared, _compared(sheet, shared, given[AMOUNT]))


def compare_sdxl(sheet: Sheet) -> None:
    """The same for SDXL; core's own nodes lay the pictures side by side."""
    sheet.next_column("How many layers")
    sheet.note(
        "## Which layers take the style? (SDXL)\n\n1. Choose an SDXL checkpoint.\n2. Load a reference picture, and say"
        " in its prompt what it shows and in which style.\n3. End your own prompts with the same style words.\n4. Press"
        " **Run**; each prompt is painted six times.\n\nThe sheet, one for each prompt, shows above *plain*, *ranked*,"
        " *evenly spaced*, and below *random*, *reversed* (ranked last), *all layers*. The four between use equally"
        " many layers: **style amount**. All lie inside *Six choices of layers*.\n\nFor a finetune, choose a profile of its own. SD1.5: choose one measured"
        " with *5 Measure your checkpoint*, and set every size to 512.",
        460,
    )
    compared = _folded(sheet, _sdxl_painting(sheet), SIX_CHOICES, _two_rows_of_three, {AMOUNT: 0.43})
    sheet.next_column("Result", 760)
    sheet.add("SaveImage", tall=640, images=compared, filename_prefix="compare_layers")


def _two_rows_of_three(sheet: Sheet, shared: Painting, given: dict[str, Source]) -> Source:
    painted = list(_compared(sheet, shared, given[AMOUNT]).values())
    sheet.next_column("Sheet")
    halves = [_stitched(sheet, painted[:3], "right"), _stitched(sheet, painted[3:], "right")]
    whole = _stitched(sheet, halves, "down")
    return sheet.add("ImageScaleBy", "Half size", image=whole, upscale_method="area", scale_by=0.5), 0


def _compared(sheet: Sheet, shared: Painting, share: Source) -> dict[str, Source]:
    """Decoded pictures by the name of their row, each in a column of its own."""
    rows = {"plain": _row(sheet, shared, "plain")}
    for name, policy in {"ranked": "per-step", "evenly spaced": "evenly spaced", "random": "random"}.items():
        rows[name] = _row(sheet, shared, name, policy=policy, **{"lambda": share})
    rows["ranked last"] = _row(sheet, shared, "ranked last", policy="reversed", **{"lambda": share})
    rows["all layers"] = _every_layer(sheet, shared)
    return rows


def _folded(
    sheet: Sheet, shared: Painting, name: str, draw: Drawn, dials: Mapping[str, float] | None = None, **more: Source
) -> Source:
    """One node that holds the branches of a comparison: it takes what they share, and gives the sheet of them all."""
    sheet.next_column("All of them", 400)
    inside = Blueprint(sheet.known, name, "Paints every branch of a comparison and lays the pictures side by side.")
    sources = {part: source for part, source in shared._asdict().items() if part != "sampling"} | more
    within = {part: inside.input(part, sheet.kind_of(source)) for part, source in sources.items()}
    given = {part: within[part] for part in more}
    given |= {dial: inside.input(dial, "FLOAT", value) for dial, value in (dials or {}).items()}
    painting = Painting(*(within[part] for part in Painting._fields[:-1]), shared.sampling)
    inside.output("sheet", "IMAGE", draw(inside, painting, given))
    taken = inside.prune()
    return sheet.fold(inside, [source for part, source in sources.items() if part in taken]), 0


def _row(sheet: Sheet, shared: Painting, name: str, gate: Source | None = None, **selected: Any) -> Source:
    """A column that paints through a gate, through layers `selected`, or without either through none."""
    sheet.next_column(name)
    if selected:
        gate = (sheet.add("CBSelectLayers", f"Layers: {name}", profile=shared.profile, **selected), 0)
    return _painted(sheet, shared, name, gate)


def _every_layer(sheet: Sheet, shared: Painting) -> Source:
    sheet.next_column("all layers")
    gate = sheet.add("CBLayerGate", "Every layer", layers="all")
    return _painted(sheet, shared, "all layers", (gate, 0))


def _painted(sheet: Sheet, shared: Painting, name: str, gate: Source | None) -> Source:
    model = shared.model
    if gate:
        model = (sheet.add("CBStyleInjection", model=model, gate=gate, reference=shared.reference), 0)
    return _sampled(sheet, shared, name, model)[1]


def _sampled(sheet: Sheet, shared: Painting, name: str, model: Source) -> tuple[Source, Source]:
    """Latents and pictures."""
    sampled = sheet.add(
        "KSampler", f"Sample: {name}", model=model, positive=shared.positive, negative=shared.negative,
        latent_image=shared.canvas, **shared.sampling,
    )  # fmt: skip
    return (sampled, 0), (sheet.add("VAEDecode", samples=(sampled, 0), vae=shared.vae), 0)


def _demo_painting(sheet: Sheet) -> Painting:
    """Four prompts that name no style, and a picture that gives it."""
    sheet.next_column("Model and ranking")
    model = sheet.add("CBLoadDemoModel")
    profile = sheet.add("CBLoadSensitivityProfile", profile=DEMO_PROFILE, model=(model, 0))
    sheet.next_column("Whose style")
    picture = sheet.add("CBDemoPictures", "Reference picture", **demo_scenes.REFERENCE)
    about = sheet.add("CLIPTextEncode", "What the reference shows", clip=(model, 1), text=demo_scenes.SHOWS)
    latent = sheet.add("VAEEncode", pixels=(picture, 0), vae=(model, 2))
    reference = sheet.add("CBStyleReference", latent=(latent, 0), prompt=(about, 0))
    sheet.next_column("What to paint")
    prompts = "\n".join(demo_scenes.PROMPTS)
    positive = sheet.add("CBPromptBatch", clip=(model, 1), prompts=prompts)
    negative = sheet.add("CLIPTextEncode", "Negative", clip=(model, 1), text="")
    canvas = sheet.add("EmptyLatentImage", width=demo_scenes.SIDE, height=demo_scenes.SIDE, batch_size=4)
    first = ((number, 0) for number in (profile, picture, reference, positive, negative, canvas))
    return Painting((model, 0), (model, 2), *first, DEMO)


def _sdxl_painting(sheet: Sheet) -> Painting:
    """The same of a checkpoint and a loaded picture."""
    sheet.next_column("Model and ranking")
    model = sheet.add("CheckpointLoaderSimple", ckpt_name=BASE_SDXL)
    profile = sheet.add("CBLoadSensitivityProfile", profile=PUBLISHED, model=(model, 0))
    sheet.next_column("Whose style")
    picture = sheet.add("LoadImage", "Reference picture", tall=360, image="example.png")
    fitted = sheet.add("ImageScale", image=(picture, 0), **SQUARE)
    latent = sheet.add("VAEEncode", pixels=(fitted, 0), vae=(model, 2))
    about = sheet.add(
        "CLIPTextEncode", "What the reference shows", clip=(model, 1), text="a landscape, watercolor painting"
    )
    reference = sheet.add("CBStyleReference", latent=(latent, 0), prompt=(about, 0))
    sheet.next_column("What to paint")
    prompts = "a red fox in the snow, watercolor painting\na lighthouse at dusk, watercolor painting"
    positive = sheet.add("CBPromptBatch", clip=(model, 1), prompts=prompts)
    negative = sheet.add("CLIPTextEncode", "Negative", clip=(model, 1), text="")
    canvas = sheet.add("EmptyLatentImage", width=1024, height=1024, batch_size=2)
    first = ((number, 0) for number in (profile, fitted, reference, positive, negative, canvas))
    return Painting((model, 0), (model, 2), *first, SDXL)


def _contact_sheet(sheet: Sheet, shared: Painting, rows: dict[str, Source]) -> Source:
    sheet.next_column("Contact sheet", 560)
    numbered = {f"row_{number}": source for number, source in enumerate(rows.values(), 1)}
    labels = "\n".join(["reference", *rows])
    return sheet.add("CBDemoSheet", reference=shared.picture, labels=labels, **numbered), 0


def _saved(sheet: Sheet, table: Source, name: str) -> None:
    sheet.add("SaveImage", "Result", tall=620, images=table, filename_prefix=name)


def _stitched(sheet: Sheet, pictures: list[Source], direction: str) -> Source:
    """Pictures in a line, by core's node for two."""
    first, *others = pictures
    for other in others:
        first = (sheet.add("ImageStitch", image1=first, image2=other, direction=direction, spacing_width=16), 0)
    return first


def style_picture_demo(sheet: Sheet) -> None:
    """The smallest graph that takes a picture's style, with the demo model."""
    sheet.next_column("1  Press Run")
    sheet.note(
        "## Style from a picture\n\nPress **Run**: your prompt comes out in the style of the painted picture. Drag **style"
        " amount** and press **Run** again: 0 leaves the style to the prompt, 1 takes all there is. Say in **what it"
        " shows** what the picture shows, so that its subject stays out of yours.",
        300,
    )
    model = sheet.add("CBLoadDemoModel")
    picture = sheet.add("CBDemoPictures", "Whose style", **demo_scenes.REFERENCE)
    texts = (demo_scenes.SHOWS, demo_scenes.PROMPT, "")
    demo = Family("EmptyLatentImage", demo_scenes.SIDE, DEMO)
    style_of_picture(sheet, Loaded.of(model), (picture, 0), texts, demo, "demo_")


def style_transformer_demo(sheet: Sheet) -> None:
    """The same with the demo transformer, whose text encoder and autoencoder are the demo model's."""
    sheet.next_column("1  Press Run")
    sheet.note(
        "## Style from a picture, with a transformer\n\nA small diffusion transformer in Flux form paints here, with the"
        " same nodes as any model. Press **Run**, then drag **style amount** and press **Run** again: at 0.2 the lines of"
        " the engraving come over, at 1 they drown the subject.",
        240,
    )
    model = sheet.add("CBLoadDemoModel")
    transformer = sheet.add("CBLoadDemoTransformer")
    picture = sheet.add("CBDemoPictures", "Whose style", **demo_scenes.TEXTURE)
    texts = (demo_scenes.TEXTURE_SHOWS, demo_scenes.TRANSFORMED, "")
    loaded = Loaded.of(model)._replace(model=(transformer, 0))
    family = Family("EmptyLatentImage", demo_scenes.SIDE, DEMO, amount=BALANCED)
    style_of_picture(sheet, loaded, (picture, 0), texts, family, "demo_transformer_")


def style_picture_sdxl(sheet: Sheet) -> None:
    """The same with a checkpoint and a loaded picture."""
    sheet.next_column("1  Checkpoint and picture")
    sheet.note(
        "## Style from a picture (SDXL)\n\n1. Choose a checkpoint and load a picture.\n2. Say in **what it shows** what"
        " the picture shows and in which style.\n3. Write your prompt, and end it with the same style words.\n4. Press"
        " **Run**, and drag **style amount**.\n\nSD1.5: set the size to 512. The node says beneath itself which ranking"
        " of layers it took.",
        360,
    )
    model = sheet.add("CheckpointLoaderSimple", ckpt_name=BASE_SDXL)
    picture = sheet.add("LoadImage", "Whose style", tall=360, image="example.png")
    texts = (families.SHOWS, families.PROMPT, "")
    sdxl = Family("EmptyLatentImage", 1024, SDXL)
    style_of_picture(sheet, Loaded.of(model), (picture, 0), texts, sdxl)


def subject_picture_demo(sheet: Sheet) -> None:
    """The smallest graph that keeps a subject, with the demo model."""
    sheet.next_column("1  Press Run")
    sheet.note(
        "## Keep the subject, new background\n\nPress **Run**: the subject of the prompt stands in the surroundings of the"
        " picture. **subject** names it in the prompt's own words; empty, the prompt's first words count.",
        220,
    )
    model = sheet.add("CBLoadDemoModel")
    picture = sheet.add("CBDemoPictures", "Picture of the background", **demo_scenes.SURROUNDINGS)
    sheet.add("PreviewImage", "Picture of the background", tall=300, images=(picture, 0))
    loaded = Loaded.of(model)
    _subject_of_picture(sheet, loaded, picture, demo_scenes.SUBJECT, "", DEMO, "demo_")


def subject_picture_sdxl(sheet: Sheet) -> None:
    """The same with a checkpoint and a loaded picture."""
    sheet.next_column("1  Checkpoint and picture")
    sheet.note(
        "## Keep the subject, new background (SDXL)\n\n1. Choose a checkpoint and load the picture of the background.\n2."
        " Write the prompt: the subject, and the surroundings as the picture shows them.\n3. Press **Run**.\n\nWrong"
        " subject: name it in **subject**. SD1.5 works as well.",
        300,
    )
    model = sheet.add("CheckpointLoaderSimple", ckpt_name=BASE_SDXL)
    picture = sheet.add("LoadImage", "Picture of the background", tall=360, image="example.png")
    words = {"prompt": "a red fox sitting in a meadow, photo", "phrase": "red fox", "surroundings": "meadow"}
    loaded = Loaded.of(model)
    _subject_of_picture(sheet, loaded, picture, words, "blurry, deformed", DEMO | {"steps": 30, "cfg": 5.5})


def _subject_of_picture(
    sheet: Sheet,
    loaded: Loaded,
    picture: int,
    words: dict[str, str],
    negative: str,
    sampling: dict[str, Any],
    prefix: str = "",
) -> None:
    sheet.next_column("2  Subject", 400)
    kept = sheet.add("CBKeepSubject", model=loaded.model, clip=loaded.clip, vae=loaded.vae, image=(picture, 0), **words)
    unwanted = sheet.add("CLIPTextEncode", "Negative", clip=loaded.clip, text=negative)
    given = {"model": (kept, 0), "positive": (kept, 2), "negative": (unwanted, 0), "latent_image": (kept, 1)}
    result(sheet, loaded, given | sampling, f"{prefix}keep_subject")


def structure_picture_demo(sheet: Sheet) -> None:
    """The smallest graph that takes the style of one picture and the layout of another, with the demo model."""
    sheet.next_column("1  Press Run")
    sheet.note(
        "## Style and structure\n\nPress **Run**: the edges give the layout, the other picture the style. **structure"
        " amount** 1 is the ordinary ControlNet; 0.15 lets the style draw the lines.",
        200,
    )
    model, control = sheet.add("CBLoadDemoModel"), sheet.add("CBLoadDemoControlNet")
    style = sheet.add("CBDemoPictures", "Whose style", **demo_scenes.REFERENCE)
    edges = sheet.add("CBDemoPictures", "Whose edges", **demo_scenes.EDGES | {"scenes": demo_scenes.PROMPTS[0]})
    loaded = Loaded.of(model)
    texts = {"prompt": demo_scenes.PROMPTS[0], "shows": demo_scenes.SHOWS}
    family = Family("EmptyLatentImage", demo_scenes.SIDE, DEMO)
    _structure_of_picture(sheet, loaded, (control, 0), (style, 0), (edges, 2), texts, family, "demo_")


def structure_picture_sdxl(sheet: Sheet) -> None:
    """The same with a checkpoint, a ControlNet and loaded pictures."""
    sheet.next_column("1  Checkpoint and pictures")
    sheet.note(
        "## Style and structure (SDXL)\n\n1. Choose an SDXL checkpoint and a canny ControlNet for it.\n2. Load one picture"
        " for the style, one for the layout.\n3. Write the prompt, and say in **what it shows** what the style picture"
        " shows.\n4. Press **Run**, and drag the two amounts.",
        260,
    )
    model = sheet.add("CheckpointLoaderSimple", ckpt_name=BASE_SDXL)
    control = sheet.add("ControlNetLoader", control_net_name=CANNY_SDXL)
    style = sheet.add("LoadImage", "Whose style", tall=340, image="example.png")
    structure = sheet.add("LoadImage", "Whose layout", tall=340, image="example.png")
    edges = sheet.add("Canny", image=(structure, 0))
    loaded = Loaded.of(model)
    texts = {"prompt": families.PROMPT, "shows": families.SHOWS}
    family = Family("EmptyLatentImage", 1024, SDXL)
    _structure_of_picture(sheet, loaded, (control, 0), (style, 0), (edges, 0), texts, family)


def _structure_of_picture(
    sheet: Sheet,
    loaded: Loaded,
    control: Source,
    style: Source,
    structure: Source,
    texts: dict[str, str],
    family: Family,
    prefix: str = "",
) -> None:
    sheet.next_column("2  Style and structure", 400)
    both = sheet.add(
        "CBStyleAndStructure", model=loaded.model, clip=loaded.clip, vae=loaded.vae, control_net=control,
        style_image=style, structure_image=structure, **texts,
    )  # fmt: skip
    negative = sheet.add("CLIPTextEncode", "Negative", clip=loaded.clip, text="")
    canvas = sheet.add(family.canvas, width=family.side, height=family.side, batch_size=1)
    given = {"model": (both, 0), "positive": (both, 1), "negative": (negative, 0), "latent_image": (canvas, 0)}
    result(sheet, loaded, given | family.sampling, f"{prefix}style_and_structure")


def style_sdxl(sheet: Sheet) -> None:
    """Style, balanced for SDXL with the published ranking."""
    sheet.next_column("Read me")
    sheet.note(
        "## Style, balanced (SDXL)\n\n1. Choose an SDXL checkpoint.\n2. Load a reference picture, and say in its prompt"
        " what it shows and in which style.\n3. End your own prompts with the same style words.\n4. Press **Run**.\n\n"
        "More style: raise **style amount** towards 0.6. Prompt not followed: lower it towards 0.3.\n\nFor a finetune,"
        " measure a profile of its own with the template *5 Measure your checkpoint*. SD1.5: choose a profile measured"
        " there, and set every size to 512.",
        420,
    )
    shared = _sdxl_painting(sheet)
    sheet.next_column("Which layers take it", 420)
    gate = sheet.add("CBSelectLayers", profile=shared.profile)
    injected = sheet.add("CBStyleInjection", model=shared.model, gate=(gate, 0), reference=shared.reference)
    sheet.next_column("Paint", 560)
    sampled = sheet.add(
        "KSampler", model=(injected, 0), positive=shared.positive, negative=shared.negative,
        latent_image=shared.canvas, **SDXL,
    )  # fmt: skip
    decoded = sheet.add("VAEDecode", samples=(sampled, 0), vae=shared.vae)
    sheet.add("SaveImage", tall=560, images=(decoded, 0), filename_prefix="style_balanced")


def structure_demo(sheet: Sheet) -> None:
    """Four scenes by their edge maps in a reference's style, from the whole ControlNet down to none."""
    sheet.next_column("Model and ControlNet")
    sheet.note(
        "## Style + structure, balanced\n\nAn edge map says where things are, a reference how they are drawn. With the"
        " whole ControlNet the edges decide every line. *Gate ControlNet* keeps it for the first part of the schedule, as"
        " long as **structure amount** says, and then only its middle residual, which holds the layout: the style draws the lines.\n\nChange"
        " **style amount** on *Select Layers*, and press **Run**. The branches lie inside *Five amounts of structure*: its"
        " button opens it.",
        380,
    )
    model = sheet.add("CBLoadDemoModel")
    control = sheet.add("CBLoadDemoControlNet")
    sheet.next_column("Whose style")
    picture = sheet.add("CBDemoPictures", "Reference picture", **demo_scenes.REFERENCE)
    about = sheet.add("CLIPTextEncode", "What the reference shows", clip=(model, 1), text=(picture, 1))
    latent = sheet.add("VAEEncode", pixels=(picture, 0), vae=(model, 2))
    reference = sheet.add("CBStyleReference", latent=(latent, 0), prompt=(about, 0))
    sheet.next_column("Which layers take it", 420)
    profile = sheet.add("CBLoadSensitivityProfile", profile=DEMO_PROFILE, model=(model, 0))
    gate = sheet.add("CBSelectLayers", profile=(profile, 0), **{"lambda": BALANCED})
    injected = sheet.add("CBStyleInjection", model=(model, 0), gate=(gate, 0), reference=(reference, 0))
    sheet.next_column("Whose structure")
    scenes = sheet.add("CBDemoPictures", "Edge maps", **demo_scenes.EDGES)
    prompts = "\n".join(demo_scenes.PROMPTS)
    positive = sheet.add("CBPromptBatch", clip=(model, 1), prompts=prompts)
    negative = sheet.add("CLIPTextEncode", "Negative", clip=(model, 1), text="")
    canvas = sheet.add("EmptyLatentImage", width=demo_scenes.SIDE, height=demo_scenes.SIDE, batch_size=4)
    shared = Painting(
        (injected, 0), (model, 2), (profile, 0), (picture, 0), (reference, 0), (positive, 0), (negative, 0),
        (canvas, 0), DEMO,
    )  # fmt: skip
    given = {"control": (control, 0), "edges": (scenes, 2)}
    rows = _folded(sheet, shared, "Five amounts of structure", _five_structures, **given)
    _saved(sheet, rows, "demo_structure_balanced")


def _five_structures(sheet: Sheet, shared: Painting, given: dict[str, Source]) -> Source:
    control, edges = given["control"], given["edges"]
    rows = {"edge maps": edges, "whole control": _controlled(sheet, shared, control, edges, None)}
    for kept in (0.5, 0.15, 0.0):
        rows[f"structure {kept:g}"] = _controlled(sheet, shared, control, edges, kept)
    rows["no control"] = _row(sheet, shared, "no control")
    return _contact_sheet(sheet, shared, rows)


def _controlled(sheet: Sheet, shared: Painting, control: Source, edges: Source, kept: float | None) -> Source:
    """A column that paints under a ControlNet, gated unless `kept` is None."""
    name = "whole control" if kept is None else f"structure {kept:g}"
    sheet.next_column(name)
    if kept is not None:
        control = (sheet.add("CBGateControlNet", control_net=control, kept=kept), 0)
    applied = sheet.add(
        "ControlNetApplyAdvanced", positive=shared.positive, negative=shared.negative, control_net=control,
        image=edges,
    )  # fmt: skip
    sampled = sheet.add(
        "KSampler", f"Sample: {name}", model=shared.model, positive=(applied, 0), negative=(applied, 1),
        latent_image=shared.canvas, **shared.sampling,
    )  # fmt: skip
    return sheet.add("VAEDecode", samples=(sampled, 0), vae=shared.vae), 0


def structure_sdxl(sheet: Sheet) -> None:
    """The same for SDXL: a canny ControlNet under the paper's schedule, style by the published ranking."""
    sheet.next_column("Model and ControlNet")
    sheet.note(
        "## Style + structure, balanced (SDXL)\n\n1. Choose an SDXL checkpoint and a canny ControlNet for it.\n2. Load"
        " a picture for the structure and one for the style, and say in the style's prompt what it shows.\n3. End your"
        " own prompt with the same style words.\n4. Press **Run**.\n\nLines too stiff: lower **structure amount** towards"
        " 0.05. Layout lost: raise it towards 0.5. Style too weak or too strong: **style amount** on *Select Layers*.\n\n"
        "SD1.5: choose its ControlNet and a profile measured with *5 Measure your checkpoint*, and set every size to 512.",
        460,
    )
    model = sheet.add("CheckpointLoaderSimple", ckpt_name=BASE_SDXL)
    control = sheet.add("ControlNetLoader", control_net_name=CANNY_SDXL)
    gated = sheet.add("CBGateControlNet", control_net=(control, 0))
    sheet.next_column("Whose structure")
    structure = sheet.add("LoadImage", "Structure picture", tall=360, image="example.png")
    fitted = sheet.add("ImageScale", image=(structure, 0), **SQUARE)
    edges = sheet.add("Canny", image=(fitted, 0))
    sheet.add("PreviewImage", "Edges", tall=300, images=(edges, 0))
    sheet.next_column("Whose style")
    picture = sheet.add("LoadImage", "Style picture", tall=360, image="example.png")
    scaled = sheet.add("ImageScale", image=(picture, 0), **SQUARE)
    latent = sheet.add("VAEEncode", pixels=(scaled, 0), vae=(model, 2))
    about = sheet.add(
        "CLIPTextEncode", "What the style picture shows", clip=(model, 1), text="a landscape, ink painting"
    )
    reference = sheet.add("CBStyleReference", latent=(latent, 0), prompt=(about, 0))
    sheet.next_column("Which layers take it", 420)
    profile = sheet.add("CBLoadSensitivityProfile", profile=PUBLISHED, model=(model, 0))
    gate = sheet.add("CBSelectLayers", profile=(profile, 0), **{"lambda": 0.57})
    injected = sheet.add("CBStyleInjection", model=(model, 0), gate=(gate, 0), reference=(reference, 0))
    sheet.next_column("What to paint")
    positive = sheet.add("CLIPTextEncode", "Prompt", clip=(model, 1), text="a sitting cat, ink painting")
    negative = sheet.add("CLIPTextEncode", "Negative", clip=(model, 1), text="")
    applied = sheet.add(
        "ControlNetApplyAdvanced", positive=(positive, 0), negative=(negative, 0), control_net=(gated, 0),
        image=(edges, 0), strength=0.8,
    )  # fmt: skip
    canvas = sheet.add("EmptyLatentImage", width=1024, height=1024, batch_size=1)
    sheet.next_column("Paint", 560)
    sampled = sheet.add(
        "KSampler", model=(injected, 0), positive=(applied, 0), negative=(applied, 1), latent_image=(canvas, 0), **SDXL
    )
    decoded = sheet.add("VAEDecode", samples=(sampled, 0), vae=(model, 2))
    sheet.add("SaveImage", tall=560, images=(decoded, 0), filename_prefix="structure_balanced")


def subject_demo(sheet: Sheet) -> None:
    """The demo model keeps what it paints and takes the surroundings from another picture."""
    sheet.next_column("Press Run")
    sheet.note(
        "## Keep the subject, replace the background\n\nThe prompt names a subject; the reference gives everything "
        "around it. **Grad-SAM Blend** looks where the model draws the subject, and takes the rest from the reference. "
        "**Attribution Preview** shows what it found: map, mask or overlay, a tile for each window.\n\nChange the "
        "**phrase** or the **windows** and press **Run**.",
        340,
    )
    seen = _seen_first(sheet, demo_scenes.SUBJECT, "demo_")
    model = sheet.add("CBLoadDemoModel")
    picture = sheet.add("CBDemoPictures", "Reference picture", **demo_scenes.SURROUNDINGS)
    sheet.add("PreviewImage", "Reference picture", tall=300, images=(picture, 0))
    _keep_subject(sheet, model, picture, seen, "", DEMO)


def subject_sd15(sheet: Sheet) -> None:
    """Keep the subject, replace the background, for SD1.5."""
    _subject_of_checkpoint(sheet, "SD1.5", BASE_SD15, 512, 7.0)


def subject_sdxl(sheet: Sheet) -> None:
    """Keep the subject, replace the background, for SDXL."""
    _subject_of_checkpoint(sheet, "SDXL", BASE_SDXL, 1024, 5.5)


def _subject_of_checkpoint(sheet: Sheet, name: str, checkpoint: str, side: int, cfg: float) -> None:
    sheet.next_column("Press Run")
    sheet.note(
        f"## Keep the subject, replace the background ({name})\n\n1. Choose your checkpoint.\n2. Load the picture that "
        "gives the background.\n3. Write the prompt, in **phrase** its words for the subject and in **surroundings** "
        "those for what lies around it.\n4. Press **Run**."
        "\n\nSubject cut off: raise **dilate**. Too much background inside the mask: lower it, or choose the **threshold** "
        "mean + c std and raise **amount**. "
        "Exact background: end the last window at 1.",
        380,
    )
    words = {"prompt": "a red fox sitting in a meadow, photo", "phrase": "red fox", "surroundings": "meadow"}
    seen = _seen_first(sheet, words)
    model = sheet.add("CheckpointLoaderSimple", ckpt_name=checkpoint)
    picture = sheet.add("LoadImage", "Picture of the background", tall=360, image="example.png")
    fitted = sheet.add("ImageScale", image=(picture, 0), **SQUARE | {"width": side, "height": side})
    _keep_subject(sheet, model, fitted, seen, "blurry, deformed", DEMO | {"steps": 30, "cfg": cfg})


class _SeenFirst(NamedTuple):
    """Nodes of the first band: what is named, and what comes out."""

    subject: int
    found: int
    result: int


def _seen_first(sheet: Sheet, words: dict[str, str], prefix: str = "") -> _SeenFirst:
    """What is changed and what is looked at, on one screen above all that lies between."""
    sheet.next_column("What to keep")
    subject = sheet.add("CBSubject", **words)
    sheet.next_column("What was found", 440)
    found = sheet.add("CBAttributionPreview", tall=480)
    sheet.next_column("Result", 380)
    result = sheet.add("SaveImage", "Result", tall=480, filename_prefix=f"{prefix}subject_kept")
    sheet.next_band()
    sheet.next_column("Model and background")
    return _SeenFirst(subject, found, result)


def _keep_subject(
    sheet: Sheet, loaded: int, picture: int, seen: _SeenFirst, negative: str, sampling: dict[str, Any]
) -> None:
    """From a model and a reference picture to what the windows found and the blended picture."""
    model, clip, vae = Loaded.of(loaded)
    latent = sheet.add("VAEEncode", pixels=(picture, 0), vae=vae)
    unwanted = sheet.add("CLIPTextEncode", "Negative", clip=clip, text=negative)
    sheet.next_column("Blend", 420)
    blend = sheet.add("CBGradSAMBlend", model=model, reference=(latent, 0), subject=(seen.subject, 1))
    sheet.next_column("Paint")
    sampled = sheet.add(
        "KSampler", model=(blend, 0), positive=(seen.subject, 0), negative=(unwanted, 0), latent_image=(blend, 1),
        **sampling,
    )  # fmt: skip
    decoded = sheet.add("VAEDecode", samples=(sampled, 0), vae=vae)
    sheet.join(clip, seen.subject, "clip")
    for source, name in {(blend, 2): "attribution", (sampled, 0): "after", (decoded, 0): "image"}.items():
        sheet.join(source, seen.found, name)
    sheet.join((decoded, 0), seen.result, "images")


def inversion_demo(sheet: Sheet) -> None:
    """A picture, walked back to its noise and painted from it again, exactly and under other words."""
    sheet.next_column("Model and picture")
    sheet.note(
        "## Repaint a picture from its own noise\n\n**Invert Latent** finds the noise from which the model paints the"
        " picture. Painted from it again under the same words the picture comes back; under other words it becomes"
        " what they say and keeps its layout.\n\nAbove: the picture, and painted again. Below: under other words, with"
        " what inversion lost put back at every step (*direct*) and without (*plain*).\n\nChange **Other words** and press"
        " **Run**.",
        360,
    )
    painter = _demo_painter(sheet)
    picture = sheet.add("CBDemoPictures", "Picture", **demo_scenes.REPAINTED)
    _inverted(sheet, painter, (picture, 0), (picture, 1), demo_scenes.INSTEAD, steps=20)


def inversion_sdxl(sheet: Sheet) -> None:
    """The same for SDXL and a picture of one's own."""
    sheet.next_column("Model and picture")
    sheet.note(
        "## Repaint a picture from its own noise (SDXL)\n\n1. Choose an SDXL checkpoint and load a picture.\n2. Say in"
        " **What it shows** what is in it, and in **Other words** what it is to become.\n3. Press **Run**.\n\n**Invert"
        " Latent** finds the noise from which the model paints the picture. Above: the picture, and painted again. Below:"
        " under other words, with what inversion lost put back at every step (*direct*) and without (*plain*).\n\nThe"
        " picture does not come back: raise **steps**. SD1.5: choose its checkpoint and set the sizes to 512.",
        400,
    )
    painter = _sdxl_painter(sheet)
    picture = _loaded_square(sheet, "Picture")
    shows, instead = "a landscape, watercolor painting", "a landscape in winter, oil painting"
    _inverted(sheet, painter, picture, shows, instead, steps=SDXL["steps"])


def _inverted(sheet: Sheet, painter: Painter, picture: Source, shows: Source | str, instead: str, steps: int) -> None:
    """A picture walked back to its noise, and painted from it under both texts."""
    latent = sheet.add("VAEEncode", pixels=picture, vae=painter.vae)
    sheet.next_column("Words")
    same, other = painter.text(sheet, "What it shows", shows), painter.text(sheet, "Other words", instead)
    sheet.next_column("Back to its noise")
    found = {"model": painter.model, "positive": same, "latent": (latent, 0), "steps": steps}
    direct = sheet.add("CBInvertLatent", "Direct", **found, mode="direct")
    plain = sheet.add("CBInvertLatent", "Plain", **found, mode="plain")
    empty = sheet.add("LatentMultiply", "Empty canvas", samples=(latent, 0), multiplier=0.0)
    sampler = sheet.add("KSamplerSelect", sampler_name="euler")
    ways = {"again": (direct, same), "other words": (direct, other), "other words, plain": (plain, other)}
    given = ((sampler, 0), (empty, 0))
    painted = [picture, *(_from_noise(sheet, painter, given, name, *way) for name, way in ways.items())]
    _in_a_square(sheet, painted, f"{painter.prefix}inversion")


def _from_noise(
    sheet: Sheet, painter: Painter, given: tuple[Source, Source], name: str, way: int, text: Source
) -> Source:
    """A column that paints from the noise that a picture was walked back to; `given` are sampler and canvas."""
    sheet.next_column(name)
    guider = sheet.add("BasicGuider", model=(way, 1), conditioning=text)
    painted = sheet.add(
        "SamplerCustomAdvanced", f"Sample: {name}", noise=(way, 2), guider=(guider, 0), sampler=given[0],
        sigmas=(way, 3), latent_image=given[1],
    )  # fmt: skip
    return painter.decoded(sheet, (painted, 0))


def noise_blend_demo(sheet: Sheet) -> None:
    """Two prompts alone, and side by side in one picture twice as wide."""
    sheet.next_column("Model and prompts")
    sheet.note(
        "## Two prompts by region\n\n**Blend Two Prompts** lets another prompt act where the mask is white, or for a part"
        " of the schedule. Where both act, at the mask's soft edge, what one asks for against the other is left"
        " out.\n\nAbove: each prompt alone. Below: both in one picture, the second on its right half.\n\nChange the"
        " prompts or **strength** and press **Run**. Without a mask, end the node's window at 0.35: the first steps"
        " follow one prompt and the others the other.",
        360,
    )
    _side_by_side(sheet, _demo_painter(sheet), demo_scenes.TWO_PROMPTS, (demo_scenes.SIDE, demo_scenes.SIDE))


def noise_blend_sdxl(sheet: Sheet) -> None:
    """The same for SDXL, at a wide size that it was trained on."""
    sheet.next_column("Model and prompts")
    sheet.note(
        "## Two prompts by region (SDXL)\n\n1. Choose an SDXL checkpoint.\n2. Write two prompts that end with the same"
        " style words.\n3. Press **Run**.\n\nAbove: each prompt alone, half as wide. Below: both in one picture, the second"
        " on its right half. **Blend Two Prompts** lets another prompt act where the mask is white; any mask will do."
        "\n\nTo let one prompt lay the picture out and the other finish it, take the mask off and end the node's window"
        " at 0.35.",
        380,
    )
    prompts = "a red fox in the snow, watercolor painting", "a lighthouse at dusk, watercolor painting"
    _side_by_side(sheet, _sdxl_painter(sheet), prompts, (672, 768))


def _side_by_side(sheet: Sheet, painter: Painter, prompts: Sequence[str], half: tuple[int, int]) -> None:
    """Two prompts in halves of `half` (width, height), alone and in one picture."""
    own, other = ((sheet.add("CLIPTextEncode", clip=painter.clip, text=text), 0) for text in prompts)
    empty = painter.text(sheet, "Negative", "")
    sheet.next_column("Where the other prompt acts")
    width, height = half
    nowhere = sheet.add("SolidMask", "Nowhere", value=0.0, width=2 * width, height=height)
    right = sheet.add("SolidMask", "Its half", value=1.0, width=width, height=height)
    soft = sheet.add("FeatherMask", mask=(right, 0), left=width // 4, top=0, right=0, bottom=0)
    mask = sheet.add("MaskComposite", destination=(nowhere, 0), source=(soft, 0), x=width, y=0, operation="add")
    blend = sheet.add("CBNoiseBlend", model=painter.model, conditioning=other, mask=(mask, 0))
    canvas, wide = painter.canvas(sheet, width, height), painter.canvas(sheet, 2 * width, height)
    painted = []
    for name, source, text, latent in (
        ("first", painter.model, own, canvas),
        ("second", painter.model, other, canvas),
        ("both", (blend, 0), own, wide),
    ):
        sheet.next_column(name)
        sampled = sheet.add(
            "KSampler", f"Sample: {name}", model=source, positive=text, negative=empty, latent_image=latent,
            **painter.sampling,
        )  # fmt: skip
        painted.append(painter.decoded(sheet, (sampled, 0)))
    _in_a_square(sheet, painted, f"{painter.prefix}noise_blend")


def revised_demo(sheet: Sheet) -> None:
    """A prompt held to a picture's layout and colours; a larger picture with ordinary and with its own noise levels."""
    sheet.next_column("Model and picture")
    side = demo_scenes.SIDE * 3 // 2
    sheet.note(
        "## Hold the layout and colours of a picture\n\n**Keep Colours or Layout** moves every prediction to the nearest"
        " one that has the picture's means, so that the model paints only what is missing. **Noise Levels for Another"
        f" Resolution** moves a schedule for pictures larger than the trained size.\n\nAbove: the picture, and the"
        f" prompt held to it. Below: the prompt at {side} pixels with the ordinary noise levels, and with its"
        " own; so far beyond its trained size this small model repeats the subject either way.\n\nChange **cell** or the prompt and press **Run**.",
        360,
    )
    painter = _demo_painter(sheet)
    picture = sheet.add("CBDemoPictures", "Picture", **demo_scenes.REPAINTED)
    _revised(sheet, painter, (picture, 0), demo_scenes.INSTEAD, cell=32)


def revised_sdxl(sheet: Sheet) -> None:
    """The same for SDXL and a picture of one's own."""
    sheet.next_column("Model and picture")
    sheet.note(
        "## Hold the layout and colours of a picture (SDXL)\n\n1. Choose an SDXL checkpoint and load a picture.\n2. Write"
        " what the model shall paint over its layout.\n3. Press **Run**.\n\n**Keep Colours or Layout** moves every"
        " prediction to the nearest one that has the picture's means. **Noise Levels for Another Resolution** moves a"
        " schedule for pictures larger than the trained size.\n\nAbove: the picture, and the prompt held to it. Below: the"
        " prompt at 1536 pixels with the ordinary noise levels, and with its own.\n\nToo close to the picture: raise"
        " **cell** or end its window earlier. Colours alone: set **known** to colour.",
        420,
    )
    painter = _sdxl_painter(sheet)
    _revised(sheet, painter, _loaded_square(sheet, "Picture"), "a red fox in the snow, watercolor painting", cell=128)


def _revised(sheet: Sheet, painter: Painter, picture: Source, prompt: str, cell: int) -> None:
    """A prompt held to a picture, and the same prompt half as large again."""
    side = painter.side * 3 // 2
    latent = sheet.add("VAEEncode", pixels=picture, vae=painter.vae)
    prompts = {"positive": painter.text(sheet, "Prompt", prompt), "negative": painter.text(sheet, "Negative", "")}
    sheet.next_column("Held")
    held = sheet.add("CBProject", model=painter.model, latent=(latent, 0), cell=cell, end_percent=0.8)
    canvas = painter.canvas(sheet, painter.side, painter.side)
    given = {"latent_image": canvas, **prompts, **painter.sampling}
    sampled = sheet.add("KSampler", "Sample: held", model=(held, 0), **given)
    painted = [picture, painter.decoded(sheet, (sampled, 0))]
    sheet.next_column("Larger")
    how = painter.sampling
    levels = sheet.add(
        "BasicScheduler", model=painter.model, scheduler=how["scheduler"], steps=how["steps"], denoise=1.0
    )  # fmt: skip
    own = sheet.add(
        "CBResolutionShift", model=painter.model, sigmas=(levels, 0), width=side, height=side,
        trained_size=painter.side,
    )  # fmt: skip
    large, sampler = painter.canvas(sheet, side, side), sheet.add("KSamplerSelect", sampler_name="euler")
    for name, sigmas in {"ordinary levels": levels, "own levels": own}.items():
        sheet.next_column(name)
        sampled = sheet.add(
            "SamplerCustom", f"Sample: {name}", model=painter.model, add_noise=True, noise_seed=how["seed"],
            cfg=how["cfg"], sampler=(sampler, 0), sigmas=(sigmas, 0), latent_image=large, **prompts,
        )  # fmt: skip
        painted.append(painter.decoded(sheet, (sampled, 0)))
    _in_a_square(sheet, painted, f"{painter.prefix}revised")


def guidance_demo(sheet: Sheet) -> None:
    """The reference, no guidance, and style guidance at two strengths."""
    sheet.next_column("What it shows")
    sheet.note(
        "## Guide by style alone\n\n**Layer Contrast** predicts once more at every step, with the reference's style in the"
        " chosen layers, and leads the picture along what that changes, as CFG leads it along what the prompt"
        " changes.\n\nAbove: the reference, and the prompt alone. Below: guided at 1.5 and at 3.\n\nChange **strength** and"
        " press **Run**.",
        300,
    )
    painter = _demo_painter(sheet)
    gate = _ranked(sheet, painter, DEMO_PROFILE)
    sheet.next_column("Style and prompt")
    picture = sheet.add("CBDemoPictures", "Reference picture", **demo_scenes.REFERENCE)
    _guided(sheet, painter, gate, (picture, 0), demo_scenes.SHOWS, demo_scenes.PROMPT)


def guidance_sdxl(sheet: Sheet) -> None:
    """The same for SDXL and a picture of one's own."""
    sheet.next_column("What it shows")
    sheet.note(
        "## Guide by style alone (SDXL)\n\n1. Choose an SDXL checkpoint.\n2. Load a reference picture, and say in its"
        " prompt what it shows.\n3. End your own prompt with the same style words.\n4. Press **Run**.\n\n**Layer Contrast**"
        " predicts once more at every step, with the reference's style in the chosen layers, and leads the picture along"
        " what that changes.\n\nAbove: the reference, and the prompt alone. Below: guided at 1.5 and at 3.\n\nToo weak or"
        " too strong: **strength**. Colours burn: **rescale** 0.7.",
        380,
    )
    painter = _sdxl_painter(sheet)
    gate = _ranked(sheet, painter, PUBLISHED)
    sheet.next_column("Style and prompt")
    picture = _loaded_square(sheet, "Reference picture")
    shows, prompt = "a landscape, watercolor painting", "a red fox in the snow, watercolor painting"
    _guided(sheet, painter, gate, picture, shows, prompt)


def _ranked(sheet: Sheet, painter: Painter, profile: str) -> Source:
    loaded = sheet.add("CBLoadSensitivityProfile", profile=profile, model=painter.model)
    return sheet.add("CBSelectLayers", profile=(loaded, 0)), 0


def _guided(sheet: Sheet, painter: Painter, gate: Source, picture: Source, shows: str, prompt: str) -> None:
    """A prompt alone, and guided by the picture's style at two strengths."""
    about = painter.text(sheet, "What the reference shows", shows)
    latent = sheet.add("VAEEncode", pixels=picture, vae=painter.vae)
    reference = sheet.add("CBStyleReference", latent=(latent, 0), prompt=about)
    prompts = {"positive": painter.text(sheet, "Prompt", prompt), "negative": painter.text(sheet, "Negative", "")}
    shared = {**prompts, "latent_image": painter.canvas(sheet, painter.side, painter.side), **painter.sampling}
    painted = [picture]
    for name, strength in {"prompt alone": 0.0, "guided, 1.5": 1.5, "guided, 3": 3.0}.items():
        sheet.next_column(name)
        led = {"model": painter.model, "gate": gate, "reference": (reference, 0), "strength": strength}
        source = (sheet.add("CBLayerContrast", **led), 0) if strength else painter.model
        sampled = sheet.add("KSampler", f"Sample: {name}", model=source, **shared)
        painted.append(painter.decoded(sheet, (sampled, 0)))
    _in_a_square(sheet, painted, f"{painter.prefix}guidance")


def _in_a_square(sheet: Sheet, painted: list[Source], name: str) -> None:
    """Four pictures saved as one, two above and two below; a third one that is the last is as wide as two."""
    sheet.next_column("Result", 480)
    halves = [_stitched(sheet, painted[:2], "right"), _stitched(sheet, painted[2:], "right")]
    whole = _stitched(sheet, halves, "down")
    sheet.add("SaveImage", "Result", tall=480, images=whole, filename_prefix=name)


def style_blueprint(inside: Blueprint, loaded: dict[str, Source]) -> None:
    """From a checkpoint and a picture to your prompt in the picture's style."""
    picture = inside.input("picture", "IMAGE")
    prompt, shows = inside.input("prompt", "STRING", OWN_PROMPT), inside.input("what it shows", "STRING", "")
    share = inside.input("style amount", "FLOAT", 0.43)
    inside.next_column("Style", 420)
    styled = inside.add("CBStyleFromPicture", **loaded, image=picture, shows=shows, **{"lambda": share})
    inside.show(styled, MAP)
    size = _size_of(inside)
    inside.next_column("What to paint")
    positive = inside.add("CLIPTextEncode", "Prompt", clip=loaded["clip"], text=prompt)
    canvas = inside.add("EmptyLatentImage", **size, batch_size=1)
    _painted_inside(inside, loaded, (styled, 0), (positive, 0), (canvas, 0))


def subject_blueprint(inside: Blueprint, loaded: dict[str, Source]) -> None:
    """From a checkpoint and a picture to the subject of your prompt in its surroundings."""
    picture = inside.input("picture of the surroundings", "IMAGE")
    prompt, phrase = inside.input("prompt", "STRING", OWN_PROMPT), inside.input("subject", "STRING", "")
    inside.next_column("Keep", 420)
    kept = inside.add("CBKeepSubject", **loaded, image=picture, prompt=prompt, phrase=phrase)
    _painted_inside(inside, loaded, (kept, 0), (kept, 2), (kept, 1))


def structure_blueprint(inside: Blueprint, loaded: dict[str, Source]) -> None:
    """From a checkpoint, a ControlNet and two pictures to your prompt with the style of one and the layout of the other."""
    control = inside.input("control_net", "CONTROL_NET")
    style, structure = inside.input("style picture", "IMAGE"), inside.input("structure picture", "IMAGE")
    prompt, shows = inside.input("prompt", "STRING", OWN_PROMPT), inside.input("what it shows", "STRING", "")
    share, kept = inside.input("style amount", "FLOAT", WITH_STRUCTURE), inside.input("structure amount", "FLOAT", 0.15)
    inside.next_column("Style and structure", 420)
    both = inside.add(
        "CBStyleAndStructure", **loaded, control_net=control, style_image=style, structure_image=structure,
        prompt=prompt, shows=shows, kept=kept, **{"lambda": share},
    )  # fmt: skip
    inside.show(both, MAP)
    size = _size_of(inside)
    inside.next_column("Size")
    canvas = inside.add("EmptyLatentImage", **size, batch_size=1)
    _painted_inside(inside, loaded, (both, 0), (both, 1), (canvas, 0))


def _checkpoint_of(inside: Blueprint) -> dict[str, Source]:
    return {name: inside.input(name, name.upper()) for name in ("model", "clip", "vae")}


def _size_of(inside: Blueprint) -> dict[str, Source]:
    return {name: inside.input(name, "INT", 1024) for name in ("width", "height")}


def _painted_inside(
    inside: Blueprint, loaded: dict[str, Source], model: Source, positive: Source, canvas: Source
) -> None:
    """The rest of every job: a sampler, whose dials a blueprint shows too, and the picture."""
    seed = inside.input("seed", "INT", SDXL["seed"])
    steps, cfg = inside.input("steps", "INT", SDXL["steps"]), inside.input("cfg", "FLOAT", SDXL["cfg"])
    inside.next_column("Paint")
    negative = inside.add("CLIPTextEncode", "Negative", clip=loaded["clip"], text="")
    sampled = inside.add(
        "KSampler", model=model, positive=positive, negative=(negative, 0), latent_image=canvas,
        **SDXL | {"seed": seed, "steps": steps, "cfg": cfg},
    )  # fmt: skip
    decoded = inside.add("VAEDecode", samples=(sampled, 0), vae=loaded["vae"])
    inside.output("picture", "IMAGE", (decoded, 0))


WORKFLOWS = {
    "guidance_demo": guidance_demo,
    "guidance_sdxl": guidance_sdxl,
    "inversion_demo": inversion_demo,
    "inversion_sdxl": inversion_sdxl,
    "noise_blend_demo": noise_blend_demo,
    "noise_blend_sdxl": noise_blend_sdxl,
    "revised_demo": revised_demo,
    "revised_sdxl": revised_sdxl,
    "recorded_demo": recorded_demo,
    "recorded_sdxl": recorded_sdxl,
    "layers_do_demo": effect_demo,
    "layers_do_sdxl": effect_sdxl,
    "compare_layers_demo": compare_demo,
    "compare_layers_sdxl": compare_sdxl,
    "profile_demo": profile_demo,
    "profile_sdxl": profile_sdxl,
    "style_picture_demo": style_picture_demo,
    "style_transformer_demo": style_transformer_demo,
    "style_picture_sdxl": style_picture_sdxl,
    "style_balanced_demo": style_demo,
    "style_balanced_sdxl": style_sdxl,
    "style_structure_balanced_demo": structure_demo,
    "style_structure_balanced_sdxl": structure_sdxl,
    "style_sweep_demo": style_sweep_demo,
    "subject_picture_demo": subject_picture_demo,
    "subject_picture_sdxl": subject_picture_sdxl,
    "structure_picture_demo": structure_picture_demo,
    "structure_picture_sdxl": structure_picture_sdxl,
    "subject_kept_demo": subject_demo,
    "subject_kept_sd15": subject_sd15,
    "subject_kept_sdxl": subject_sdxl,
    **families.WORKFLOWS,
}
BLUEPRINTS = {
    "Style from a Picture, all in one": (
        "Paints your prompt in the style of a picture; the layer map shows which layers take it.",
        style_blueprint,
    ),
    "Keep My Subject, all in one": (
        "Paints the subject of your prompt into the surroundings of a picture; no mask to paint.",
        subject_blueprint,
    ),
    "Style and Structure, all in one": (
        "Paints your prompt with the layout of one picture, through a ControlNet, and in the style of another.",
        structure_blueprint,
    ),
}
"""What each says about itself, and what draws it from the checkpoint that it takes."""


def _with_models(graph: dict[str, Any]) -> dict[str, Any]:
    """The graph with every loader knowing where its model comes from."""
    for node in graph["nodes"]:
        if named := [value for value in node["widgets_values"] if value in MODELS]:
            node["properties"]["models"] = [_source_of(name) for name in named]
    return graph


def _source_of(name: str) -> dict[str, str]:
    repository, inside, folder = MODELS[name]
    return {"name": name, "url": f"{HUGGING_FACE}/{repository}/resolve/main/{inside}{name}", "directory": folder}


def build(known: Mapping[str, Any], root: Path) -> None:
    """Write every workflow and blueprint below a folder; `known` is what a server answers at /object_info."""
    for name, describe in WORKFLOWS.items():
        sheet = Sheet(known)
        describe(sheet)
        save(_with_models(sheet.graph()), examples.file_of(name, root))
    for name, (about, draw) in BLUEPRINTS.items():
        blueprint = Blueprint(known, name, about)
        draw(blueprint, _checkpoint_of(blueprint))
        save(blueprint.graph(), root / "subgraphs" / f"{name}.json")


def main() -> None:
    comfy = comfyui.find()
    env = environment.prepare(comfy, [])
    with server.started(env.python, comfy.path, comfyui.CACHE / "build", env.cpu) as running:
        build(json.loads(running.get("/object_info")), ROOT)


if __name__ == "__main__":
    main()
