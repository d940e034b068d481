"""Image clusters: what one style (or shape, or palette) has in common, and how they become latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
STEP = 64  # sides are multiples of it, which every UNet of this family halves evenly


class Cluster(NamedTuple):
    """A name and pictures [height, width, 3] in 0..1, each of its own size."""

    name: str
    images: tuple[torch.Tensor, ...]


Clusters = tuple[Cluster, ...]


def with_cluster(previous: Clusters, name: str, images: Sequence[torch.Tensor]) -> Clusters:
    """Add a cluster; a name that is there already gets the images too. Raises ValueError without a name or images."""
    name = name.strip()
    if not name:
        raise ValueError("'name' is empty: name the cluster after what its images share, such as the style.")
    if not len(images):
        raise ValueError(f"'images' of cluster '{name}' is empty: connect two or more images.")
    if not all(bool(torch.isfinite(image).all()) for image in images):
        raise ValueError(f"'images' of cluster '{name}' holds NaN or infinite values: check the node they come from.")
    pictures = tuple(image[..., :3].float() for image in images)
    if name in [cluster.name for cluster in previous]:
        return tuple(Cluster(name, c.images + pictures) if c.name == name else c for c in previous)
    return (*previous, Cluster(name, pictures))


def load_clusters(folder: Path, limit: int) -> Clusters:
    """One cluster for each subfolder that holds images, `limit` images of each in name order.

    Raises ValueError when there is none, or when an image cannot be read.
    """
    found: Clusters = ()
    for inside in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = image_files(inside)[:limit]
        if files:
            found = with_cluster(found, inside.name, [_read(file) for file in files])
    if not found:
        raise ValueError(
            f"'folder': '{folder.name}' has no subfolders with images: put one folder of images for each cluster there."
        )
    return found


def image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def _read(file: Path) -> torch.Tensor:
    comfy.model_management.throw_exception_if_processing_interrupted()
    try:
        with Image.open(file) as image:
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"), dtype=np.float32) / 255
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"'{file.parent.name}/{file.name}' is no readable image: replace or remove it.") from error
    return torch.from_numpy(pixels)


def picture_size(clusters: Clusters, aspect: str, side: int) -> tuple[int, int]:
    """Width and height in pixels, multiples of 64, with an area near side * side.

    `aspect` is "width:height", or anything else for the middle one of all images.
    """
    if ":" in aspect:
        width, height = (int(part) for part in aspect.split(":"))
        ratio = width / height
    else:
        ratio = float(np.median([image.shape[1] / image.shape[0] for c in clusters for image in c.images]))
    return _multiple(side * math.sqrt(ratio)), _multiple(side / math.sqrt(ratio))


def _multiple(pixels: float) -> int:
    return max(STEP, round(pixels / STEP) * STEP)


def native_side(model: ModelPatcher) -> int:
    """The side in pixels that a model was trained at: 1024 for SDXL and its kin, which read sizes, else 512."""
    return 1024 if model.model.model_config.unet_config.get("adm_in_channels") == 2816 else 512


def encode(vae: Any, clusters: Clusters, size: tuple[int, int], channels: int) -> torch.Tensor:
    """Latents [images, channels, h, w] of all images in order, each scaled to cover `size` and cropped at the centre.

    Raises ValueError when the VAE's latents do not fit the model.
    """
    latents = []
    for image in (image for cluster in clusters for image in cluster.images):
        comfy.model_management.throw_exception_if_processing_interrupted()
        fitted = comfy.utils.common_upscale(image.movedim(-1, 0)[None], *size, "lanczos", "center").movedim(1, -1)
        latents.append(vae.encode(fitted))
    if latents[0].ndim != 4 or latents[0].shape[1] != channels:
        raise ValueError(
            f"'vae' makes latents of shape {tuple(latents[0].shape[1:])} and 'model' wants {channels} channels: "
            "connect the VAE of this model's family."
        )
    return torch.cat(latents)
