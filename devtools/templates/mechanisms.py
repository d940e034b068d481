"""Templates of single mechanisms: inversion, two prompts by region, a held layout, and guidance by style."""

from __future__ import annotations

from collections.abc import Sequence

from devtools import demo_scenes
from devtools.sheet import Sheet, Source
from devtools.templates.parts import (
    DEMO_PROFILE,
    PUBLISHED,
    SDXL,
    Painter,
    demo_painter,
    in_a_square,
    loaded_square,
    sdxl_painter,
)


def inversion_demo(sheet: Sheet) -> None:
    """A picture, walked back to its noise and painted from it again, exactly and under other words."""
    sheet.next_column("Model and picture")
    sheet.note(
        "## Repaint a picture from its own noise\n\n**Invert Latent** finds the noise from which the model paints the"
        " picture. Painted from it again under the same words the picture comes back; under other words it becomes"
        " what they say and keeps its layout.\n\nAbove: the picture, and painted again. Below: under other words, with"
        " what inversion lost put back at every step (*direct*) and without (*plain*).\n\nChange **Other words** and"
        " press **Run**.",
        360,
    )
    painter = demo_painter(sheet)
    picture = sheet.add("CBDemoPictures", "Picture", **demo_scenes.REPAINTED)
    _inverted(sheet, painter, (picture, 0), (picture, 1), demo_scenes.INSTEAD, steps=20)


def inversion_sdxl(sheet: Sheet) -> None:
    """The same for SDXL and a picture of one's own."""
    sheet.next_column("Model and picture")
    sheet.note(
        "## Repaint a picture from its own noise (SDXL)\n\n1. Choose an SDXL checkpoint and load a picture.\n2. Say in"
        " **What it shows** what is in it, and in **Other words** what it is to become.\n3. Press **Run**.\n\n**Invert"
        " Latent** finds the noise from which the model paints the picture. Above: the picture, and painted again."
        " Below: under other words, with what inversion lost put back at every step (*direct*) and without"
        " (*plain*).\n\nThe picture does not come back: raise **steps**. SD1.5: choose its checkpoint and set the"
        " sizes to 512.",
        400,
    )
    painter = sdxl_painter(sheet)
    picture = loaded_square(sheet, "Picture")
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
    in_a_square(sheet, painted, f"{painter.prefix}inversion")


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
        "## Two prompts by region\n\n**Blend Two Prompts** lets another prompt act where the mask is white, or for a"
        " part of the schedule. Where both act, at the mask's soft edge, the parts of the two that oppose each other"
        " are left out.\n\nAbove: each prompt alone. Below: both in one picture, the second on its right"
        " half.\n\nChange the prompts or **strength** and press **Run**. Without a mask, end the node's window at 0.35:"
        " the first steps follow one prompt and the others the other.",
        360,
    )
    _side_by_side(sheet, demo_painter(sheet), demo_scenes.TWO_PROMPTS, (demo_scenes.SIDE, demo_scenes.SIDE))


def noise_blend_sdxl(sheet: Sheet) -> None:
    """The same for SDXL, at a wide size that it was trained on."""
    sheet.next_column("Model and prompts")
    sheet.note(
        "## Two prompts by region (SDXL)\n\n1. Choose an SDXL checkpoint.\n2. Write two prompts that end with the same"
        " style words.\n3. Press **Run**.\n\nAbove: each prompt alone, half as wide. Below: both in one picture, the"
        " second on its right half. **Blend Two Prompts** lets another prompt act where the mask is white; any mask"
        " will do.\n\nTo let one prompt lay the picture out and the other finish it, take the mask off and end the"
        " node's window at 0.35.",
        380,
    )
    prompts = "a red fox in the snow, watercolor painting", "a lighthouse at dusk, watercolor painting"
    _side_by_side(sheet, sdxl_painter(sheet), prompts, (672, 768))


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
        given = {"positive": text, "negative": empty, "latent_image": latent}
        painted.append(painter.painted(sheet, name, source, **given))
    in_a_square(sheet, painted, f"{painter.prefix}noise_blend")


def revised_demo(sheet: Sheet) -> None:
    """A prompt held to a picture's layout and colours; a larger picture with ordinary and with its own noise levels."""
    sheet.next_column("Model and picture")
    side = demo_scenes.SIDE * 3 // 2
    sheet.note(
        "## Hold the layout and colours of a picture\n\n**Keep Colours or Layout** moves every prediction to the"
        " nearest one that has the picture's means, so that the model paints only what is missing. **Noise Levels for"
        " Another Resolution** moves a schedule for pictures larger than the trained size.\n\nAbove: the picture, and"
        f" the prompt held to it. Below: the prompt at {side} pixels with the ordinary noise levels, and with its own;"
        " so far beyond its trained size this small model repeats the subject either way.\n\nChange **cell** or the"
        " prompt and press **Run**.",
        360,
    )
    painter = demo_painter(sheet)
    picture = sheet.add("CBDemoPictures", "Picture", **demo_scenes.REPAINTED)
    _revised(sheet, painter, (picture, 0), demo_scenes.INSTEAD, cell=32)


