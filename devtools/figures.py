"""The figure of every node's help page: what it shows, and how it comes out of the demo workflows' runs.

A figure is a function under `@figure`. Those that build on a workflow get its prompt just after it ran, when every
result of it is still cached, and add what else they want to see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from PIL import Image

from conditional_balance.engine.conditioning import power_cosine, shifted_sigmas
from conditional_balance.engine.gate_texts import block_weights
from conditional_balance.engine.gates import CombinedGate, LayerGate, RankedGate, ScaledGate, WrittenGate, mean_weights
from conditional_balance.engine.gates.policies import Static
from conditional_balance.engine.grammar import parse
from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.engine.profile_file import load
from conditional_balance.engine.structure import PaperSchedule, RankedSlots, StructureGate, parse_weights, slot_layout
from conditional_balance.render import heatmap
from conditional_balance.render.gate_map import sampled, spread_sigmas, standard_sigma

from . import demo_scenes
from .comfyui import ROOT
from .contact import grids, parts, sheet, stacked
from .graph import Graph, Link
from .server import Server

PUBLISHED = "sdxl-base-1.0.style.published.safetensors"
MAP_WIDTH, WIDE_MAP = 760, 1100  # of the demo model, and of one with 70 layers
LOOK = {"noise_levels": 6, "size": demo_scenes.SIDE, "features": "q"}  # of the profiles that only figures show
SLOTS = 6  # residuals of the demo model besides the middle one
STEPS = 48  # columns of a chart over the schedule


@dataclass(frozen=True)
class Studio:
    """The running server and what it knows."""

    server: Server
    known: Mapping[str, Any]
    tell: Callable[[str], None]

    def shoot(self, graph: Graph, *links: Link) -> list[list[Image.Image]]:
        """The pictures that flow out of these outputs of a prompt."""
        # Each under a name of its own: ComfyUI does not tell again what it has told, when nothing has changed.
        shown = [graph.add("SaveImage", images=link, filename_prefix=f"shots/{uuid4().hex}") for link in links]
        outputs = self.server.run(graph.only(shown), tell=self.tell)
        return [[opened(self.server.fetch(each)) for each in outputs[name]["images"]] for name in shown]

    def report(self, graph: Graph, node: str) -> str:
        """The text that a node shows on itself."""
        return self.server.run(graph.only([node]), tell=self.tell)[node]["text"][0]

    @property
    def profiles(self) -> Path:
        return self.server.base / "models" / "sensitivity_profiles"


def opened(data: bytes) -> Image.Image:
    """A picture file's contents as RGB; `info` still has the workflow that it carries."""
    picture = Image.open(BytesIO(data))
    return picture if picture.mode == "RGB" else picture.convert("RGB")


@dataclass(frozen=True)
class Figure:
    """How one node's figure is made; `of` names the workflow whose prompt it builds on."""

    draw: Callable[[Studio, Graph], Image.Image]
    of: str | None


FIGURES: dict[str, Figure] = {}  # by node
OVERVIEWS: dict[str, Figure] = {}  # by the file in docs/ that shows a whole workflow


def figure(node: str, of: str | None = None) -> Callable:
    """Names the node that a function draws the figure of."""

    def note(draw: Callable[[Studio, Graph], Image.Image]) -> Callable[[Studio, Graph], Image.Image]:
        FIGURES[node] = Figure(draw, of)
        return draw

    return note


def overview(name: str, of: str) -> Callable:
    """Names the picture docs/NAME.png that a function draws of a workflow, where no single output shows it."""

    def note(draw: Callable[[Studio, Graph], Image.Image]) -> Callable[[Studio, Graph], Image.Image]:
        OVERVIEWS[name] = Figure(draw, of)
        return draw

    return note


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


# Profiles


@figure("CBImageClusters", of="profile_demo")
def clusters(studio: Studio, graph: Graph) -> Image.Image:
    return sheet(_clusters(studio, graph), tile=110)


