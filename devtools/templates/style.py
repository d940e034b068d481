"""Templates that take a picture's style: with one node, step by step, and compared by which layers take it."""

from __future__ import annotations

from devtools import demo_scenes, families
from devtools.families import Family, Loaded, style_of_picture
from devtools.sheet import Sheet, Source
from devtools.templates.parts import (
    BALANCED,
    BASE_SDXL,
    DEMO,
    SDXL,
    Painting,
    contact_sheet,
    demo_painting,
    every_layer,
    folded,
    row_of,
    saved,
    sdxl_painting,
    stitched,
)

AMOUNT, SIX_CHOICES = "style amount", "Six choices of layers"


def style_picture_demo(sheet: Sheet) -> None:
    """The smallest graph that takes a picture's style, with the demo model."""
    sheet.next_column("1  Press Run")
    sheet.note(
        "## Style from a picture\n\nPress **Run**: your prompt comes out in the style of the painted picture. Drag"
        " **style amount** and press **Run** again: 0 leaves the style to the prompt, 1 takes all there is. Say in"
        " **what it shows** what the picture shows, so that its subject stays out of yours.",
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
        "## Style from a picture, with a transformer\n\nA small diffusion transformer in Flux form paints here, with"
        " the same nodes as any model. Press **Run**, then drag **style amount** and press **Run** again: at 0.2 the"
        " lines of the engraving come over, at 1 they drown the subject.",
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
        "## Style from a picture (SDXL)\n\n1. Choose a checkpoint and load a picture.\n2. In **what it shows**,"
        " describe the picture and its style.\n3. Write your prompt, and end it with the same style words.\n4. Press"
        " **Run**, and drag **style amount**.\n\nSD1.5: set the size to 512. A line under the node says which ranking"
        " of layers it used.",
        360,
    )
    model = sheet.add("CheckpointLoaderSimple", ckpt_name=BASE_SDXL)
    picture = sheet.add("LoadImage", "Whose style", tall=360, image="example.png")
    texts = (families.SHOWS, families.PROMPT, "")
    sdxl = Family("EmptyLatentImage", 1024, SDXL)
    style_of_picture(sheet, Loaded.of(model), (picture, 0), texts, sdxl)


def style_demo(sheet: Sheet) -> None:
    """No style, the layers that one style amount keeps, all layers: what a first-time user drags and sees."""
    sheet.next_column("1  Press Run")
    sheet.note(
        "## Style, balanced\n\nPress **Run**: the first row paints four prompts without the reference picture, the"
        " last one takes its style through all 21 attention layers, and the row between through the few that **style"
        " amount** keeps.\n\nDrag **style amount** in *Select Layers*: the map lights up the layers that will take it;"
        " press **Run** again and the middle row changes.\n\nAt 0 it is the first row and at 1 the last: look for the"
        " least that brings the style over and leaves what you asked for in the picture.",
        360,
    )
    sheet.next_column("2  Drag style amount", 380)
    gate = sheet.add("CBSelectLayers", **{"lambda": BALANCED})
    sheet.next_column("3  Press Run again and compare", 640)
    result = sheet.add("SaveImage", "Result", tall=616, filename_prefix="demo_style_lambda")
    sheet.next_band()
    shared = demo_painting(sheet)
    sheet.join(shared.profile, gate, "profile")
    rows = folded(sheet, shared, "No style, your amount, all of it", _three_amounts, gate=(gate, 0))
    sheet.join(rows, result, "images")


def _three_amounts(sheet: Sheet, shared: Painting, given: dict[str, Source]) -> Source:
    rows = {"no style taken": row_of(sheet, shared, "no style taken")}
    rows["your amount"] = row_of(sheet, shared, "your amount", given["gate"])
    rows["all layers"] = every_layer(sheet, shared)
    return contact_sheet(sheet, shared, rows)


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
    shared = sdxl_painting(sheet)
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


def style_sweep_demo(sheet: Sheet) -> None:
    """One prompt batch, from no sharing over three lambdas to sharing on all layers."""
    sheet.next_column("Sweep")
    sheet.note(
        "## More and more style\n\nEvery row paints the same four prompts with the same noise. The reference's style"
        " enters through no layer, through the 20, 43 and 70 % that the profile ranks most style-sensitive, and"
        " through all.\n\nPress **Run**. To try one style amount after another by hand, open *1 Style from a picture,"
        " step by step*.",
    )
    shared = demo_painting(sheet)
    saved(sheet, folded(sheet, shared, "Five amounts of style", _five_amounts), "demo_style_balanced")


