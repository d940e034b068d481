"""Graphs for the families of diffusion transformers: "Style from a picture", whose parts the demo model's and SDXL's
share, and "What does each layer do".

Loaders, shifts, samplers and sizes of a family are those of ComfyUI's own templates for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from devtools.sheet import Sheet, Source

SEED = 10
SHOWS, PROMPT = "a landscape, watercolor painting", "a red fox in the snow, watercolor painting"
STEPS = (
    "2. In **what it shows**, describe the picture and its style.\n3. Write your prompt, and end it with the same style"
    " words.\n4. Press **Run**, and drag **style amount**."
)
UNTRIED = (
    "Experimental: tried on small random networks of this kind, not yet on the trained one. A line under the node says"
    " which layers it used."
)

FLUX, FLUX_CLIP, FLUX_T5, FLUX_VAE = (f"{name}.safetensors" for name in ("flux1-dev", "clip_l", "t5xxl_fp16", "ae"))
QWEN, QWEN_CLIP, QWEN_VAE = (
    f"{name}.safetensors" for name in ("qwen_image_fp8_e4m3fn", "qwen_2.5_vl_7b_fp8_scaled", "qwen_image_vae")
)
Z_IMAGE, Z_IMAGE_CLIP = "z_image_turbo_bf16.safetensors", "qwen_3_4b.safetensors"
SD35 = "sd3.5_large_fp8_scaled.safetensors"
SD35_AMOUNT = 0.74
"""28 of 38 layers, as the method's own code takes of SD3.5 Large."""

FEW = 0.2  # the share of layers that a painting by measured layers takes

MODELS = {
    FLUX: ("Comfy-Org/flux1-dev", "", "diffusion_models"),
    FLUX_CLIP: ("comfyanonymous/flux_text_encoders", "", "text_encoders"),
    FLUX_T5: ("comfyanonymous/flux_text_encoders", "", "text_encoders"),
    FLUX_VAE: ("Comfy-Org/z_image_turbo", "split_files/vae/", "vae"),
    SD35: ("Comfy-Org/stable-diffusion-3.5-fp8", "", "checkpoints"),
    QWEN: ("Comfy-Org/Qwen-Image_ComfyUI", "split_files/diffusion_models/", "diffusion_models"),
    QWEN_CLIP: ("Comfy-Org/Qwen-Image_ComfyUI", "split_files/text_encoders/", "text_encoders"),
    QWEN_VAE: ("Comfy-Org/Qwen-Image_ComfyUI", "split_files/vae/", "vae"),
    Z_IMAGE: ("Comfy-Org/z_image_turbo", "split_files/diffusion_models/", "diffusion_models"),
    Z_IMAGE_CLIP: ("Comfy-Org/z_image_turbo", "split_files/text_encoders/", "text_encoders"),
}
"""Repository, folder inside it, and folder of ComfyUI's models, of every file of a family."""


class Loaded(NamedTuple):
    """What loader nodes give."""

    model: Source
    clip: Source
    vae: Source

    @classmethod
    def of(cls, loader: int) -> Loaded:
        """What one node gives that loads all three."""
        return cls((loader, 0), (loader, 1), (loader, 2))


class Family(NamedTuple):
    """How a family paints: the node of its empty latents and their side, and the sampler's values.

    Without classifier-free guidance a negative prompt does nothing: `negative` False takes core's zeroed one.
    `guidance` is the strength that a model distilled from guidance is told, None for others.
    """

    canvas: str
    side: int
    sampling: dict[str, Any]
    negative: bool = True
    guidance: float | None = None
    amount: float = 0.43


class Kind(NamedTuple):
    """What a template says of its family, and what draws its loaders."""

    name: str
    files: str
    more: str
    load: Callable[[Sheet], tuple[Loaded, Family]]


def _flux(sheet: Sheet) -> tuple[Loaded, Family]:
    """Flux.1 dev, in its separate files."""
    model = sheet.add("UNETLoader", unet_name=FLUX)
    clip = sheet.add("DualCLIPLoader", clip_name1=FLUX_CLIP, clip_name2=FLUX_T5, type="flux")
    vae = sheet.add("VAELoader", vae_name=FLUX_VAE)
    euler = _sampling(steps=20, cfg=1.0, sampler_name="euler", scheduler="simple")
    flux = Family("EmptySD3LatentImage", 1024, euler, negative=False, guidance=3.5)
    return Loaded((model, 0), (clip, 0), (vae, 0)), flux