@figure("CBLoadImageClusters", of="profile_demo")
def folders(studio: Studio, graph: Graph) -> Image.Image:
    rows = [(f"    {label}/", pictures) for label, pictures in _clusters(studio, graph)]
    return sheet(rows, title="input/my styles/", tile=110)


def _clusters(studio: Studio, graph: Graph) -> list[tuple[str, list[Image.Image]]]:
    """Names and pictures of the workflow's first clusters."""
    nodes = graph.all("CBImageClusters")[:3]
    batches = studio.shoot(graph, *(graph.input(node, "images") for node in nodes))
    return [(graph.input(node, "name"), batch[:4]) for node, batch in zip(nodes, batches, strict=True)]


@figure("CBProfileSensitivity", of="profile_demo")
def measured(studio: Studio, graph: Graph) -> Image.Image:
    ((heat_map,),) = studio.shoot(graph, [graph.first("CBProfileSensitivity"), 1])
    return stacked([heat_map], MAP_WIDTH)


@figure("CBSaveSensitivityProfile", of="profile_demo")
def saved(studio: Studio, graph: Graph) -> Image.Image:
    name = graph.input(graph.first("CBSaveSensitivityProfile"), "name") + ".safetensors"
    ((heat_map,),) = studio.shoot(graph, [graph.add("CBLoadSensitivityProfile", profile=name), 1])
    return sheet([("", [heat_map])], title=f"models/sensitivity_profiles/{name}", tile=480)


@figure("CBLoadSensitivityProfile")
def loaded(studio: Studio, graph: Graph) -> Image.Image:
    whole = _published()  # 50 noise levels are three screens high: a fifth of them tell the same
    few = replace(whole, sigmas=whole.sigmas[::5], scores=whole.scores[:, ::5])
    return stacked([heatmap.draw(few, "SDXL base 1.0: sensitivity to style")], WIDE_MAP)


@figure("CBCombineProfiles")
def contrasted(studio: Studio, graph: Graph) -> Image.Image:
    style, geometry = _measured(graph, "medium"), graph.add("CBLoadSensitivityProfile", profile=_geometry(studio))
    operation = "contrast (first minus second)"
    mixed = graph.add("CBCombineProfiles", operation=operation, profile_1=[style, 0], profile_2=[geometry, 0])
    maps = studio.shoot(graph, [style, 1], [geometry, 1], [mixed, 1])
    return stacked([picture for (picture,) in maps], MAP_WIDTH)


def _geometry(studio: Studio) -> str:
    """The file of a small profile of geometry, measured where it is not there yet."""
    name = "demo.geometry.figure"
    if not (studio.profiles / f"{name}.safetensors").exists():
        graph = Graph({}, studio.known)
        kept = graph.add("CBSaveSensitivityProfile", profile=[_measured(graph, "hand"), 0], name=name)
        studio.server.run(graph.only([kept]), tell=studio.tell)
    return f"{name}.safetensors"


def _measured(graph: Graph, question: str) -> str:
    """Add a small profile of clusters that differ in the `medium` or in the `hand` of Paint Demo Pictures."""
    model = graph.add("CBLoadDemoModel")
    clusters: dict[str, Link] = {}
    for name in graph.choices("CBDemoPictures", question)[:5]:
        scenes = demo_scenes.CLUSTER_SCENES
        painted = {"hand": "flat", "medium": "plain", "seed": 7, "scenes": "\n".join(scenes)} | {question: name}
        named = {"name": name, "subjects": ", ".join(scene.split()[1] for scene in scenes)}
        pictures = [graph.add("CBDemoPictures", **painted), 0]
        clusters = {"previous": [graph.add("CBImageClusters", images=pictures, **named, **clusters), 0]}
    text = graph.add("CLIPTextEncode", clip=[model, 1], text="a picture")
    return graph.add(
        "CBProfileSensitivity", model=[model, 0], clusters=clusters["previous"], vae=[model, 2], positive=[text, 0],
        measures={"hand": "geometry", "medium": "style"}[question], **LOOK,
    )  # fmt: skip


