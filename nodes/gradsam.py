"""Nodes that look where a model draws a subject, and keep it while the rest comes from a reference."""

from __future__ import annotations

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..engine.masks import mask_of
from ..engine.texts import counted
from ..engine.windows import parse_windows
from ..runtime.attribution.find import ProbeSettings, find_subject, percents_in
from ..runtime.attribution.subject import Subject as SubjectTokens
from ..runtime.inject.blend import MEASURE, MODES, X0, Blend, blend_reference
from ..runtime.inject.reference import Conditioning
from ..runtime.runs.loaded import cell_of
from .findings import enlarged, report, with_mask
from .gradsam_inputs import (
    attribution_inputs,
    attribution_settings,
    mask_inputs,
    mask_settings,
    model_input,
    problem_in,
    subject_input,
)
from .schema import Schema, found_by, patched_model
from .shown import summary, timed
from .subject import CATEGORY
from .widgets import advanced

Attributed = io.Custom("ATTRIBUTION")
PAPER_WINDOWS = "0.22-0.48, 0.48-0.68, 0.68-0.9"
"""The three moments of arXiv 2408.16232 (steps 5, 18 and 28 of 45), each held until the next."""

NO_WINDOWS = "Off: 'windows' is empty, so the model is unchanged."

CLEAN, NOISY = "clean picture", "noisy latent"


class CBGradSAMMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBGradSAMMask",
            display_name="Grad-SAM Mask (segment subject)",
            category=CATEGORY,
            search_aliases=found_by(
                "segment",
                "segmentation",
                "automatic mask",
                "mask from prompt",
                "clipseg",
                "find object",
                "cut out",
                "分割",
                "マスク",
            ),
            description="Finds the subject in a picture with the model's own attention. No segmentation model is "
            "needed.",
            inputs=[
                model_input(),
                io.Latent.Input("latent", tooltip="The picture, encoded with the model's VAE; a batch gives a batch."),
                subject_input("From Subject of the Prompt; the prompt should describe the picture."),
                *_probe_inputs(),
                *attribution_inputs(),
                *mask_inputs(),
                _seed(),
                *_optional_inputs(),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="1 where the subject is, at the picture's size."),
                io.Image.Output(display_name="overlay", tooltip="The subject in colour, the rest dark and grey."),
                io.String.Output(display_name="report", tooltip="Which method ran, and how much the mask covers."),
            ],
        )

    @classmethod
    def validate_inputs(cls, noise_levels: str | None = None) -> bool | str:
        return problem_in("noise_levels", noise_levels) or True  # one name only, as in CBSelectLayers

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
        probe = ProbeSettings(percents_in(noise_levels), latent_is == NOISY, seed)
        if not probe.percents:
            raise ValueError("'noise_levels' is empty: write one or more, such as 0.5, 0.7.")
        found = find_subject(model, latent["samples"], subject, probe, attribution_settings(settings), positive)
        maps = enlarged(found.maps, image, cell_of(model))
        scale = maps.shape[-1] / found.maps.shape[-1]
        mask = mask_of(maps, mask_settings(settings), scale)
        shown = with_mask(image, maps, mask)
        words = report(found.method, found.note, mask)
        return io.NodeOutput(mask, shown, words, ui=summary(words))


class CBGradSAMBlend(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBGradSAMBlend",
            display_name="Keep Subject, New Background (Grad-SAM Blend)",
            category=CATEGORY,
            search_aliases=found_by(
                "keep subject",
                "background",
                "replace background",
                "change background",
                "new background",
                "inpaint background",
                "保留主体",
                "背景を変える",
            ),
            description="Keeps the subject that the model is drawing and takes everything else from a reference "
            "picture, while any sampler runs.",
            inputs=[
                model_input(),
                io.Latent.Input(
                    "reference",
                    tooltip="The picture that gives the surroundings, encoded with the model's VAE. One for all "
                    "pictures, or a batch with one for each. Set Latent Noise Mask says what of it is not taken, such "
                    "as a subject of its own.",
                ),
                subject_input("What is kept, from Subject of the Prompt."),
                *_mode_inputs(),
                *attribution_inputs(),
                *mask_inputs(dilate=1.0),
                *map(advanced, (_smoothing(), _size())),
            ],
            outputs=[
                patched_model(),
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
    def validate_inputs(cls, windows: str | None = None) -> bool | str:
        return problem_in("windows", windows) or True  # one name only, as in CBSelectLayers

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
        found_by, left_out = (attribution_settings(settings), mask_settings(settings)), _masked_in(reference)
        blend = Blend(samples, subject, parse_windows(windows), mode, *found_by, smoothing, size == "resize", left_out)
        patched, attribution = blend_reference(model, blend)
        if not blend.windows:
            return io.NodeOutput(patched, {"samples": torch.zeros_like(samples)}, attribution, ui=summary(NO_WINDOWS))
        does = "Only looks for the subject" if mode == MEASURE else "Keeps the subject on the reference"
        words = f"{does}, in {counted(len(blend.windows), 'window')} of the schedule ({mode}, {settings['method']})."
        words += "" if left_out is None else " What the reference's mask covers is not taken."
        return io.NodeOutput(patched, {"samples": torch.zeros_like(samples)}, attribution, ui=summary(words))


def _masked_in(latent: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """A latent's noise mask [R, H, W] in [0, 1], if it covers anything.

    Raises ValueError for one that is not finite.
    """
    mask = latent.get("noise_mask")
    if mask is None or not bool(mask.any()):
        return None
    if not bool(mask.isfinite().all()):
        raise ValueError("The reference's mask holds NaN or infinite values: check where it comes from.")
    return mask.reshape(-1, *mask.shape[-2:]).clamp(0, 1)


def _probe_inputs() -> list[io.Input]:
    """Where in the schedule the model looks at which kind of latent."""
    return [
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
    ]


def _seed() -> io.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=False,
        tooltip="Draws the noise that a clean picture gets. Another seed moves the border a little.",
    )


def _optional_inputs() -> list[io.Input]:
    return [
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
    ]


def _mode_inputs() -> list[io.Input]:
    """How the reference is blended in, and when."""
    return [
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
    ]


def _smoothing() -> io.Input:
    return io.Float.Input(
        "smoothing",
        default=0.3,
        min=0.0,
        max=0.95,
        step=0.05,
        tooltip="Share of the earlier windows' map kept in the next, so that the mask does not jump. "
        "0 starts afresh in each window.",
    )


def _size() -> io.Input:
    return io.Combo.Input(
        "size",
        options=["resize", "must match"],
        default="resize",
        tooltip="What happens to a reference of another size than the sampler's latent: resized and "
        "cropped to its middle, or an error.",
    )


NODES = [CBGradSAMMask, CBGradSAMBlend]