def _sd35(sheet: Sheet) -> tuple[Loaded, Family]:
    """SD3.5 Large, whose layers the method's authors have ranked."""
    checkpoint = sheet.add("CheckpointLoaderSimple", ckpt_name=SD35)
    uniform = _sampling(steps=20, cfg=4.0, sampler_name="euler", scheduler="sgm_uniform")
    return Loaded.of(checkpoint), Family("EmptySD3LatentImage", 1024, uniform, amount=SD35_AMOUNT)


def _qwen(sheet: Sheet) -> tuple[Loaded, Family]:
    model = sheet.add("UNETLoader", unet_name=QWEN)
    shifted = sheet.add("ModelSamplingAuraFlow", model=(model, 0), shift=3.1)
    clip = sheet.add("CLIPLoader", clip_name=QWEN_CLIP, type="qwen_image")
    vae = sheet.add("VAELoader", vae_name=QWEN_VAE)
    euler = _sampling(steps=20, cfg=4.0, sampler_name="euler", scheduler="simple")
    return Loaded((shifted, 0), (clip, 0), (vae, 0)), Family("EmptySD3LatentImage", 1328, euler)


def _zimage(sheet: Sheet) -> tuple[Loaded, Family]:
    """Z-Image Turbo."""
    model = sheet.add("UNETLoader", unet_name=Z_IMAGE)
    shifted = sheet.add("ModelSamplingAuraFlow", model=(model, 0), shift=3.0)
    clip = sheet.add("CLIPLoader", clip_name=Z_IMAGE_CLIP, type="lumina2")
    vae = sheet.add("VAELoader", vae_name=FLUX_VAE)
    turbo = _sampling(steps=8, cfg=1.0, sampler_name="res_multistep", scheduler="simple")
    return Loaded((shifted, 0), (clip, 0), (vae, 0)), Family("EmptySD3LatentImage", 1024, turbo, negative=False)


SEPARATE = "the model, its text encoder and its VAE"
KINDS = {
    "flux": Kind(
        "Flux",
        "the model, its two text encoders and its VAE",
        "A checkpoint with all in one: *Load Checkpoint* in place of the three loaders. Schnell: 4 steps.",
        _flux,
    ),
    "sd35": Kind(
        "SD3.5",
        "an SD3.5 Large checkpoint",
        "SD3.5 Large has a published ranking, meant for 28 of its 38 layers: a style amount of 0.74. Medium and SD3 get"
        " a guess: begin at 0.43.",
        _sd35,
    ),
    "qwen": Kind("Qwen-Image", SEPARATE, "With a lightning LoRA: 8 steps, CFG 1.", _qwen),
    "zimage": Kind(
        "Z-Image",
        SEPARATE,
        "Turbo paints in 8 steps without a negative prompt. Z-Image itself: 25 steps, CFG 4.",
        _zimage,
    ),
}


def style_picture(kind: Kind, sheet: Sheet) -> None:
    sheet.next_column("1  Model and picture")
    first = f"1. Choose {kind.files}, and load a picture."
    sheet.note(f"## Style from a picture ({kind.name})\n\n{first}\n{STEPS}\n\n{kind.more}\n\n{UNTRIED}", 400)
    loaded, family = kind.load(sheet)
    picture = sheet.add("LoadImage", "Whose style", tall=360, image="example.png")
    style_of_picture(sheet, loaded, (picture, 0), (SHOWS, PROMPT, ""), family)