@figure("CBRecordSensitivity")
def recorded(studio: Studio, graph: Graph) -> Image.Image:
    _, decoded = _recorded(graph)
    batches = studio.shoot(graph, *([decode, 0] for decode in decoded.values()))
    rows = [(f"    {style}", batch) for style, batch in zip(decoded, batches, strict=True)]
    return sheet(rows, [*RECORDED_SUBJECTS], title=f"output/sensitivity_recordings/{SERIES}", tile=110)


@figure("CBProfileFromRecording")
def profiled(studio: Studio, graph: Graph) -> Image.Image:
    sampled, _ = _recorded(graph)
    profile = graph.add("CBProfileFromRecording", series=SERIES, after=sampled)
    ((heat_map,),) = studio.shoot(graph, [profile, 1])
    return stacked([heat_map], MAP_WIDTH)


SERIES = "my styles"  # not the workflow's, whose runs have other noise levels
RECORDED_STYLES = (*demo_scenes.RECORDED_STYLES, "blob")
RECORDED_SUBJECTS = demo_scenes.RECORDED_SUBJECTS


def _recorded(graph: Graph) -> tuple[Link, dict[str, str]]:
    """Add runs that record three subjects in four styles; the last latent of a chain, and each style's pictures."""
    model = graph.add("CBLoadDemoModel")
    empty = graph.add("CLIPTextEncode", clip=[model, 1], text="")
    canvas = graph.add("EmptyLatentImage", width=demo_scenes.SIDE, height=demo_scenes.SIDE, batch_size=3)
    latent, decoded = [canvas, 0], {}
    for style in RECORDED_STYLES:
        prompts = "\n".join(f"a {subject} by the sea, {style} drawing" for subject in RECORDED_SUBJECTS)
        positive = graph.add("CBPromptBatch", clip=[model, 1], prompts=prompts)
        subjects = ", ".join(RECORDED_SUBJECTS)
        recording = graph.add(
            "CBRecordSensitivity", model=[model, 0], series=SERIES, label=style, subject=subjects, noise_levels=6
        )
        latent = [
            graph.add(
                "KSampler", model=[recording, 0], positive=[positive, 0], negative=[empty, 0], latent_image=latent,
                seed=demo_scenes.SEED, **demo_scenes.SAMPLING,
            ),
            0,
        ]  # fmt: skip
        decoded[style] = graph.add("VAEDecode", samples=latent, vae=[model, 2])
    return latent, decoded


@figure("CBCompareProfiles")
def compared(studio: Studio, graph: Graph) -> Image.Image:
    names = ("demo.style.safetensors", "demo.geometry.safetensors")
    one, other = (graph.add("CBLoadSensitivityProfile", profile=name) for name in names)
    both = graph.add("CBCompareProfiles", profile_1=[one, 0], profile_2=[other, 0])
    ((chart,),) = studio.shoot(graph, [both, 0])
    return stacked([chart], MAP_WIDTH)


@figure("CBMeasureLayers", of="style_balanced_demo")
def acting(studio: Studio, graph: Graph) -> Image.Image:
    sampler = graph.first("KSampler", without="CBStyleInjection")
    given = {name: graph.input(sampler, name) for name in ("model", "positive")}
    reference = graph.first("CBStyleReference")
    found = graph.add("CBMeasureLayers", reference=[reference, 0], latent=[sampler, 0], **given)
    ((chart,),) = studio.shoot(graph, [found, 1])
    return stacked([chart], MAP_WIDTH)


# Gates


@figure("CBSelectLayers")
def selected(studio: Studio, graph: Graph) -> Image.Image:
    profile = _published()
    return _maps({f"style amount {amount:g}": RankedGate(profile, amount) for amount in (0.2, 0.43, 0.7)}, profile)