def revised_sdxl(sheet: Sheet) -> None:
    """The same for SDXL and a picture of one's own."""
    sheet.next_column("Model and picture")
    sheet.note(
        "## Hold the layout and colours of a picture (SDXL)\n\n1. Choose an SDXL checkpoint and load a picture.\n2."
        " Write what the model should paint over its layout.\n3. Press **Run**.\n\n**Keep Colours or Layout** moves"
        " every prediction to the nearest one that has the picture's means. **Noise Levels for Another Resolution**"
        " moves a schedule for pictures larger than the trained size.\n\nAbove: the picture, and the prompt held to"
        " it. Below: the prompt at 1536 pixels with the ordinary noise levels, and with its own.\n\nToo close to the"
        " picture: raise **cell** or end its window earlier. Colours alone: set **known** to colour.",
        420,
    )
    painter = sdxl_painter(sheet)
    _revised(sheet, painter, loaded_square(sheet, "Picture"), "a red fox in the snow, watercolor painting", cell=128)


def _revised(sheet: Sheet, painter: Painter, picture: Source, prompt: str, cell: int) -> None:
    """A prompt held to a picture, and the same prompt half as large again."""
    side = painter.side * 3 // 2
    latent = sheet.add("VAEEncode", pixels=picture, vae=painter.vae)
    prompts = {"positive": painter.text(sheet, "Prompt", prompt), "negative": painter.text(sheet, "Negative", "")}
    sheet.next_column("Held")
    held = sheet.add("CBProject", model=painter.model, latent=(latent, 0), cell=cell, end_percent=0.8)
    canvas = painter.canvas(sheet, painter.side, painter.side)
    painted = [picture, painter.painted(sheet, "held", (held, 0), latent_image=canvas, **prompts)]
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
    in_a_square(sheet, painted, f"{painter.prefix}revised")


def guidance_demo(sheet: Sheet) -> None:
    """The reference, no guidance, and style guidance at two strengths."""
    sheet.next_column("What it shows")
    sheet.note(
        "## Guide by style alone\n\n**Layer Contrast** makes one more prediction at every step, with the reference's"
        " style in the chosen layers, and guides the picture along the difference, as CFG guides it along the"
        " difference that the prompt makes.\n\nAbove: the reference, and the prompt alone. Below: guided at 1.5 and at"
        " 3.\n\nChange **strength** and press **Run**.",
        300,
    )
    painter = demo_painter(sheet)
    gate = _ranked(sheet, painter, DEMO_PROFILE)
    sheet.next_column("Style and prompt")
    picture = sheet.add("CBDemoPictures", "Reference picture", **demo_scenes.REFERENCE)
    _guided(sheet, painter, gate, (picture, 0), demo_scenes.SHOWS, demo_scenes.PROMPT)


def guidance_sdxl(sheet: Sheet) -> None:
    """The same for SDXL and a picture of one's own."""
    sheet.next_column("What it shows")
    sheet.note(
        "## Guide by style alone (SDXL)\n\n1. Choose an SDXL checkpoint.\n2. Load a reference picture, and say in its"
        " prompt what it shows.\n3. End your own prompt with the same style words.\n4. Press **Run**.\n\n**Layer"
        " Contrast** makes one more prediction at every step, with the reference's style in the chosen layers, and"
        " guides the picture along the difference.\n\nAbove: the reference, and the prompt alone. Below: guided at 1.5"
        " and at 3.\n\nToo weak or too strong: **strength**. Colours burn: **rescale** 0.7.",
        380,
    )
    painter = sdxl_painter(sheet)
    gate = _ranked(sheet, painter, PUBLISHED)
    sheet.next_column("Style and prompt")
    picture = loaded_square(sheet, "Reference picture")
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
    given = {**prompts, "latent_image": painter.canvas(sheet, painter.side, painter.side)}
    painted = [picture]
    for name, strength in {"prompt alone": 0.0, "guided, 1.5": 1.5, "guided, 3": 3.0}.items():
        sheet.next_column(name)
        led = {"model": painter.model, "gate": gate, "reference": (reference, 0), "strength": strength}
        source = (sheet.add("CBLayerContrast", **led), 0) if strength else painter.model
        painted.append(painter.painted(sheet, name, source, **given))
    in_a_square(sheet, painted, f"{painter.prefix}guidance")


WORKFLOWS = {
    "inversion_demo": inversion_demo,
    "inversion_sdxl": inversion_sdxl,
    "noise_blend_demo": noise_blend_demo,
    "noise_blend_sdxl": noise_blend_sdxl,
    "revised_demo": revised_demo,
    "revised_sdxl": revised_sdxl,
    "guidance_demo": guidance_demo,
    "guidance_sdxl": guidance_sdxl,
}
