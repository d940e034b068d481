"""What templates of several jobs share: models that paint, comparisons in rows, and layouts of pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from devtools import demo_scenes
from devtools.families import Loaded
from devtools.sheet import Blueprint, Sheet, Source

DEMO = {"seed": demo_scenes.SEED, **demo_scenes.SAMPLING}
SDXL = DEMO | {"seed": 10, "steps": 30, "cfg": 5.0}
BASE_SDXL = "sd_xl_base_1.0.safetensors"
PUBLISHED = "sdxl-base-1.0.style.published.safetensors"
DEMO_PROFILE = "demo.style.safetensors"
BALANCED = 0.2  # lambda at which the demo model takes the style as far as with all layers and keeps the content
WITH_STRUCTURE = 0.57  # style amount beside a ControlNet, as README says
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

    def painted(self, sheet: Sheet, name: str, model: Source, **given: Source) -> Source:
        """Pictures by a KSampler, from the conditioning and the canvas that it is `given`."""
        sampled = sheet.add("KSampler", f"Sample: {name}", model=model, **given, **self.sampling)
        return self.decoded(sheet, (sampled, 0))


def demo_painter(sheet: Sheet) -> Painter:
    model = sheet.add("CBLoadDemoModel")
    return Painter(*Loaded.of(model), demo_scenes.SIDE, DEMO, "demo_")


def sdxl_painter(sheet: Sheet) -> Painter:
    model = sheet.add("CheckpointLoaderSimple", ckpt_name=BASE_SDXL)
    return Painter(*Loaded.of(model), 1024, SDXL, "")


def loaded_square(sheet: Sheet, title: str) -> Source:
    """A picture of the user's own, at SDXL's size."""
    picture = sheet.add("LoadImage", title, tall=360, image="example.png")
    return sheet.add("ImageScale", image=(picture, 0), **SQUARE), 0


def demo_painting(sheet: Sheet) -> Painting:
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


def sdxl_painting(sheet: Sheet) -> Painting:
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


def sampled_by(sheet: Sheet, shared: Painting, name: str, model: Source) -> tuple[Source, Source]:
    """Latents and pictures."""
    sampled = sheet.add(
        "KSampler", f"Sample: {name}", model=model, positive=shared.positive, negative=shared.negative,
        latent_image=shared.canvas, **shared.sampling,
    )  # fmt: skip
    return (sampled, 0), (sheet.add("VAEDecode", samples=(sampled, 0), vae=shared.vae), 0)


def painted_by(sheet: Sheet, shared: Painting, name: str, gate: Source | None) -> Source:
    model = shared.model
    if gate:
        model = (sheet.add("CBStyleInjection", model=model, gate=gate, reference=shared.reference), 0)
    return sampled_by(sheet, shared, name, model)[1]


def row_of(sheet: Sheet, shared: Painting, name: str, gate: Source | None = None, **selected: Any) -> Source:
    """A column that paints through a gate, through layers `selected`, or without either through none."""
    sheet.next_column(name)
    if selected:
        gate = (sheet.add("CBSelectLayers", f"Layers: {name}", profile=shared.profile, **selected), 0)
    return painted_by(sheet, shared, name, gate)


def every_layer(sheet: Sheet, shared: Painting) -> Source:
    sheet.next_column("all layers")
    gate = sheet.add("CBLayerGate", "Every layer", layers="all")
    return painted_by(sheet, shared, "all layers", (gate, 0))


def folded(
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


def contact_sheet(sheet: Sheet, shared: Painting, rows: dict[str, Source]) -> Source:
    sheet.next_column("Contact sheet", 560)
    numbered = {f"row_{number}": source for number, source in enumerate(rows.values(), 1)}
    labels = "\n".join(["reference", *rows])
    return sheet.add("CBDemoSheet", reference=shared.picture, labels=labels, **numbered), 0


def saved(sheet: Sheet, table: Source, name: str) -> None:
    sheet.add("SaveImage", "Result", tall=620, images=table, filename_prefix=name)


def stitched(sheet: Sheet, pictures: list[Source], direction: str) -> Source:
    """Pictures in a line, by core's node for two."""
    first, *others = pictures
    for other in others:
        first = (sheet.add("ImageStitch", image1=first, image2=other, direction=direction, spacing_width=16), 0)
    return first


def in_a_square(sheet: Sheet, painted: list[Source], name: str) -> None:
    """Four pictures saved as one, two above and two below; a third one that is the last is as wide as two."""
    sheet.next_column("Result", 480)
    halves = [stitched(sheet, painted[:2], "right"), stitched(sheet, painted[2:], "right")]
    whole = stitched(sheet, halves, "down")
    sheet.add("SaveImage", "Result", tall=480, images=whole, filename_prefix=name)
