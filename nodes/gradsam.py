"""Nodes that look where a model draws a subject, and keep it while the rest comes from a reference."""

from __future__ import annotations

from typing import Any

import torch
from comfy import utils
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..engine.attribution import METHODS
from ..engine.grammar import parse
from ..engine.masks import RULES, MaskSettings, heat, mask_of, overlay
from ..engine.windows import parse_windows
from ..hooks.attribution import DEFAULT, WEIGHTINGS, AttributionSettings
from ..hooks.attribution_probe import Look, find_subject, percents_in
from ..hooks.blend import MODES, X0, Attribution, Blend, Measured, blend_reference
from ..hooks.reference import Conditioning
from ..hooks.subject import Subject as SubjectTokens
from .shown import summary, timed
from .subject import CATEGORY, Subject
from .widgets import advanced

Attributed = io.Custom("ATTRIBUTION")
PIXELS = 8  # per cell of the latent, as in every UNet's VAE
PAPER_WINDOWS = "0.22-0.48, 0.48-0.68, 0.68-0.9"
"""The three moments of arXiv 2408.16232 (steps 5, 18 and 28 of 45), each held until the next."""

CLEAN, NOISY = "clean picture", "noisy latent"


class CBGradSAMMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CBGradSAMMask",
            display_name="Grad-SAM Mask",
            category=CATEGORY,
            description="Finds the subject in a picture with the model's own attention. No segmentation model is "
            "needed.",
            inputs=[
                io.Model.Input("model", tooltip="A UNet model: SD1.5, SDXL or a finetune of either."),
                io.Latent.Input("latent", tooltip="The picture, encoded with the model's VAE; a batch gives a batch."),
                Subject.Input("subject", tooltip="From Subject of the Prompt; the prompt should describe the picture."),
                io.String.Input(
                    "noise_levels",
                    default="0.5, 0.7",
                    tooltip="Where in the schedule the model looks, from 0 (pure noise) to 1 (picture); several are "
                    "averaged. 0.5 to 0.8 suits most pictures; earlier finds only the rough place.",
                ),
                io.Combo.Input(
                    "latent_is",
                    options=[CLEAN, NOISY],
                    default=CLEAN,
                    tooltip=f"{CLEAN}: noise is added, up to each level. {NOISY}: the latent comes from a sampler that "
                    "stopped midway; write that one noise level.",
                ),
                *_attribution_inputs(),
                *_mask_inputs(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Draws the noise that a clean picture gets. Another seed moves the border a little.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The picture itself, for the overlay only. Without it the overlay shows the map.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="The subject's conditioning after ControlNet or other nodes, when those should act too. "
                    "Leave it open otherwise.",
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="1 where the subject is, at the picture's size."),
                io.Image.Output(display_name="overlay", tooltip="The subject in colour, the rest dark and grey."),
                io.String.Output(display_name="report", tooltip="Which method ran, and how much the mask covers."),
            ],
        )

    @classmethod
    def validate_inputs(cls, layers: str | None, noise_levels: str | None) -> bool | str:
        return _problem({"layers": layers, "noise_levels": noise_levels})

    @classmethod
    @timed
    def execute(
        cls,
        model: ModelPatcher,
        latent: dict[str, torch.Tensor],
        subject: SubjectTokens,
        noise_levels: str,
        latent_is: str,
        seed: int,
        image: torch.Tensor | None = None,
        positive: Conditioning | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        look = Look(percents_in(noise_levels), latent_is == NOISY, seed)
        if not look.percents:
            raise ValueError("'noise_levels' is empty: write one or more, such as 0.5, 0.7.")
        found = find_subject(model, latent["samples"], subject, look, _attribution(settings), positive)
        maps = _enlarged(found.maps, image)
        scale = maps.shape[-1] / found.maps.shape[-1]
        mask = mask_of(maps, _mask(settings), scale)
        shown = overlay(_pictures(image, maps), mask)
        words = _report(found.method, found.note, mask)
        return io.NodeOutput(mask, shown, words, ui=summary(words))


class CBGradSAMBlend(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CBGradSAMBlend",
            display_name="Grad-SAM Blend",
            category=CATEGORY,
            description="Keeps the subject that the model is drawing and takes everything else from a reference "
            "picture, while any sampler runs.",
            inputs=[
                io.Model.Input("model", tooltip="A UNet model: SD1.5, SDXL or a finetune of either."),
                io.Latent.Input(
                    "reference",
                    tooltip="The picture that gives the surroundings, encoded with the model's VAE. One for all "
                    "pictures, or a batch with one for each.",
                ),
                Subject.Input("subject", tooltip="What is kept, from Subject of the Prompt."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=X0,
                    tooltip="x0: the predicted picture is blended through the whole window; right for every sampler. "
                    "paper: after each window's first step the noisy latent is replaced; freer, best with euler. only "
                    "measure: changes nothing, for the mask alone.",
                ),
                io.String.Input(
                    "windows",
                    default=PAPER_WINDOWS,
                    tooltip="Where in the schedule it acts, from 0 (noise) to 1 (picture): ranges such as 0.2-0.5, or "
                    "single numbers for one step. Each window measures the mask once, when it opens. The default "
                    "opens at the paper's three moments. End at 1 for an exact background, earlier for softer seams.",
                ),
                *_attribution_inputs(),
                *_mask_inputs(dilate=1.0),
                advanced(
                    io.Float.Input(
                        "smoothing",
                        default=0.3,
                        min=0.0,
                        max=0.95,
                        step=0.05,
                        tooltip="Share of the earlier windows' map kept in the next, so that the mask does not jump. "
                        "0 starts afresh in each window.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "size",
                        options=["resize", "must match"],
                        default="resize",
                        tooltip="What happens to a reference of another size than the sampler's latent: resized and "
                        "cropped to its middle, or an error.",
                    )
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="Connect to the sampler. The input model stays as it is."
                ),
                io.Latent.Output(
                    display_name="latent",
                    tooltip="An empty latent of the reference's size: connect to the sampler, with denoise 1.",
                ),
                Attributed.Output(
                    display_name="attribution",
                    tooltip="What the sampler's run measured: connect to Attribution Preview.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, layers: str | None, windows: str | None) -> bool | str:
        return _problem({"layers": layers, "windows": windows})

    @classmethod
    @timed
    def execute(
        cls,
        model: ModelPatcher,
        reference: dict[str, torch.Tensor],
        subject: SubjectTokens,
        mode: str,
        windows: str,
        smoothing: float,
        size: str,
        **settings: Any,
    ) -> io.NodeOutput:
        samples = reference["samples"]
        blend = Blend(
            samples, subject, parse_windows(windows), mode, _attribution(settings), _mask(settings), smoothing,
            size == "resize",
        )  # fmt: skip
        patched, attribution = blend_reference(model, blend)
        count = len(blend.windows)
        words = f"{blend.mode}, {count} window{'' if count == 1 else 's'}, {blend.attribution.method}."
        return io.NodeOutput(patched, {"samples": torch.zeros_like(samples)}, attribution, ui=summary(words))


class CBAttributionPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CBAttributionPreview",
            display_name="Attribution Preview",
            category=CATEGORY,
            description="Shows what Grad-SAM Blend found while the sampler ran: for every window the map, the mask "
            "and the mask over the picture.",
            inputs=[
                Attributed.Input("attribution", tooltip="From Grad-SAM Blend."),
                io.Latent.Input(
                    "after",
                    tooltip="The sampler's latent. It makes this node wait for the run whose findings it shows.",
                ),
                io.Image.Input(
                    "image", optional=True, tooltip="The decoded result, for the overlay. Without it the map is shown."
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="mask", tooltip="The last window's mask, one for each picture, 1 on the subject."
                ),
                io.Image.Output(
                    display_name="windows", tooltip="One picture for each window and image: map, mask, overlay."
                ),
                io.String.Output(display_name="report", tooltip="Noise level, method and coverage of every window."),
            ],
        )

    @classmethod
    @timed
    def execute(
        cls, attribution: Attribution, after: dict[str, torch.Tensor], image: torch.Tensor | None = None
    ) -> io.NodeOutput:
        if not attribution.windows:
            raise ValueError(
                "'attribution' is empty: connect 'after' to the sampler that uses Grad-SAM Blend's model, and write "
                "'windows' that the run passes through."
            )
        pictures = torch.cat([_panels(each, image) for each in attribution.windows])
        mask = _pixels(attribution.windows[-1].mask[None], image, "nearest-exact")[0]
        lines = [
            f"{each.window}, sigma {each.sigma:.2f}: {_report(each.method, each.note, each.mask)}"
            for each in attribution.windows
        ]
        text = "\n".join(lines)
        shown = ui.PreviewImage(pictures, cls=cls).as_dict() | ui.PreviewText(text).as_dict() | summary(lines[-1])
        return io.NodeOutput(mask, pictures, text, ui=shown)


def _attribution_inputs() -> list[io.Input]:
    """How the subject is looked for."""
    return [
        io.Combo.Input(
            "method",
            options=list(METHODS),
            default="value_norm",
            tooltip="value_norm: attention, weighted by how much it says; the best masks on the demo model. attention: "
            "the same unweighted. jvp: how far the prediction moves when the subject's attention is turned up; one "
            "more pass for each phrase, wants fp32 or fp16. grad_sam: attention times its gradient, the paper's rule; "
            "more time and memory.",
        ),
        io.String.Input(
            "layers",
            default=DEFAULT,
            tooltip="Cross-attention layers to ask. auto takes the UNet's finest ones. By hand: o9-11 for SD1.5, "
            "o3-5 for SDXL; -m0 takes layers away, o9:0.5 counts a layer half.",
        ),
        advanced(
            io.Combo.Input(
                "weighting",
                options=list(WEIGHTINGS),
                default=WEIGHTINGS[0],
                tooltip="How layers and heads count in the mean (not in jvp, which weighs by itself). by layer and by "
                "head measure each one's effect with one more pass each: slower.",
            )
        ),
        advanced(
            io.Int.Input(
                "propagation",
                default=2,
                min=0,
                max=4,
                tooltip="Spreads the map along fine self-attention, so that it follows borders. 2 suits most; 0 leaves "
                "the map as found.",
            )
        ),
        advanced(
            io.Int.Input(
                "probes",
                default=2,
                min=1,
                max=64,
                tooltip="Backward passes of grad_sam. More give a calmer map and cost as much each; 2 to 4 do.",
            )
        ),
    ]


def _mask_inputs(dilate: float = 0.0) -> list[io.Input]:
    """How the map becomes a mask; lengths in cells of the latent, 8 pixels each."""
    return [
        io.Float.Input(
            "blur",
            default=0.7,
            min=0.0,
            max=16.0,
            step=0.1,
            tooltip="Smooths the map before the threshold; in cells of the latent (8 pixels). Raise it when the mask "
            "is ragged.",
        ),
        io.Combo.Input(
            "threshold",
            options=list(RULES),
            default="mean + c std",
            tooltip="What counts as subject. mean + c std: the paper's rule. otsu: the best split into two groups, "
            "no number needed. top share: a fixed share of the picture.",
        ),
        io.Float.Input(
            "amount",
            default=0.8,
            min=-3.0,
            max=5.0,
            step=0.05,
            tooltip="c of 'mean + c std' (0.5 in the paper; higher is tighter), or the share of 'top share' "
            "from 0 to 1. Not used by otsu.",
        ),
        io.Float.Input(
            "dilate",
            default=dilate,
            min=0.0,
            max=32.0,
            step=0.5,
            tooltip="Grows the mask by so many cells (8 pixels each). 0 for the tightest mask; 1 keeps a blend from "
            "cutting into the subject.",
        ),
        io.Float.Input(
            "feather",
            default=0.0,
            min=0.0,
            max=32.0,
            step=0.5,
            tooltip="Fades the mask out over so many cells around the subject. 1 or 2 hides seams.",
        ),
        io.Boolean.Input(
            "invert",
            default=False,
            tooltip="Swap inside and outside: a blend then keeps the surroundings and takes the subject's place from "
            "the reference.",
        ),
    ]


def _attribution(settings: dict[str, Any]) -> AttributionSettings:
    names = ("method", "layers", "weighting", "propagation", "probes")
    return AttributionSettings(*(settings[name] for name in names))


def _mask(settings: dict[str, Any]) -> MaskSettings:
    names = ("blur", "threshold", "amount", "dilate", "feather", "invert")
    return MaskSettings(*(settings[name] for name in names))


def _problem(texts: dict[str, str | None]) -> bool | str:
    """True, or what is wrong with the first text that cannot be read; linked ones are None and checked later."""
    readers = {"layers": _read_layers, "windows": parse_windows, "noise_levels": percents_in}
    for name, text in texts.items():
        try:
            if text is not None:
                readers[name](text)
        except ValueError as problem:
            return f"'{name}': {problem}"
    return True


def _read_layers(text: str) -> None:
    if text.strip() not in ("", DEFAULT):
        parse(text)


def _report(method: str, note: str, mask: torch.Tensor) -> str:
    coverage = ", ".join(f"{float(share):.0%}" for share in mask.mean((-2, -1)))
    empty = " Nothing was found: lower 'amount', or choose otsu." if not mask.any() else ""
    return f"{method}, {coverage} of the picture.{empty}{' ' + note if note else ''}"


def _enlarged(maps: torch.Tensor, image: torch.Tensor | None) -> torch.Tensor:
    """Maps [S, B, h, w] at the picture's size."""
    return _pixels(maps, image, "bicubic")


def _pixels(maps: torch.Tensor, image: torch.Tensor | None, how: str) -> torch.Tensor:
    """[N, B, h, w] at an image's size, or 8 pixels to a cell."""
    size = [PIXELS * side for side in maps.shape[-2:]] if image is None else list(image.shape[1:3])
    return torch.nn.functional.interpolate(maps.float(), size=size, mode=how)


def _pictures(image: torch.Tensor | None, maps: torch.Tensor) -> torch.Tensor:
    """[B, H, W, 3] to lay masks over: the image, or the strongest subject's map."""
    if image is None:
        return heat(maps.amax(0))
    return utils.repeat_to_batch_size(image[..., :3].to(maps), maps.shape[1])


def _panels(window: Measured, image: torch.Tensor | None) -> torch.Tensor:
    """Map, mask and overlay of one window side by side [B, H, 3 * W, 3]."""
    maps = _enlarged(window.maps, image)
    mask = _pixels(window.mask[None], image, "nearest-exact")[0]
    drawn = heat(maps.amax(0)), mask[..., None].expand(-1, -1, -1, 3), overlay(_pictures(image, maps), mask)
    return torch.cat(drawn, 2)


NODES = [CBGradSAMMask, CBGradSAMBlend, CBAttributionPreview]