def _five_amounts(sheet: Sheet, shared: Painting, given: dict[str, Source]) -> Source:
    rows = {"plain": row_of(sheet, shared, "plain")}
    for share in (0.2, 0.43, 0.7):
        rows[f"style {share}"] = row_of(sheet, shared, f"style {share}", **{"lambda": share})
    rows["all layers"] = every_layer(sheet, shared)
    return contact_sheet(sheet, shared, rows)


def compare_demo(sheet: Sheet) -> None:
    """Does the ranking matter? As many layers by rank, evenly spaced, drawn at random, and the lowest ranked."""
    sheet.next_column("How many layers")
    sheet.note(
        "## Which layers take the style?\n\nAll rows paint the same prompts with the same noise and reference. Those"
        " between *plain* and *all layers* share through **equally many** layers: the ones that the profile ranks"
        " first, evenly spaced ones, ones drawn at random, and the ones that it ranks last.\n\nChange **style amount**,"
        " the share of layers, and press **Run**. The rows lie inside *Six choices of layers*: its button opens it.",
    )
    compared = folded(sheet, demo_painting(sheet), SIX_CHOICES, _six_rows, {AMOUNT: BALANCED})
    saved(sheet, compared, "demo_compare_layers")


def _six_rows(sheet: Sheet, shared: Painting, given: dict[str, Source]) -> Source:
    return contact_sheet(sheet, shared, _compared(sheet, shared, given[AMOUNT]))


def compare_sdxl(sheet: Sheet) -> None:
    """The same for SDXL; core's own nodes lay the pictures side by side."""
    sheet.next_column("How many layers")
    sheet.note(
        "## Which layers take the style? (SDXL)\n\n1. Choose an SDXL checkpoint.\n2. Load a reference picture, and say"
        " in its prompt what it shows and in which style.\n3. End your own prompts with the same style words.\n4."
        " Press **Run**; each prompt is painted six times.\n\nThere is one sheet for each prompt. Its upper row shows"
        " *plain*, *ranked*, *evenly spaced*, its lower row *random*, *reversed* (ranked last), *all layers*. The four"
        " between *plain* and *all layers* use equally many layers, as **style amount** says. All are inside *Six"
        " choices of layers*.\n\nFor a finetune, choose a profile of its own. SD1.5: choose one measured with *5"
        " Measure your checkpoint*, and set every size to 512.",
        460,
    )
    compared = folded(sheet, sdxl_painting(sheet), SIX_CHOICES, _two_rows_of_three, {AMOUNT: 0.43})
    sheet.next_column("Result", 760)
    sheet.add("SaveImage", tall=640, images=compared, filename_prefix="compare_layers")


def _two_rows_of_three(sheet: Sheet, shared: Painting, given: dict[str, Source]) -> Source:
    painted = list(_compared(sheet, shared, given[AMOUNT]).values())
    sheet.next_column("Sheet")
    halves = [stitched(sheet, painted[:3], "right"), stitched(sheet, painted[3:], "right")]
    whole = stitched(sheet, halves, "down")
    return sheet.add("ImageScaleBy", "Half size", image=whole, upscale_method="area", scale_by=0.5), 0


def _compared(sheet: Sheet, shared: Painting, share: Source) -> dict[str, Source]:
    """Decoded pictures by the name of their row, each in a column of its own."""
    rows = {"plain": row_of(sheet, shared, "plain")}
    for name, policy in {"ranked": "per-step", "evenly spaced": "evenly spaced", "random": "random"}.items():
        rows[name] = row_of(sheet, shared, name, policy=policy, **{"lambda": share})
    rows["ranked last"] = row_of(sheet, shared, "ranked last", policy="reversed", **{"lambda": share})
    rows["all layers"] = every_layer(sheet, shared)
    return rows


WORKFLOWS = {
    "style_picture_demo": style_picture_demo,
    "style_transformer_demo": style_transformer_demo,
    "style_picture_sdxl": style_picture_sdxl,
    "style_balanced_demo": style_demo,
    "style_balanced_sdxl": style_sdxl,
    "style_sweep_demo": style_sweep_demo,
    "compare_layers_demo": compare_demo,
    "compare_layers_sdxl": compare_sdxl,
}
