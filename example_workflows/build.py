"""Writes the example workflows in the front end's format: python example_workflows/build.py

Node ids, slots and the order of widgets come from the node list of a running ComfyUI, so that a change of a schema
needs no editing by hand: build again.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from devtools import comfyui, environment, server, workflow

WIDTH, GAP, TITLE, LINE = 330, 40, 60, 26
LAYER_MAP = 280  # what the map adds to a node's height
WITH_LAYER_MAP = ("CBSelectLayers", "CBProfileSensitivity", "CBLoadSensitivityProfile")


class Sheet:
    """A workflow under construction: nodes in columns, links by (node, output slot)."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        self.known, self.nodes, self.links = known, [], []
        self.column, self.top = 0, 0

    def next_column(self) -> None:
        self.column, self.top = self.column + 1, 0

    def add(self, kind: str, title: str | None = None, tall: int | None = None, **inputs: Any) -> int:
        """Place a node under the last one; an input is a value for a widget or (node id, slot) for a socket."""
        info, number = self.known[kind], len(self.nodes) + 1
        sockets, values = self._inputs(kind, number, inputs)
        lines = len(values) + max(len(sockets), len(info["output"]))
        size = [WIDTH, tall or TITLE + LINE * lines + LAYER_MAP * (kind in WITH_LAYER_MAP)]
        node = {
            "id": number, "type": kind, "pos": [self.column * (WIDTH + GAP), self.top], "size": size, "flags": {},
            "order": number - 1, "mode": 0, "inputs": sockets,
            "outputs": [
                {"name": name, "type": kind_of, "links": [], "slot_index": slot}
                for slot, (name, kind_of) in enumerate(zip(info["output_name"], info["output"], strict=True))
            ],
            "properties": {"Node name for S&R": kind}, "widgets_values": values,
        }  # fmt: skip
        if title:
            node["title"] = title
        self.nodes.append(node)
        self._connect(number, sockets)
        self.top += size[1] + GAP + TITLE
        return number

    def _inputs(self, kind: str, number: int, given: dict[str, Any]) -> tuple[list[dict[str, Any]], list[Any]]:
        info, sockets, values, given = self.known[kind], [], [], dict(given)
        for part in ("required", "optional"):
            for name in info["input_order"].get(part, []):
                spec, options = workflow.spec_of(info["input"][part][name])
                if spec in workflow.WIDGET_TYPES and not isinstance(given.get(name), tuple):
                    value = given.pop(name, options.get("default"))
                    values.append(_first_choice(info["input"][part][name]) if value is None else value)
                    values += ["fixed"] * len(workflow.companions(name, spec, options))
                    values += ["image"] * bool(options.get("image_upload"))  # the upload button
                else:
                    sockets.append({"name": name, "type": spec, "link": None, "from": given.pop(name, None)})
                    if spec in workflow.WIDGET_TYPES:
                        sockets[-1]["widget"] = {"name": name}
        if given:
            raise KeyError(f"{kind} has no input {', '.join(given)}")
        return sockets, values

    def _connect(self, number: int, sockets: list[dict[str, Any]]) -> None:
        for slot, socket in enumerate(sockets):
            source = socket.pop("from")
            if source is not None:
                link = len(self.links) + 1
                origin, origin_slot = source
                socket["link"] = link
                self.nodes[origin - 1]["outputs"][origin_slot]["links"].append(link)
                self.links.append([link, origin, origin_slot, number, slot, socket["type"]])

    def note(self, text: str, height: int = 260) -> None:
        """A Markdown note for the reader."""
        self.nodes.append(
            {
                "id": len(self.nodes) + 1, "type": "MarkdownNote", "pos": [self.column * (WIDTH + GAP), self.top],
                "size": [WIDTH, height], "flags": {}, "order": len(self.nodes), "mode": 0, "inputs": [], "outputs": [],
                "title": "Read me", "properties": {}, "widgets_values": [text], "color": "#432", "bgcolor": "#653",
            }
        )  # fmt: skip
        self.top += height + GAP + TITLE

    def save(self, name: str) -> None:
        """Write the workflow; the file is replaced whole."""
        graph = {
            "last_node_id": len(self.nodes), "last_link_id": len(self.links), "nodes": self.nodes, "links": self.links,
            "groups": [], "config": {}, "extra": {"ds": {"scale": 0.7, "offset": [60, 80]}}, "version": 0.4,
        }  # fmt: skip
        target = ROOT / "example_workflows" / f"{name}.json"
        part = target.with_suffix(".part")
        part.write_text(json.dumps(graph, indent=1) + "\n", encoding="utf-8")
        os.replace(part, target)
        print(target.relative_to(ROOT))


