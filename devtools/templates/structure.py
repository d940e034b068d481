"""Templates that take style and structure with a ControlNet: with one node, and step by step."""

from __future__ import annotations

from devtools import demo_scenes, families
from devtools.families import Family, Loaded, result
from devtools.sheet import Sheet, Source
from devtools.templates.parts import (
    BALANCED,
    BASE_SDXL,
    DEMO,
    DEMO_PROFILE,
    PUBLISHED,
    SDXL,
    SQUARE,
    WITH_STRUCTURE,
    Painting,
    contact_sheet,
    folded,
    row_of,
    sampled_by,
    saved,
)

CANNY_SDXL = "diffusers_xl_canny_full.safetensors"


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
        "## Style and structure (SDXL)\n\n1. Choose an SDXL checkpoint and a canny ControlNet for it.\n2. Load one"
        " picture for the style, one for the layout.\n3. Write the prompt, and say in **what it shows** what the style"
        " picture shows.\n4. Press **Run**, and drag the two amounts.",
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


def structure_demo(sheet: Sheet) -> None:
    """Four scenes by their edge maps in a reference's style, from the whole ControlNet down to none."""
    sheet.next_column("Model and ControlNet")
    sheet.note(
        "## Style + structure, balanced\n\nAn edge map says where things are, a reference how they are drawn. With the"
        " whole ControlNet the edges decide every line. *Gate ControlNet* keeps it for the first part of the schedule,"
        " as long as **structure amount** says, and then only its middle residual, which holds the layout: the style"
        " draws the lines.\n\nChange **style amount** on *Select Layers*, and press **Run**. The branches lie inside"
        " *Five amounts of structure*: its button opens it.",
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
    rows = folded(sheet, shared, "Five amounts of structure", _five_structures, **given)
    saved(sheet, rows, "demo_structure_balanced")


def _five_structures(sheet: Sheet, shared: Painting, given: dict[str, Source]) -> Source:
    control, edges = given["control"], given["edges"]
    rows = {"edge maps": edges, "whole control": _controlled(sheet, shared, control, edges, None)}
    for kept in (0.5, 0.15, 0.0):
        rows[f"structure {kept:g}"] = _controlled(sheet, shared, control, edges, kept)
    rows["no control"] = row_of(sheet, shared, "no control")
    return contact_sheet(sheet, shared, rows)


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
    return sampled_by(sheet, shared._replace(positive=(applied, 0), negative=(applied, 1)), name, shared.model)[1]


def structure_sdxl(sheet: Sheet) -> None:
    """The same for SDXL: a canny ControlNet under the paper's schedule, style by the published ranking."""
    sheet.next_column("Model and ControlNet")
    sheet.note(
        "## Style + structure, balanced (SDXL)\n\n1. Choose an SDXL checkpoint and a canny ControlNet for it.\n2. Load"
        " a picture for the structure and one for the style, and say in the style's prompt what it shows.\n3. End your"
        " own prompt with the same style words.\n4. Press **Run**.\n\nLines too stiff: lower **structure amount**"
        " towards 0.05. Layout lost: raise it towards 0.5. Style too weak or too strong: **style amount** on *Select"
        " Layers*.\n\nSD1.5: choose its ControlNet and a profile measured with *5 Measure your checkpoint*, and set"
        " every size to 512.",
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
    gate = sheet.add("CBSelectLayers", profile=(profile, 0), **{"lambda": WITH_STRUCTURE})
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


WORKFLOWS = {
    "structure_picture_demo": structure_picture_demo,
    "structure_picture_sdxl": structure_picture_sdxl,
    "style_structure_balanced_demo": structure_demo,
    "style_structure_balanced_sdxl": structure_sdxl,
}
