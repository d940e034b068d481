"""Templates that keep a subject and replace what is around it: with one node, and step by step."""

from __future__ import annotations

from typing import Any, NamedTuple

from devtools import demo_scenes
from devtools.families import Loaded, result
from devtools.sheet import Sheet
from devtools.templates.parts import BASE_SDXL, DEMO, SQUARE

BASE_SD15 = "v1-5-pruned-emaonly-fp16.safetensors"


def subject_picture_demo(sheet: Sheet) -> None:
    """The smallest graph that keeps a subject, with the demo model."""
    sheet.next_column("1  Press Run")
    sheet.note(
        "## Keep the subject, new background\n\nPress **Run**: the subject of the prompt stands in the surroundings of"
        " the picture. **subject** names it in the prompt's own words; empty, the prompt's first words count.",
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
        "## Keep the subject, new background (SDXL)\n\n1. Choose a checkpoint and load the picture of the"
        " background.\n2. Write the prompt: the subject, and the surroundings as the picture shows them.\n3. Press"
        " **Run**.\n\nWrong subject: name it in **subject**. SD1.5 works as well.",
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


def subject_demo(sheet: Sheet) -> None:
    """The demo model keeps what it paints and takes the surroundings from another picture."""
    sheet.next_column("Press Run")
    sheet.note(
        "## Keep the subject, replace the background\n\nThe prompt names a subject; the reference gives everything "
        "around it. **Grad-SAM Blend** finds where the model draws the subject, and takes the rest from the reference. "
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
        f"## Keep the subject, replace the background ({name})\n\n1. Choose your checkpoint.\n2. Load the picture that"
        " gives the background.\n3. Write the prompt, in **phrase** its words for the subject and in **surroundings**"
        " those for what lies around it.\n4. Press **Run**.\n\nSubject cut off: raise **dilate**. Too much background"
        " inside the mask: lower it, or choose the **threshold** mean + c std and raise **amount**. Exact background:"
        " end the last window at 1.",
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


WORKFLOWS = {
    "subject_picture_demo": subject_picture_demo,
    "subject_picture_sdxl": subject_picture_sdxl,
    "subject_kept_demo": subject_demo,
    "subject_kept_sd15": subject_sd15,
    "subject_kept_sdxl": subject_sdxl,
}
