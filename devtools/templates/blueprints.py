"""Blueprints: a whole job as one node, which ComfyUI's front end offers as a subgraph."""

from __future__ import annotations

from devtools.sheet import Blueprint, Source
from devtools.templates.parts import SDXL, WITH_STRUCTURE

OWN_PROMPT = "a red fox in the snow"
MAP = "cb_layer_map"  # the name of js/layer_map's widget


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
    """From a checkpoint, a ControlNet and two pictures to your prompt in one's style and the other's layout."""
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


def checkpoint_of(inside: Blueprint) -> dict[str, Source]:
    """The sockets of what every blueprint takes from a checkpoint loader."""
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