def _first_choice(spec: list[Any]) -> Any:
    choices = spec[0] if isinstance(spec[0], list) else spec[1].get("options", [None])
    return choices[0] if choices else None


STYLES = ("comic", "engraving", "stained glass", "neon", "mosaic", "poster")


def profile_demo(sheet: Sheet) -> None:
    """Measure the demo model on six styles that draw the same five scenes."""
    sheet.note(
        "## Where does this model keep style?\n\nSix clusters, each five pictures in one style, all of the same scenes."
        " **Profile Sensitivity** noises them, runs the model and asks every attention layer: do pictures of one style"
        " look alike to you? The layers that say yes are named.\n\nPress **Run**. Then use your own checkpoint and your"
        " own folders of pictures.",
    )
    model = sheet.add("CBLoadDemoModel")
    prompt = sheet.add("CLIPTextEncode", "Prompt for all pictures", clip=(model, 1), text="a picture")
    empty = sheet.add("CLIPTextEncode", "Negative", clip=(model, 1), text="")
    sheet.next_column()
    clusters: tuple[int, int] | None = None
    for number, style in enumerate(STYLES):
        pictures = sheet.add("CBDemoPictures", style=style, style_seed=number, count=5, scene_seed=7)
        if number % 3 == 2:
            sheet.next_column()
        previous = {"previous": clusters} if clusters else {}
        clusters = (sheet.add("CBImageClusters", images=(pictures, 0), name=style, **previous), 0)
    sheet.next_column()
    measured = sheet.add(
        "CBProfileSensitivity", model=(model, 0), clusters=clusters, vae=(model, 2), positive=(prompt, 0),
        negative=(empty, 0), **{"size": 128},
    )  # fmt: skip
    sheet.add("CBSaveSensitivityProfile", profile=(measured, 0), name="demo.style.mine")
    sheet.next_column()
    sheet.add("SaveImage", "Heat map", tall=420, images=(measured, 1), filename_prefix="demo_heat_map")


