"""Pictures by the demo model for those who have no drawings: references, clusters and edge maps."""

from __future__ import annotations

from functools import cache

import comfy.sample
import torch
from torch import Tensor

from . import models
from .nets import CELLS
from .world.media import PLAIN

SAMPLING = {"steps": 12, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal"}


def caption(scene: str, hand: str, medium: str = PLAIN) -> str:
    """`a fox in the forest, ink drawing, comic style`: what a scene and the words for a style make."""
    style = f"{hand} drawing" if medium == PLAIN else f"{hand} drawing, {medium} style"
    return f"{scene}, {style}" if scene else style


@torch.inference_mode()
def painted(captions: list[str], seed: int) -> Tensor:
    """Pictures [N, 192, 192, 3] in [0, 1]; the same seed and place in the list begin with the same noise."""
    model, clip, vae = _models()
    empty = torch.zeros(len(captions), 1, CELLS, CELLS)
    noise = comfy.sample.prepare_noise(comfy.sample.fix_empty_latent_channels(model, empty), seed)
    nothing = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    pictures = []
    for text, start in zip(captions, noise.split(1), strict=True):
        said = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        latent = comfy.sample.sample(
            model, start, SAMPLING["steps"], SAMPLING["cfg"], SAMPLING["sampler_name"], SAMPLING["scheduler"],
            said, nothing, torch.zeros_like(start), disable_pbar=True, seed=seed,
        )  # fmt: skip
        pictures.append(vae.decode(latent))
    return torch.cat(pictures).clamp(0, 1)


@cache
def _models() -> tuple:
    with torch.inference_mode(False):  # weights made in inference mode could not be attributed by gradients later
        return models.load_unet(), models.load_clip(), models.load_vae()
