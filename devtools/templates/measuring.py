"""Templates that measure a model: by pictures, by one layer at a time, and while it paints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from devtools import demo_scenes
from devtools.sheet import Sheet, Source
from devtools.templates.parts import (
    BALANCED,
    BASE_SDXL,
    Painter,
    Painting,
    contact_sheet,
    demo_painter,
    demo_painting,
    row_of,
    sampled_by,
    saved,
    sdxl_painter,
    sdxl_painting,
)


def profile_demo(sheet: Sheet) -> None:
    """Measure the demo model on six styles that paint the same five scenes."""
    sheet.next_column("Model")
    sheet.note(
        "## Where does this model keep style?\n\nSix clusters, each five pictures in one style, all of the same"
        " scenes. **Profile Sensitivity** noises them, runs the model and measures, for every attention layer, how"
        " alike pictures of one style are there. **subjects** names the scenes, so that the report tells style and"
        " content apart.\n\nPress **Run**. Then measure your own checkpoint: template *5 Measure your checkpoint*.",
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
        " style: at least two, better six or more, with 5 to 12 pictures each. It is best to show the same"
        " subjects in every style and to give the same subject the same file name in each folder (*cat.png*): style and"
        " content are then scored apart.\n2. Press **R** and choose the outer folder as *folder*.\n3. Choose your"
        " checkpoint: SDXL, or SD1.5 with **size** 512.\n4. Press **Run**; it takes minutes.\n\nThe profile is saved"
        " under **name**. *Style from Picture* then finds it by itself with this checkpoint. In workflows built by"
        " hand, choose it in *Load Sensitivity Profile*.",
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
        "## What does each layer do?\n\nFour prompts are painted without the reference. Then **Measure Layers** applies"
        " the reference's style in one attention layer at a time, at two noise levels, without sampling again. The"
        " map is bright where a layer brings the style by itself; the report names layers that move the"
        " layout.\n\nPress **Run**. The last row is painted through the layers that bring the most style.",
    )
    shared = demo_painting(sheet)
    sheet.next_column("plain")
    latent, plain = sampled_by(sheet, shared, "plain", shared.model)
    gate = _effect(sheet, shared, latent, noise_levels=2)
    rows = {"plain": plain, "measured": row_of(sheet, shared, "measured", gate)}
    saved(sheet, contact_sheet(sheet, shared, rows), "demo_what_layers_do")


def effect_sdxl(sheet: Sheet) -> None:
    """The same for SDXL."""
    sheet.next_column("What it shows")
    sheet.note(
        "## What does each layer do? (SDXL)\n\n1. Choose an SDXL checkpoint.\n2. Load a reference picture, and say in"
        " its prompt what it shows and in which style.\n3. Press **Run**.\n\nTwo prompts are painted without the"
        " reference. Then **Measure Layers** applies its style in one attention layer at a time: 71 model calls for"
        " each of four noise levels, about as long as ten pictures. The map is bright where a layer brings the style"
        " by itself. The result is painted through the layers that bring the most style.",
    )
    shared = sdxl_painting(sheet)
    sheet.next_column("plain")
    latent, _ = sampled_by(sheet, shared, "plain", shared.model)
    painted = row_of(sheet, shared, "measured", _effect(sheet, shared, latent))
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
        " noise. **Record Sensitivity** before each sampler records what the attention layers do: *label* names the"
        " style, *subject* what is shown. **Profile from Recording** makes rankings of style and of content from all"
        " that was recorded.\n\nPress **Run**. Pictures made in later runs are added to the recording, which is in"
        " *output/sensitivity_recordings* under the name in **series**.",
    )
    _recorded(sheet, demo_painter(sheet), demo_scenes.RECORDED_STYLES, "drawing", "demo.style.recorded")


def recorded_sdxl(sheet: Sheet) -> None:
    """The same for SDXL."""
    sheet.next_column("Model")
    sheet.note(
        "## Measure while it paints (SDXL)\n\n1. Choose an SDXL checkpoint. SD1.5: set the size to 512.\n2. Write the"
        " same subjects in every style, one prompt a line; **label** names the style, **subject** the subjects in the"
        " order of the lines.\n3. Press **Run**: nine pictures are painted and recorded.\n\nFor a better ranking"
        " change the prompts, *label* and *subject*, and press **Run** again: pictures are added to **series** until"
        " you give another name. Five styles of five subjects rank well.\n\nThe profile is saved under **name**;"
        " choose it in *Load Sensitivity Profile*.",
        400,
    )
    styles = "watercolor", "oil", "ink"
    _recorded(sheet, sdxl_painter(sheet), styles, "painting", "my-sdxl.style.recorded")


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


WORKFLOWS = {
    "recorded_demo": recorded_demo,
    "recorded_sdxl": recorded_sdxl,
    "layers_do_demo": effect_demo,
    "layers_do_sdxl": effect_sdxl,
    "profile_demo": profile_demo,
    "profile_sdxl": profile_sdxl,
}
