"""Image clusters: what one style (or shape, or palette) has in common, and how they become latents."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management
import numpy as np
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from comfy.supported_models import SD20

from ...engine.texts import quoted, storable
from ..disk import entries, is_file, is_folder
from ..runs.loaded import own_classes
from .pictures import SUFFIXES, Picture, held, stored
from .subjects import AUTO, subjects_in

STEP = 64  # sides are multiples of it, which every UNet of this family halves evenly
NARROWEST, WIDEST = 1 / 4, 4  # of the middle image's aspect; panoramas beyond are cropped


class Cluster(NamedTuple):
    """A name and pictures, each of its own size, and what each shows, "" where unknown."""

    name: str
    images: tuple[Picture, ...]
    subjects: tuple[str, ...]


Clusters = tuple[Cluster, ...]


def with_cluster(
    previous: Clusters, name: str, images: Sequence[torch.Tensor], subjects: Sequence[str] = ()
) -> Clusters:
    """Add a cluster of images [height, width, channels] in 0..1; a name that is there already gets the images too.

    `subjects` says what each image shows; without them it is unknown.
    Raises ValueError without a name or images, and for images that are none.
    """
    name = storable(name, "name")
    if not name:
        raise ValueError("'name' is empty: name the cluster after what its images share, such as the style.")
    if not len(images):
        raise ValueError(f"'images' of cluster {quoted(name)} is empty: connect two or more images.")
    try:
        pictures = [held(image) for image in images]
    except ValueError as error:
        raise ValueError(f"'images' of cluster {quoted(name)} {error}: check the node they come from.") from error
    return _extended(previous, Cluster(name, tuple(pictures), tuple(subjects) or ("",) * len(pictures)))


def joined(several: Iterable[Clusters]) -> Clusters:
    """All clusters of several chains; those of one name are one."""
    return reduce(_extended, (cluster for clusters in several for cluster in clusters), ())


def _extended(previous: Clusters, more: Cluster) -> Clusters:
    if more.name in [cluster.name for cluster in previous]:
        return tuple(_joined(cluster, more) if cluster.name == more.name else cluster for cluster in previous)
    return (*previous, more)


def _joined(one: Cluster, more: Cluster) -> Cluster:
    return Cluster(one.name, one.images + more.images, one.subjects + more.subjects)


def load_clusters(folder: Path, limit: int, reading: str = AUTO) -> Clusters:
    """One cluster for each subfolder that holds images, `limit` images of each in name order; subjects by `reading`.

    Only headers are read, so that the images take no memory before they are encoded, one by one.
    Raises ValueError when there is none, or when a folder or an image cannot be read.
    """
    found: Clusters = ()
    clusters = cluster_files(folder, limit)
    subjects = subjects_in(folder, clusters, reading)
    for name, files in clusters.items():
        found = (*found, Cluster(name, tuple(_stored(file) for file in files), subjects[name]))
    if not found:
        raise ValueError(
            f"'folder': {quoted(folder.name)} has no subfolders with images: put one folder of images for each cluster "
            "there."
        )
    return found


def cluster_files(folder: Path, limit: int) -> dict[str, list[Path]]:
    """The first `limit` images in name order of every subfolder that has some. Raises ValueError when one is locked.

    A subfolder without images of its own may hold a folder for each subject; they are gone through in turn, so that
    the limit leaves none of them out.
    """
    found = {_readable(path.name): _cluster_files(path)[:limit] for path in _folders(folder)}
    return {name: files for name, files in found.items() if files}


def _cluster_files(folder: Path) -> list[Path]:
    files = _image_files(folder)
    if files:
        return files
    turns = zip_longest(*(_image_files(subject) for subject in _folders(folder)))
    return [file for turn in turns for file in turn if file is not None]


def _folders(folder: Path) -> list[Path]:
    return [Path(path) for path in sorted(entry.path for entry in _entries(folder) if is_folder(entry))]


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        Path(entry.path) for entry in _entries(folder) if entry.name.lower().endswith(SUFFIXES) and is_file(entry)
    )


def _entries(folder: Path) -> list[Any]:
    try:
        return list(entries(folder))
    except OSError as error:
        raise ValueError(
            f"'folder': {quoted(folder.name)} cannot be read ({error.strerror or error}): let ComfyUI read it, or move "
            "it elsewhere."
        ) from error


def _readable(name: str) -> str:
    """A folder's name; bytes that are no characters, as disks may hold them, are spelled out."""
    return name.encode("utf-8", "backslashreplace").decode()


def _stored(file: Path) -> Picture:
    comfy.model_management.throw_exception_if_processing_interrupted()
    return stored(file)


def picture_size(clusters: Clusters, aspect: str, side: int) -> tuple[int, int]:
    """Width and height in pixels, multiples of 64, with an area near side * side.

    `aspect` is "width:height", or anything else for the middle one of all images.
    """
    if ":" in aspect:
        width, height = (int(part) for part in aspect.split(":"))
        ratio = width / height
    else:
        ratio = float(np.median([image.aspect for cluster in clusters for image in cluster.images]))
    ratio = min(max(ratio, NARROWEST), WIDEST)
    return _multiple(side * math.sqrt(ratio)), _multiple(side / math.sqrt(ratio))


def _multiple(pixels: float) -> int:
    return max(STEP, round(pixels / STEP) * STEP)


SIZED = 2816, 2560
"""Widths of what SDXL and its refiner read beside text: the pooled text, and sizes."""


def native_side(model: ModelPatcher) -> int:
    """The side in pixels that a model was trained at: 512 for SD1.5's kin, 768 for SD2's that predict v, 1024 for
    SDXL's, which read sizes, and for transformers.
    """
    with own_classes(model):
        unet = isinstance(model.model.diffusion_model, UNetModel)
    config = model.model.model_config
    if not unet or config.unet_config.get("adm_in_channels") in SIZED:
        return 1024
    of_v = model.model.model_type == ModelType.V_PREDICTION
    return 768 if of_v and isinstance(config, SD20) else 512


def encode(vae: Any, images: Sequence[Picture], size: tuple[int, int], latent_format: Any) -> torch.Tensor:
    """Latents [images, channels, (1,) h, w] of images in order, each scaled to cover `size` and cropped.

    Raises ValueError when the VAE's latents do not fit the model.
    """
    latents = []
    for image in images:
        comfy.model_management.throw_exception_if_processing_interrupted()
        latents.append(vae.encode(image.fitted(*size)[None]))
    channels, dimensions = latent_format.latent_channels, 2 + latent_format.latent_dimensions
    if latents[0].ndim not in (4, dimensions) or latents[0].shape[1] != channels:
        raise ValueError(
            f"'vae' makes latents of shape {tuple(latents[0].shape[1:])} and 'model' wants {channels} channels: "
            "connect the VAE of this model's family."
        )
    found = torch.cat(latents)
    return found.unsqueeze(2) if found.ndim < dimensions else found
