"""Figures of profiles: what is measured, what is kept of it, and what can be made of two."""

from __future__ import annotations

from dataclasses import replace

from PIL import Image

from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.engine.profile_file import load
from conditional_balance.render import heatmap

from .. import demo_scenes
from ..comfyui import ROOT
from ..contact import sheet, stacked
from ..graph import Graph, Link
from ..studio import Studio, figure

PUBLISHED = "sdxl-base-1.0.style.published.safetensors"
MAP_WIDTH, WIDE_MAP = 760, 1100  # of the demo model, and of one with 70 layers
LOOK = {"noise_levels": 6, "size": demo_scenes.SIDE, "features": "q"}  # of the profiles that only figures show


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
    whole = published()  # 50 noise levels are three screens high: a fifth of them tell the same
    few = replace(whole, sigmas=whole.sigmas[::5], scores=whole.scores[:, ::5])
    return stacked([heatmap.draw(few, "SDXL base 1.0: sensitivity to style")], WIDE_MAP)


@figure("CBCombineProfiles")
def contrasted(studio: Studio, graph: Graph) -> Image.Image:
    style, geometry = _measured(graph, "medium"), graph.add("CBLoadSensitivityProfile", profile=geometry_of(studio))
    operation = "contrast (first minus second)"
    mixed = graph.add("CBCombineProfiles", operation=operation, profile_1=[style, 0], profile_2=[geometry, 0])
    maps = studio.shoot(graph, [style, 1], [geometry, 1], [mixed, 1])
    return stacked([picture for (picture,) in maps], MAP_WIDTH)


def geometry_of(studio: Studio) -> str:
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


def published() -> SensitivityProfile:
    return load(ROOT / "sensitivity_profiles" / PUBLISHED)