@figure("CBLayerGate")
def written(studio: Studio, graph: Graph) -> Image.Image:
    texts = ("o1.4-9, o2", "all, -m", "o1, o2:0.5")
    return _maps({text: WrittenGate(parse(text)) for text in texts}, _published())


@figure("CBCombineGates")
def combined(studio: Studio, graph: Graph) -> Image.Image:
    profile = _published()
    ranked, by_hand = RankedGate(profile, 0.43), WrittenGate(parse("o1, o3-5"))
    both = {name: CombinedGate(ranked, by_hand, name) for name in ("and", "or", "minus")}
    gates = {"gate": ranked, "other": by_hand, **both, "scale 0.5": ScaledGate(ranked, 0.5)}
    return _maps(gates, profile)


def _published() -> SensitivityProfile:
    return load(ROOT / "sensitivity_profiles" / PUBLISHED)


def _maps(gates: Mapping[str, LayerGate], profile: SensitivityProfile) -> Image.Image:
    """What gates open: layers down, the schedule along; half-dark where only queries or only keys are open."""
    sigmas = spread_sigmas(float(profile.sigmas[0]), float(profile.sigmas[-1]))
    panels = {name: sampled(gate, profile.layers, sigmas)[:, :2].mean(1).T.numpy() for name, gate in gates.items()}
    return grids(panels, _block_names(profile.layers), [(6, "noise"), (len(sigmas) - 8, "picture")])


def _block_names(layers: Sequence[LayerId]) -> list[tuple[float, str]]:
    """Where the middle of a block is, and its name, for the outermost blocks and those with room for a name."""
    grouped = groupby(layers, lambda layer: layer[:2])
    blocks = [(f"{block[0]}{number}", len(list(some))) for (block, number), some in grouped]
    ends = accumulate(size for _, size in blocks)
    middles = [(end - (size + 1) / 2, name, size) for end, (name, size) in zip(ends, blocks, strict=True)]
    return [(at, name) for at, name, size in middles if size > 4 or name in (blocks[0][0], blocks[-1][0])]


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


# Structure


@figure("CBGateControlNet")
def gated(studio: Studio, graph: Graph) -> Image.Image:
    geometry = load(studio.profiles / _geometry(studio))
    gates = {
        "structure 1": PaperSchedule(1.0),
        "paper, structure 0.15": PaperSchedule(0.15),
        "ranked, structure 0.5": RankedSlots(geometry, 0.5),
        "1x2 0.5x2 0x2 m1": parse_weights("1x2 0.5x2 0x2 m1"),
    }
    panels = {name: _slots(gate, geometry) for name, gate in gates.items()}
    return grids(panels, _slot_names(), [(4, "noise"), (STEPS - 6, "picture")], columns=2)


def _slots(gate: StructureGate, profile: SensitivityProfile) -> np.ndarray:
    """A gate's weights [slots + 1, STEPS] over the schedule, the middle residual last."""
    layout = slot_layout(SLOTS, profile.layers)
    sigmas = [standard_sigma((step + 0.5) / STEPS) for step in range(STEPS)]
    weights = [gate.weights(sigma, layout, standard_sigma) for sigma in sigmas]
    return np.array([[*each.skips, each.middle] for each in weights]).T


def _slot_names() -> list[tuple[int, str]]:
    return [(0, "finest"), (SLOTS - 1, "deepest"), (SLOTS, "middle")]


