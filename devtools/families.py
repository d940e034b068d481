"""Graphs of "Style from a picture": of the demo model, of SDXL, and of the families of diffusion transformers.

Loaders, shifts, samplers and sizes of a family are those of ComfyUI's own templates for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from devtools.sheet import Sheet, Source

SEED = 10
SHOWS, PROMPT = "a landscape, watercolor painting", "a red fox in the snow, watercolor painting"
STEPS = (
    "2. Say in **what it shows** what the picture shows and in which style.\n3. Write your prompt, and end it with the"
    " same style words.\n4. Press **Run**, and drag **style amount**."
)
UNTRIED = (
    "Experimental: tried on small random networks of this kind, not yet on the trained one. The node says beneath"
    " itself which layers it took."
)

FLUX, FLUX_CLIP, FLUX_T5, FLUX_VAE = (f"{name}.safetensors" for name in ("flux1-dev", "clip_l", "t5xxl_fp16", "ae"))
QWEN, QWEN_CLIP, QWEN_VAE = (
    f"{name}.safetensors" for name in ("qwen_image_fp8_e4m3fn", "qwen_2.5_vl_7b_fp8_scaled", "qwen_image_vae")
)
Z_IMAGE, Z_IMAGE_CLIP = "z_image_turbo_bf16.safetensors", "qwen_3_4b.safetensors"
SD35 = "sd3.5_large_fp8_scaled.safetensors"
SD35_AMOUNT = 0.74
"""28 of 38 layers, as the method's own code takes of SD3.5 Large."""

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


def style_picture_flux(sheet: Sheet) -> None:
    """Flux.1 dev, in its separate files."""
    more = "A checkpoint with all in one: *Load Checkpoint* in place of the three loaders. Schnell: 4 steps."
    _told(sheet, "Flux", "the model, its two text encoders and its VAE", more)
    model = sheet.add("UNETLoader", unet_name=FLUX)
    clip = sheet.add("DualCLIPLoader", clip_name1=FLUX_CLIP, clip_name2=FLUX_T5, type="flux")
    vae = sheet.add("VAELoader", vae_name=FLUX_VAE)
    euler = _sampling(steps=20, cfg=1.0, sampler_name="euler", scheduler="simple")
    flux = Family("EmptySD3LatentImage", 1024, euler, negative=False, guidance=3.5)
    _painted(sheet, Loaded((model, 0), (clip, 0), (vae, 0)), flux)


def style_picture_sd35(sheet: Sheet) -> None:
    """SD3.5 Large, whose layers the method's authors have ranked."""
    more = (
        "SD3.5 Large has a published ranking, meant for 28 of its 38 layers: a style amount of 0.74. Medium and SD3 get"
        " a guess: begin at 0.43."
    )
    _told(sheet, "SD3.5", "an SD3.5 Large checkpoint", more)
    checkpoint = sheet.add("CheckpointLoaderSimple", ckpt_name=SD35)
    uniform = _sampling(steps=20, cfg=4.0, sampler_name="euler", scheduler="sgm_uniform")
    sd35 = Family("EmptySD3LatentImage", 1024, uniform, amount=SD35_AMOUNT)
    _painted(sheet, Loaded.of(checkpoint), sd35)


def style_picture_qwen(sheet: Sheet) -> None:
    """Qwen-Image."""
    _told(sheet, "Qwen-Image", "the model, its text encoder and its VAE", "With a lightning LoRA: 8 steps, CFG 1.")
    model = sheet.add("UNETLoader", unet_name=QWEN)
    shifted = sheet.add("ModelSamplingAuraFlow", model=(model, 0), shift=3.1)
    clip = sheet.add("CLIPLoader", clip_name=QWEN_CLIP, type="qwen_image")
    vae = sheet.add("VAELoader", vae_name=QWEN_VAE)
    euler = _sampling(steps=20, cfg=4.0, sampler_name="euler", scheduler="simple")
    _painted(sheet, Loaded((shifted, 0), (clip, 0), (vae, 0)), Family("EmptySD3LatentImage", 1328, euler))


def style_picture_zimage(sheet: Sheet) -> None:
    """Z-Image Turbo."""
    more = "Turbo paints in 8 steps without a negative prompt. Z-Image itself: 25 steps, CFG 4."
    _told(sheet, "Z-Image", "the model, its text encoder and its VAE", more)
    model = sheet.add("UNETLoader", unet_name=Z_IMAGE)
    shifted = sheet.add("ModelSamplingAuraFlow", model=(model, 0), shift=3.0)
    clip = sheet.add("CLIPLoader", clip_name=Z_IMAGE_CLIP, type="lumina2")
    vae = sheet.add("VAELoader", vae_name=FLUX_VAE)
    turbo = _sampling(steps=8, cfg=1.0, sampler_name="res_multistep", scheduler="simple")
    family = Family("EmptySD3LatentImage", 1024, turbo, negative=False)
    _painted(sheet, Loaded((shifted, 0), (clip, 0), (vae, 0)), family)


WORKFLOWS: dict[str, Callable[[Sheet], None]] = {
    "style_picture_flux": style_picture_flux,
    "style_picture_sd35": style_picture_sd35,
    "style_picture_qwen": style_picture_qwen,
    "style_picture_zimage": style_picture_zimage,
}


def _told(sheet: Sheet, family: str, files: str, more: str) -> None:
    sheet.next_column("1  Model and picture")
    first = f"1. Choose {files}, and load a picture."
    sheet.note(f"## Style from a picture ({family})\n\n{first}\n{STEPS}\n\n{more}\n\n{UNTRIED}", 400)


def _sampling(**values: Any) -> dict[str, Any]:
    return {"seed": SEED, **values}


def _painted(sheet: Sheet, loaded: Loaded, family: Family) -> None:
    picture = sheet.add("LoadImage", "Whose style", tall=360, image="example.png")
    style_of_picture(sheet, loaded, (picture, 0), (SHOWS, PROMPT, ""), family)


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
    positive = sheet.add("CLIPTextEncode", "Prompt", clip=loaded.clip, text=prompt)
    if family.negative:
        negative = sheet.add("CLIPTextEncode", "Negative", clip=loaded.clip, text=unwanted)
    else:
        negative = sheet.add("ConditioningZeroOut", conditioning=(positive, 0))
    if family.guidance is not None:
        positive = sheet.add("FluxGuidance", conditioning=(positive, 0), guidance=family.guidance)
    canvas = sheet.add(family.canvas, width=family.side, height=family.side, batch_size=1)
    given = {"model": (styled, 0), "positive": (positive, 0), "negative": (negative, 0), "latent_image": (canvas, 0)}
    result(sheet, loaded, given | family.sampling, f"{prefix}style_from_picture")


def result(sheet: Sheet, loaded: Loaded, sampling: dict[str, Any], name: str) -> None:
    """The last column: the picture above the sampler, so that a small screen shows it."""
    sheet.next_column("3  Result", 480)
    shown = sheet.add("SaveImage", "Result", tall=480, filename_prefix=name)
    sampled = sheet.add("KSampler", **sampling)
    decoded = sheet.add("VAEDecode", samples=(sampled, 0), vae=loaded.vae)
    sheet.join((decoded, 0), shown, "images")