def layers_do(kind: Kind, sheet: Sheet) -> None:
    """Every layer opened by itself to a picture's style, and a painting through the layers that bring the most."""
    sheet.next_column("1  Model and picture")
    sheet.note(
        f"## What does each layer do? ({kind.name})\n\n1. Choose {kind.files}, and load a picture whose style your"
        " prompt would not give by itself.\n2. In **What the picture shows**, describe the picture and its style, and"
        " write your prompt.\n3. Press **Run**.\n\nA picture is painted without the style. Then **Measure Layers**"
        " applies the style in one attention layer at a time, with one model call for each layer at two noise levels."
        " The map is bright where a layer brings the style by itself. The result is painted with the style in the"
        " layers that bring the most. The ranking is saved, and *Style from Picture* finds it by itself with this"
        " checkpoint.\n\nExperimental: tried on small random networks of this kind, and on one small trained"
        " transformer in Flux form, where it found the layers that a ranking by pictures missed.",
        520,
    )
    loaded, family = kind.load(sheet)
    picture = sheet.add("LoadImage", "Whose style", tall=360, image="example.png")
    sheet.next_column("2  Style")
    about = sheet.add("CLIPTextEncode", "What the picture shows", clip=loaded.clip, text=SHOWS)
    square = {"upscale_method": "lanczos", "width": family.side, "height": family.side, "crop": "center"}
    fitted = sheet.add("ImageScale", image=(picture, 0), **square)
    latent = sheet.add("VAEEncode", pixels=(fitted, 0), vae=loaded.vae)
    reference = sheet.add("CBStyleReference", latent=(latent, 0), prompt=(about, 0))
    sheet.next_column("3  Without the style")
    positive, negative = _prompts(sheet, loaded, (PROMPT, ""), family)
    canvas = sheet.add(family.canvas, width=family.side, height=family.side, batch_size=1)
    given = {"positive": positive, "negative": negative, "latent_image": (canvas, 0), **family.sampling}
    plain = sheet.add("KSampler", model=loaded.model, **given)
    sheet.next_column("4  What each layer does", 480)
    measured = sheet.add(
        "CBMeasureLayers", model=loaded.model, reference=(reference, 0), latent=(plain, 0), positive=positive,
        noise_levels=2,
    )  # fmt: skip
    sheet.add("SaveImage", "Map", tall=360, images=(measured, 1), filename_prefix="what_layers_do_map")
    sheet.add("CBSaveSensitivityProfile", profile=(measured, 0), name=f"my-{kind.name.lower()}.style")
    gate = sheet.add("CBSelectLayers", profile=(measured, 0), **{"lambda": FEW})
    styled = sheet.add("CBStyleInjection", model=loaded.model, gate=(gate, 0), reference=(reference, 0))
    result(sheet, loaded, {"model": (styled, 0), **given}, "what_layers_do", "5  Result")


WORKFLOWS: dict[str, Callable[[Sheet], None]] = {
    f"{job}_{key}": functools.partial(draw, kind)
    for job, draw in {"style_picture": style_picture, "layers_do": layers_do}.items()
    for key, kind in KINDS.items()
}


def _sampling(**values: Any) -> dict[str, Any]:
    return {"seed": SEED, **values}


def style_of_picture(
    sheet: Sheet, loaded: Loaded, picture: Source, texts: tuple[str, str, str], family: Family, prefix: str = ""
) -> None:
    """From a model and a picture to a painting; `texts` are what the picture shows, the prompt and what is unwanted."""
    shows, prompt, unwanted = texts
    sheet.next_column("2  Style and prompt", 400)
    styled = sheet.add(
        "CBStyleFromPicture", model=loaded.model, clip=loaded.clip, vae=loaded.vae, image=picture, shows=shows,
        **{"lambda": family.amount},
    )  # fmt: skip
    positive, negative = _prompts(sheet, loaded, (prompt, unwanted), family)
    canvas = sheet.add(family.canvas, width=family.side, height=family.side, batch_size=1)
    given = {"model": (styled, 0), "positive": positive, "negative": negative, "latent_image": (canvas, 0)}
    result(sheet, loaded, given | family.sampling, f"{prefix}style_from_picture")


def _prompts(sheet: Sheet, loaded: Loaded, texts: tuple[str, str], family: Family) -> tuple[Source, Source]:
    """The prompt and what is unwanted, as the family takes them."""
    prompt, unwanted = texts
    positive = sheet.add("CLIPTextEncode", "Prompt", clip=loaded.clip, text=prompt)
    if family.negative:
        negative = sheet.add("CLIPTextEncode", "Negative", clip=loaded.clip, text=unwanted)
    else:
        negative = sheet.add("ConditioningZeroOut", conditioning=(positive, 0))
    if family.guidance is not None:
        positive = sheet.add("FluxGuidance", conditioning=(positive, 0), guidance=family.guidance)
    return (positive, 0), (negative, 0)


def result(sheet: Sheet, loaded: Loaded, sampling: dict[str, Any], name: str, title: str = "3  Result") -> None:
    """The last column: the picture above the sampler, so that a small screen shows it."""
    sheet.next_column(title, 480)
    shown = sheet.add("SaveImage", "Result", tall=480, filename_prefix=name)
    sampled = sheet.add("KSampler", **sampling)
    decoded = sheet.add("VAEDecode", samples=(sampled, 0), vae=loaded.vae)
    sheet.join((decoded, 0), shown, "images")