def style_demo(sheet: Sheet) -> None:
    """One prompt batch, from no sharing over three lambdas to sharing on all layers."""
    sheet.note(
        "## Style, balanced\n\nEvery row paints the same four prompts with the same noise. The reference's style enters"
        " through no layer (plain), through the 20, 43 and 70 % that the profile ranks most style-sensitive, and"
        " through all.\n\nMove **lambda** on *Select Layers* and press **Run**.",
    )
    model = sheet.add("CBLoadDemoModel")
    profile = sheet.add("CBLoadSensitivityProfile", profile="demo.style.safetensors", model=(model, 0))
    picture = sheet.add(
        "CBDemoPictures", "Reference picture", style="stained glass", style_seed=4, count=1, scene_seed=3
    )
    sheet.next_column()
    prompts = "\n".join(
        f"{thing}, stained glass style"
        for thing in ("a house in the hills", "a cat in the city", "a boat by the sea", "a tree in the mountains")
    )
    positive = sheet.add("CBPromptBatch", tall=200, clip=(model, 1), prompts=prompts)
    negative = sheet.add("CLIPTextEncode", "Negative", clip=(model, 1), text="")
    about = sheet.add(
        "CLIPTextEncode", "What the reference shows", clip=(model, 1), text="a picture, stained glass style"
    )
    latent = sheet.add("VAEEncode", pixels=(picture, 0), vae=(model, 2))
    reference = sheet.add("CBStyleReference", latent=(latent, 0), prompt=(about, 0))
    canvas = sheet.add("EmptyLatentImage", width=128, height=128, batch_size=4)
    sheet.next_column()
    styled = {"plain": (model, 0)}
    for share in (0.2, 0.43, 0.7, 1.0):
        gate = sheet.add("CBSelectLayers", profile=(profile, 0), **{"lambda": share})
        name = "all layers" if share == 1.0 else f"lambda {share}"
        injected = sheet.add("CBStyleInjection", model=(model, 0), gate=(gate, 0), reference=(reference, 0))
        styled[name] = (injected, 0)
    sheet.next_column()
    decoded = []
    for name, source in styled.items():
        sampled = sheet.add(
            "KSampler", name, model=source, positive=(positive, 0), negative=(negative, 0), latent_image=(canvas, 0),
            seed=5, steps=20, cfg=4.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        )  # fmt: skip
        decoded.append((sheet.add("VAEDecode", samples=(sampled, 0), vae=(model, 2)), 0))
    sheet.next_column()
    rows = {f"row_{number}": source for number, source in enumerate(decoded, 1)}
    table = sheet.add("CBDemoSheet", reference=(picture, 0), labels="\n".join(["reference", *styled]), **rows)
    sheet.add("SaveImage", "Result", tall=620, images=(table, 0), filename_prefix="demo_style_balanced")