@figure("CBProfileControlSlots", of="style_balanced_demo")
def ablated(studio: Studio, graph: Graph) -> Image.Image:
    model, control = graph.first("CBLoadDemoModel"), graph.add("CBLoadDemoControlNet")
    scenes = graph.add("CBDemoPictures", **demo_scenes.EDGES)
    prompts = graph.add("CBPromptBatch", clip=[model, 1], prompts=[scenes, 1])
    applied = graph.add(
        "ControlNetApplyAdvanced", positive=[prompts, 0], negative=[prompts, 0], control_net=[control, 0],
        image=[scenes, 2],
    )  # fmt: skip
    latent = graph.add("VAEEncode", pixels=[scenes, 0], vae=[model, 2])
    node = graph.add("CBProfileControlSlots", model=[model, 0], positive=[applied, 0], latent=[latent, 0])
    rows = [[float(part) for part in line.split()] for line in studio.report(graph, node).splitlines()[2:]]
    change = np.array(rows)[:, 1:].T / 100
    levels = [(place, f"{row[0]:.2g}") for place, row in enumerate(rows)]
    panel = {"change without one residual": change}
    return grids(panel, _slot_names(), levels, "noise level (sigma)", size=(4.6, 3.0), numbers=True)


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


# LoRA


@figure("CBGateLoRA")
def shared_layers(studio: Studio, graph: Graph) -> Image.Image:
    profile = _published()
    style = RankedGate(profile, 0.43, Static())
    others = CombinedGate(WrittenGate(parse("all")), style, "minus")
    return _maps({"style LoRA": style, "subject LoRA": others}, profile)


# Other packs


@figure("CBGateAdapter")
def adapters_at_layers(studio: Studio, graph: Graph) -> Image.Image:
    profile = _published()
    style = RankedGate(profile, 0.43)
    others = CombinedGate(WrittenGate(parse("all")), style, "minus")
    return _maps({"style adapter": style, "other adapter": others}, profile)


@figure("CBGateToText")
def texts_of_gates(studio: Studio, graph: Graph) -> Image.Image:
    """IPAdapter's index by three amounts."""
    profile, amounts = _published(), (0.2, 0.43, 0.7)
    by_amount = []
    for amount in amounts:
        mean = mean_weights(RankedGate(profile, amount), profile.layers, standard_sigma).amax(0).tolist()
        by_amount.append(block_weights(dict(zip(profile.layers, mean, strict=True))))
    names = [(row, f"{row}  {LayerId(*block)}".partition(".")[0]) for row, block in enumerate(by_amount[0])]
    panel = np.array([list(weights.values()) for weights in by_amount]).T
    below = [(place, f"{amount:g}") for place, amount in enumerate(amounts)]
    return grids({"weight of each index": panel}, names, below, "style amount", size=(4.6, 3.6), numbers=True)


# Prompts


@figure("CBLayerPrompt")
def prompted_layers(studio: Studio, graph: Graph) -> Image.Image:
    profile = _published()
    return _maps({f"style amount {part:g}": RankedGate(profile, part) for part in (0.15, 0.3, 0.5)}, profile)


# Metadata and guidance


@figure("CBMicroConditioning")
def scheduled(studio: Studio, graph: Graph) -> Image.Image:
    powers = (0.0, 1.0, 3.0, 6.0)
    weights = [[power_cosine((step + 0.5) / STEPS, power) for step in range(STEPS)] for power in powers]
    names = [(row, f"curve {power:g}") for row, power in enumerate(powers)]
    ends = [(4, "noise"), (STEPS - 6, "picture")]
    return grids({"how far the new value has entered": np.array(weights)}, names, ends, size=(4.6, 2.0))


@figure("CBResolutionShift")
def shifted(studio: Studio, graph: Graph) -> Image.Image:
    """Steps of one schedule as cells: dark where the noise is high."""
    ratios = {"half the sides": 0.5, "trained size": 1.0, "twice the sides": 2.0}
    sigmas = [standard_sigma(0.001 + 0.998 * step / 23) for step in range(24)]
    plain = torch.tensor([*sigmas, 0.0], dtype=torch.float64)
    rows = [shifted_sigmas(plain, ratio, flow=False)[:-1].log() for ratio in ratios.values()]
    levels = (torch.stack(rows) - rows[0].min()) / (rows[0].max() - rows[0].min())
    ends = [(2, "first step"), (21, "last step")]
    return grids({"noise level of each step": levels.numpy()}, list(enumerate(ratios)), ends, size=(4.6, 1.8))


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
