"""The example workflows: the name that code has for each, and the file, whose name is the title that templates show."""

from __future__ import annotations

from pathlib import Path

from .comfyui import ROOT

TITLES = {
    "style_picture_flux": "1 Style from a picture (Flux)",
    "style_picture_qwen": "1 Style from a picture (Qwen-Image)",
    "style_picture_sd35": "1 Style from a picture (SD3.5)",
    "style_picture_sdxl": "1 Style from a picture (SDXL)",
    "style_picture_zimage": "1 Style from a picture (Z-Image)",
    "style_balanced_sdxl": "1 Style from a picture, step by step (SDXL)",
    "subject_picture_sdxl": "2 Keep the subject, new background (SDXL)",
    "subject_kept_sdxl": "2 Keep the subject, step by step (SDXL)",
    "subject_kept_sd15": "3 Keep the subject, step by step (SD1.5)",
    "structure_picture_sdxl": "4 Style and structure with ControlNet (SDXL)",
    "style_structure_balanced_sdxl": "4 Style and structure, step by step (SDXL)",
    "profile_sdxl": "5 Measure your checkpoint (SDXL)",
    "compare_layers_sdxl": "6 Compare which layers take the style (SDXL)",
    "layers_do_flux": "7 What does each layer do (Flux)",
    "layers_do_qwen": "7 What does each layer do (Qwen-Image)",
    "layers_do_sd35": "7 What does each layer do (SD3.5)",
    "layers_do_sdxl": "7 What does each layer do (SDXL)",
    "layers_do_zimage": "7 What does each layer do (Z-Image)",
    "guidance_sdxl": "8 Guide by style alone (SDXL)",
    "revised_sdxl": "8 Hold the layout and colours of a picture (SDXL)",
    "recorded_sdxl": "8 Measure while it paints (SDXL)",
    "inversion_sdxl": "8 Repaint a picture from its own noise (SDXL)",
    "noise_blend_sdxl": "8 Two prompts by region (SDXL)",
    "style_picture_demo": "1 Style from a picture (demo)",
    "style_balanced_demo": "1 Style from a picture, step by step (demo)",
    "style_transformer_demo": "1 Style from a picture, with a transformer (demo)",
    "subject_picture_demo": "2 Keep the subject, new background (demo)",
    "subject_kept_demo": "2 Keep the subject, step by step (demo)",
    "structure_picture_demo": "3 Style and structure with ControlNet (demo)",
    "style_structure_balanced_demo": "3 Style and structure, step by step (demo)",
    "profile_demo": "4 Measure a model (demo)",
    "compare_layers_demo": "5 Compare which layers take the style (demo)",
    "style_sweep_demo": "6 More and more style (demo)",
    "layers_do_demo": "7 What does each layer do (demo)",
    "guidance_demo": "8 Guide by style alone (demo)",
    "revised_demo": "8 Hold the layout and colours of a picture (demo)",
    "recorded_demo": "8 Measure while it paints (demo)",
    "inversion_demo": "8 Repaint a picture from its own noise (demo)",
    "noise_blend_demo": "8 Two prompts by region (demo)",
}
"""Titles in the order of what people want; ComfyUI sorts a pack's templates by name."""

DEMOS = {name for name in TITLES if name.endswith("_demo")}


def file_of(name: str, root: Path = ROOT) -> Path:
    """The file of an example. Those that need the demo nodes lie in demo/, which is the pack that brings them."""
    folder = root / "demo" / "example_workflows" if name in DEMOS else root / "example_workflows"
    return folder / f"{TITLES[name]}.json"


EXAMPLES = {name: file_of(name) for name in TITLES}