def style_sdxl(sheet: Sheet) -> None:
    """The same for SDXL with the published ranking."""
    sheet.note(
        "## Style, balanced (SDXL)\n\n1. Choose an SDXL checkpoint.\n2. Load a reference picture, and say in its prompt"
        " what it shows and in which style.\n3. End your own prompts with the same style words.\n4. Press **Run**.\n\n"
        "More style: raise **lambda** towards 0.6. Prompt not followed: lower it towards 0.3. For a finetune, measure a"
        " profile of its own with *Profile Sensitivity*.",
        320,
    )
    model = sheet.add("CheckpointLoaderSimple", ckpt_name="sd_xl_base_1.0.safetensors")
    profile = sheet.add(
        "CBLoadSensitivityProfile", profile="sdxl-base-1.0.style.published.safetensors", model=(model, 0)
    )
    picture = sheet.add("LoadImage", "Reference picture", tall=360, image="example.png")
    sheet.next_column()
    fitted = sheet.add(
        "ImageScale", image=(picture, 0), upscale_method="lanczos", width=1024, height=1024, crop="center"
    )
    latent = sheet.add("VAEEncode", pixels=(fitted, 0), vae=(model, 2))
    about = sheet.add(
        "CLIPTextEncode",
        "What the reference shows",
        tall=160,
        clip=(model, 1),
        text="a landscape, watercolor painting",
    )
    reference = sheet.add("CBStyleReference", latent=(latent, 0), prompt=(about, 0))
    prompts = "a red fox in the snow, watercolor painting\na lighthouse at dusk, watercolor painting"
    positive = sheet.add("CBPromptBatch", tall=200, clip=(model, 1), prompts=prompts)
    negative = sheet.add("CLIPTextEncode", "Negative", tall=120, clip=(model, 1), text="")
    sheet.next_column()
    gate = sheet.add("CBSelectLayers", profile=(profile, 0))
    sheet.add("PreviewImage", "Layer map", tall=300, images=(gate, 1))
    injected = sheet.add("CBStyleInjection", model=(model, 0), gate=(gate, 0), reference=(reference, 0))
    sheet.next_column()
    canvas = sheet.add("EmptyLatentImage", width=1024, height=1024, batch_size=2)
    sampled = sheet.add(
        "KSampler", model=(injected, 0), positive=(positive, 0), negative=(negative, 0), latent_image=(canvas, 0),
        seed=10, steps=30, cfg=5.0, sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    decoded = sheet.add("VAEDecode", samples=(sampled, 0), vae=(model, 2))
    sheet.add("SaveImage", tall=420, images=(decoded, 0), filename_prefix="style_balanced")


def structure_demo(sheet: Sheet) -> None:
    """Four scenes by their edge maps in a reference's style, from the whole ControlNet down to none."""
    sheet.note(
        "## Style + structure, balanced\n\nAn edge map says where things are, a reference how they are drawn. With the"
        " whole ControlNet the edges decide every line. *Gate ControlNet* keeps it for the first share **kept** of the"
        " schedule and then only its middle residual, which holds the layout: the style draws the lines.\n\nMove"
        " **kept**, and **lambda** on *Select Layers*, and press **Run**.",
        320,
    )
    model = sheet.add("CBLoadDemoModel")
    control = sheet.add("CBLoadDemoControlNet")
    profile = sheet.add("CBLoadSensitivityProfile", profile="demo.style.safetensors", model=(model, 0))
    gate = sheet.add("CBSelectLayers", profile=(profile, 0))
    sheet.next_column()
    picture = sheet.add(
        "CBDemoPictures", "Reference picture", style="stained glass", style_seed=4, count=1, scene_seed=3
    )
    about = sheet.add("CLIPTextEncode", "What the reference shows", clip=(model, 1), text=(picture, 2))
    latent = sheet.add("VAEEncode", pixels=(picture, 0), vae=(model, 2))
    reference = sheet.add("CBStyleReference", latent=(latent, 0), prompt=(about, 0))
    injected = sheet.add("CBStyleInjection", model=(model, 0), gate=(gate, 0), reference=(reference, 0))
    sheet.next_column()
    scenes = sheet.add("CBDemoPictures", "Edge maps", style="stained glass", style_seed=9, count=4, scene_seed=11)
    positive = sheet.add("CBPromptBatch", clip=(model, 1), prompts=(scenes, 2))
    negative = sheet.add("CLIPTextEncode", "Negative", clip=(model, 1), text="")
    canvas = sheet.add("EmptyLatentImage", width=128, height=128, batch_size=4)
    controls = {"plain control": (control, 0)}
    for kept in (0.5, 0.15, 0.0):
        controls[f"kept {kept:g}"] = (sheet.add("CBGateControlNet", control_net=(control, 0), kept=kept), 0)
    sheet.next_column()
    decoded = []
    for name, source in controls.items():
        applied = sheet.add(
            "ControlNetApplyAdvanced", name, positive=(positive, 0), negative=(negative, 0), control_net=source,
            image=(scenes, 3),
        )  # fmt: skip
        decoded.append(_sampled_demo(sheet, name, model, (injected, 0), (applied, 0), (applied, 1), canvas))
    decoded.append(_sampled_demo(sheet, "no control", model, (injected, 0), (positive, 0), (negative, 0), canvas))
    sheet.next_column()
    rows = {"row_1": (scenes, 3)} | {f"row_{number}": source for number, source in enumerate(decoded, 2)}
    labels = "\n".join(["reference", "edge maps", *controls, "no control"])
    table = sheet.add("CBDemoSheet", reference=(picture, 0), labels=labels, **rows)
    sheet.add("SaveImage", "Result", tall=620, images=(table, 0), filename_prefix="demo_structure_balanced")


Source = tuple[int, int]


def _sampled_demo(
    sheet: Sheet, name: str, demo: int, model: Source, positive: Source, negative: Source, canvas: int
) -> Source:
    """Sampled and decoded pictures of the demo model."""
    sampled = sheet.add(
        "KSampler", name, model=model, positive=positive, negative=negative, latent_image=(canvas, 0),
        seed=5, steps=12, cfg=4.0, sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    return sheet.add("VAEDecode", samples=(sampled, 0), vae=(demo, 2)), 0


def structure_sdxl(sheet: Sheet) -> None:
    """The same for SDXL: a canny ControlNet under the paper's schedule, style by the published ranking."""
    sheet.note(
        "## Style + structure, balanced (SDXL)\n\n1. Choose an SDXL checkpoint and a canny ControlNet for it.\n2. Load"
        " a picture for the structure and one for the style, and say in the style's prompt what it shows.\n3. End your"
        " own prompt with the same style words.\n4. Press **Run**.\n\nLines too stiff: lower **kept** towards 0.05."
        " Layout lost: raise it towards 0.5. Style too weak or too strong: **lambda** on *Select Layers*.",
        340,
    )
    model = sheet.add("CheckpointLoaderSimple", ckpt_name="sd_xl_base_1.0.safetensors")
    control = sheet.add("ControlNetLoader", control_net_name="diffusers_xl_canny_full.safetensors")
    gated = sheet.add("CBGateControlNet", control_net=(control, 0), kept=0.15)
    structure = sheet.add("LoadImage", "Structure picture", tall=360, image="example.png")
    sheet.next_column()
    fitted = sheet.add(
        "ImageScale", image=(structure, 0), upscale_method="lanczos", width=1024, height=1024, crop="center"
    )
    edges = sheet.add("Canny", image=(fitted, 0))
    sheet.add("PreviewImage", "Edges", tall=260, images=(edges, 0))
    picture = sheet.add("LoadImage", "Style picture", tall=360, image="example.png")
    sheet.next_column()
    scaled = sheet.add(
        "ImageScale", image=(picture, 0), upscale_method="lanczos", width=1024, height=1024, crop="center"
    )
    latent = sheet.add("VAEEncode", pixels=(scaled, 0), vae=(model, 2))
    about = sheet.add(
        "CLIPTextEncode", "What the style picture shows", tall=160, clip=(model, 1), text="a landscape, ink painting"
    )
    reference = sheet.add("CBStyleReference", latent=(latent, 0), prompt=(about, 0))
    positive = sheet.add("CLIPTextEncode", "Prompt", tall=160, clip=(model, 1), text="a sitting cat, ink painting")
    negative = sheet.add("CLIPTextEncode", "Negative", tall=120, clip=(model, 1), text="")
    sheet.next_column()
    profile = sheet.add(
        "CBLoadSensitivityProfile", profile="sdxl-base-1.0.style.published.safetensors", model=(model, 0)
    )
    gate = sheet.add("CBSelectLayers", profile=(profile, 0), **{"lambda": 0.57})
    injected = sheet.add("CBStyleInjection", model=(model, 0), gate=(gate, 0), reference=(reference, 0))
    applied = sheet.add(
        "ControlNetApplyAdvanced", positive=(positive, 0), negative=(negative, 0), control_net=(gated, 0),
        image=(edges, 0), strength=0.8,
    )  # fmt: skip
    sheet.next_column()
    canvas = sheet.add("EmptyLatentImage", width=1024, height=1024, batch_size=1)
    sampled = sheet.add(
        "KSampler", model=(injected, 0), positive=(applied, 0), negative=(applied, 1), latent_image=(canvas, 0),
        seed=10, steps=30, cfg=5.0, sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    decoded = sheet.add("VAEDecode", samples=(sampled, 0), vae=(model, 2))
    sheet.add("SaveImage", tall=420, images=(decoded, 0), filename_prefix="structure_balanced")


def subject_demo(sheet: Sheet) -> None:
    """The demo model keeps what it draws and takes the surroundings from a drawn picture."""
    sheet.note(
        "## Keep the subject, replace the background\n\nThe prompt names a subject; the reference gives everything "
        "around it. **Grad-SAM Blend** looks where the model draws the subject, and takes the rest from the reference. "
        "**Attribution Preview** shows what it found: map, mask, overlay, one row for each window.\n\nChange the "
        "**phrase** or the **windows** and press **Run**.",
    )
    model = sheet.add("CBLoadDemoModel")
    picture = sheet.add("CBDemoPictures", "Reference picture", style="comic", style_seed=4, count=1, scene_seed=3)
    _keep_subject(sheet, model, picture, "a cat in the city, comic style", "cat", "city", "", 20, 4.0, "demo_")


def subject_sd15(sheet: Sheet) -> None:
    """Keep the subject, replace the background, for SD1.5."""
    _subject_of_checkpoint(sheet, "SD1.5", "v1-5-pruned-emaonly.safetensors", 512, 7.0)


def subject_sdxl(sheet: Sheet) -> None:
    """Keep the subject, replace the background, for SDXL."""
    _subject_of_checkpoint(sheet, "SDXL", "sd_xl_base_1.0.safetensors", 1024, 5.5)


def _subject_of_checkpoint(sheet: Sheet, name: str, checkpoint: str, side: int, cfg: float) -> None:
    sheet.note(
        f"## Keep the subject, replace the background ({name})\n\n1. Choose your checkpoint.\n2. Load the picture that "
        "gives the background.\n3. Write the prompt, in **phrase** its words for the subject and in **surroundings** "
        "those for what lies around it.\n4. Press **Run**."
        "\n\nToo much background inside the mask: raise **amount**. Subject cut off: lower it, or raise **dilate**. "
        "Exact background: end the last window at 1.",
        320,
    )
    model = sheet.add("CheckpointLoaderSimple", ckpt_name=checkpoint)
    picture = sheet.add("LoadImage", "Picture of the background", tall=360, image="example.png")
    sheet.next_column()
    fitted = sheet.add(
        "ImageScale", image=(picture, 0), upscale_method="lanczos", width=side, height=side, crop="center"
    )
    prompt = "a red fox sitting in a meadow, photo"
    _keep_subject(sheet, model, fitted, prompt, "red fox", "meadow", "blurry, deformed", 30, cfg)


def _keep_subject(
    sheet: Sheet,
    loaded: int,
    picture: int,
    prompt: str,
    phrase: str,
    surroundings: str,
    negative: str,
    steps: int,
    cfg: float,
    prefix: str = "",
) -> None:
    """From a model and a reference picture to the blended picture and what the windows found."""
    model, clip, vae = ((loaded, slot) for slot in range(3))
    latent = sheet.add("VAEEncode", pixels=(picture, 0), vae=vae)
    sheet.next_column()
    subject = sheet.add("CBSubject", tall=260, clip=clip, prompt=prompt, phrase=phrase, surroundings=surroundings)
    unwanted = sheet.add("CLIPTextEncode", "Negative", tall=120, clip=clip, text=negative)
    blend = sheet.add("CBGradSAMBlend", model=model, reference=(latent, 0), subject=(subject, 1))
    sheet.next_column()
    sampled = sheet.add(
        "KSampler", model=(blend, 0), positive=(subject, 0), negative=(unwanted, 0), latent_image=(blend, 1), seed=5,
        steps=steps, cfg=cfg, sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    decoded = sheet.add("VAEDecode", samples=(sampled, 0), vae=vae)
    sheet.next_column()
    shown = sheet.add("CBAttributionPreview", tall=420, attribution=(blend, 2), after=(sampled, 0), image=(decoded, 0))
    sheet.add("SaveImage", "Map, mask, overlay", tall=420, images=(shown, 1), filename_prefix=f"{prefix}subject_found")
    sheet.next_column()
    sheet.add("SaveImage", "Result", tall=420, images=(decoded, 0), filename_prefix=f"{prefix}subject_kept")


WORKFLOWS = {
    "profile_demo": profile_demo,
    "style_balanced_demo": style_demo,
    "style_balanced_sdxl": style_sdxl,
    "style_structure_balanced_demo": structure_demo,
    "style_structure_balanced_sdxl": structure_sdxl,
    "subject_kept_demo": subject_demo,
    "subject_kept_sd15": subject_sd15,
    "subject_kept_sdxl": subject_sdxl,
}


def main() -> None:
    comfy = comfyui.find()
    env = environment.prepare(comfy, [])
    with server.started(env.python, comfy.path, comfyui.CACHE / "build", env.cpu) as running:
        known = json.loads(running.get("/object_info"))
    for name, describe in WORKFLOWS.items():
        sheet = Sheet(known)
        describe(sheet)
        sheet.save(name)


if __name__ == "__main__":
    main()
