"""Nodes that measure, keep and show sensitivity profiles."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import folder_paths
import numpy as np
import torch
from comfy_api.latest import io, ui

from ..engine.combining import contrast, trimmed_mean
from ..engine.divergence import DISTANCES
from ..engine.profile import NoCommonFeature, ProfilesDiffer, SensitivityProfile, note_on_model
from ..engine.profile_file import load, save
from ..engine.scoring import TooFewClusters, TooFewImages
from ..engine.texts import counted, quoted, storable
from ..render.heatmap import draw
from ..render.report import in_short, report
from ..runtime.arch.fingerprint import fingerprint_of
from ..runtime.arch.registry import architecture_of
from ..runtime.disk import files_below, folders_of_folders, holds_folders, inside
from ..runtime.profile.clusters import Cluster, Clusters, cluster_files, joined, load_clusters, with_cluster
from ..runtime.profile.pictures import SUFFIXES
from ..runtime.profile.profiling import Settings, profile_model, title_of
from ..runtime.profile.subjects import AUTO, READINGS, subjects_written
from .schema import Schema, found_by
from .shown import layer_map, summary, timed
from .widgets import advanced, never_the_same

CATEGORY = "conditional balance/profile"
FOLDER = "sensitivity_profiles"
SUFFIX = ".safetensors"
PUBLISHED = "sdxl-base-1.0.style.published.safetensors"  # what most users need, and shipped
LONGEST_NAME = 100  # in bytes; file systems take 255, with the ending and what a file being written is called
DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])( *\..*)?", re.IGNORECASE)
"""What Windows takes for a device, with any ending and with superscript digits too."""
FEATURES = {"q and k": ("q", "k"), "q, k and v": ("q", "k", "v"), "q": ("q",), "k": ("k",), "v": ("v",)}
ASPECTS = ["from images", "1:1", "4:3", "3:4", "3:2", "2:3", "16:9", "9:16"]

TRIMMED_MEAN, CONTRAST = "trimmed mean", "contrast (first minus second)"
COMBINED = 6  # profiles that one node takes; the paper merges five

ImageClusters = io.Custom("IMAGE_CLUSTERS")
Profile = io.Custom("SENSITIVITY_PROFILE")


def _register_folders() -> None:
    """The user's profiles in models/sensitivity_profiles, then the shipped ones; both beside extra_model_paths.yaml."""
    shipped = Path(__file__).resolve().parent.parent / FOLDER
    folder_paths.add_model_folder_path(FOLDER, str(shipped))
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER), is_default=True)
    folder_paths.folder_names_and_paths[FOLDER] = (folder_paths.folder_names_and_paths[FOLDER][0], {SUFFIX})


_register_folders()


class CBImageClusters(io.ComfyNode):
    """A named cluster of images, chained to earlier ones."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBImageClusters",
            display_name="Image Cluster",
            category=CATEGORY,
            search_aliases=found_by(
                "image set", "style series", "group images", "reference images", "图像组", "画像クラスター"
            ),
            description="Names a batch of images that share something, such as one style. Chain one node for each "
            "cluster: what they differ in is what Profile Sensitivity measures.",
            is_input_list=True,
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="Two or more images of one cluster; five or more give a steadier "
                    "ranking. Vary everything else: subjects, layout, light.",
                ),
                io.String.Input(
                    "name",
                    default="style 1",
                    tooltip="What these images share, such as 'watercolour'. A name used before adds to that cluster.",
                ),
                ImageClusters.Input(
                    "previous",
                    optional=True,
                    tooltip="The clusters so far. Leave it open on the first node of the chain.",
                ),
                io.String.Input(
                    "subjects",
                    default="",
                    optional=True,
                    tooltip="What each image shows, in order and separated by commas, such as 'cat, house, tree'; one "
                    "name counts for all. Use the same names in every cluster, and style and content are told apart. "
                    "Leave it empty where no subject recurs.",
                ),
            ],
            outputs=[ImageClusters.Output(display_name="clusters", tooltip="All clusters up to this one.")],
        )

    @classmethod
    @timed
    def execute(
        cls,
        images: list[torch.Tensor],
        name: list[str],
        previous: Sequence[Clusters] = (),
        subjects: Sequence[str] = ("",),
    ) -> io.NodeOutput:
        """A list of pictures, which may differ in size, is one cluster; with a list of names each is one of its own."""
        made = joined(each for each in previous if each is not None)
        together = len(name) == len(subjects) == 1
        batches = [[picture for batch in images for picture in batch]] if together else [list(each) for each in images]
        for place in range(max(len(batches), len(name), len(subjects))):
            batch = batches[min(place, len(batches) - 1)]
            shows = subjects_written(subjects[min(place, len(subjects) - 1)], len(batch))
            made = with_cluster(made, name[min(place, len(name) - 1)], batch, shows)
        return _clustered(made)


class CBLoadImageClusters(io.ComfyNode):
    """Clusters from a folder of folders."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBLoadImageClusters",
            display_name="Load Image Clusters",
            category=CATEGORY,
            search_aliases=found_by("load images from folder", "image folder", "style series", "load image batch"),
            description="Reads a folder of folders under ComfyUI's input folder: each subfolder is a cluster, named "
            "after the folder.",
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=folders_of_folders(folder_paths.get_input_directory()),
                    tooltip="A folder in ComfyUI's input folder that "
                    "holds one subfolder of images for each cluster. Press R after adding one.",
                ),
                advanced(
                    io.Int.Input(
                        "limit",
                        default=12,
                        min=2,
                        max=1000,
                        tooltip="Images taken from each "
                        "subfolder, in name order. 5 to 12 are enough; more take longer.",
                    )
                ),
                io.Combo.Input(
                    "subjects",
                    options=list(READINGS),
                    default=AUTO,
                    optional=True,
                    tooltip="How images of the same subject are recognised, so that style and content can be told "
                    "apart. auto: files of one name in several subfolders (cat.png in each), unless the names are mere "
                    "numbers; or a folder for each subject inside every subfolder. file names: numbers count too. "
                    "none: subjects are not used.",
                ),
            ],
            outputs=[ImageClusters.Output(display_name="clusters", tooltip="One cluster for each subfolder.")],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None = None) -> bool | str:
        try:
            if folder is not None:  # as in CBSelectLayers
                _cluster_folder(str(folder))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, limit: int, subjects: str = AUTO) -> str | float:
        if folder is None:
            return never_the_same()
        found = cluster_files(_cluster_folder(folder), limit)
        files = [(str(file), file.stat().st_mtime_ns) for files in found.values() for file in files]
        return hashlib.sha256(str((subjects, files)).encode()).hexdigest()

    @classmethod
    @timed
    def execute(cls, folder: str, limit: int, subjects: str = AUTO) -> io.NodeOutput:
        return _clustered(load_clusters(_cluster_folder(folder), limit, subjects))


class CBProfileSensitivity(io.ComfyNode):
    """Measures which layers tell clusters of images apart."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBProfileSensitivity",
            display_name="Profile Sensitivity (measure a checkpoint)",
            category=CATEGORY,
            search_aliases=found_by(
                "measure style layers", "analyze model", "layer analysis", "style ranking", "calibrate"
            ),
            description="Shows the model your images at several noise levels and measures which self-attention layers "
            "tell the clusters apart. Lower score = more sensitive. Needs one run for each model and question.",
            inputs=[*_subjects(), *_settings(), *_rarely_changed(), _stopping()],
            outputs=profile_outputs(),
        )

    @classmethod
    @timed
    def execute(
        cls,
        model: Any,
        clusters: tuple,
        vae: Any,
        positive: list,
        measures: str,
        noise_levels: int,
        features: str,
        seed: int,
        aspect: str,
        size: int,
        distance: str,
        negative: list | None = None,
        stop_when_sure: float = 0.0,
    ) -> io.NodeOutput:
        settings = Settings(
            storable(measures, "measures"),
            noise_levels,
            FEATURES[features],
            distance,
            seed,
            aspect,
            size,
            stop_when_sure,
        )
        try:
            return shown_profile(profile_model(model, clusters, vae, positive, negative, settings))
        except TooFewClusters as error:
            count = "one cluster" if error.count else "no cluster"
            raise ValueError(
                f"'clusters' holds {count}: give it two or more, so that there is something to tell apart."
            ) from error
        except TooFewImages as error:
            images = "1 image" if error.count == 1 else "no images"
            raise ValueError(f"'clusters': {quoted(error.cluster)} has {images}; give it two or more.") from error


class CBLoadSensitivityProfile(io.ComfyNode):
    """Reads a profile, shipped or saved."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBLoadSensitivityProfile",
            display_name="Load Sensitivity Profile",
            category=CATEGORY,
            search_aliases=found_by("style ranking", "layer ranking", "preset"),
            description="Loads a sensitivity profile by name: yours from models/sensitivity_profiles, and those that "
            "come with the pack.",
            inputs=[
                io.Combo.Input(
                    "profile",
                    options=_profile_names(),
                    default=PUBLISHED,
                    tooltip="The file. Press R after saving a new one.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Connect your model to check that the profile fits its layers. Leave it open to look only.",
                ),
            ],
            outputs=profile_outputs(),
        )

    @classmethod
    def validate_inputs(cls, profile: str | None = None) -> bool | str:
        try:
            if profile is not None:  # as in CBSelectLayers
                profile_path(str(profile))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, profile: str | None, **others: Any) -> float:
        return never_the_same() if profile is None else profile_path(profile).stat().st_mtime_ns

    @classmethod
    @timed
    def execute(cls, profile: str, model: Any = None) -> io.NodeOutput:
        loaded = load(profile_path(profile))
        if model is None:
            return shown_profile(loaded)
        loaded.aligned(architecture_of(model).layers)
        return shown_profile(loaded, note_on_model(loaded, fingerprint_of(model)))


class CBSaveSensitivityProfile(io.ComfyNode):
    """Writes a profile into the user's folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBSaveSensitivityProfile",
            display_name="Save Sensitivity Profile",
            category=CATEGORY,
            search_aliases=found_by("save style ranking", "export profile"),
            description="Saves a sensitivity profile into models/sensitivity_profiles. A file of the same name is "
            "replaced.",
            is_output_node=True,
            inputs=[
                Profile.Input("profile", tooltip="The profile to keep."),
                io.String.Input(
                    "name",
                    default="my-model.style",
                    tooltip="File name without folder. A good one names "
                    "the model and what was measured, such as 'dreamshaper-8.style'.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None, **others: Any) -> str | float:
        """What the file holds: where that is gone or another, it has to be written again."""
        if name is None:
            return never_the_same()
        path = _own_path(name)
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""

    @classmethod
    @timed
    def execute(cls, profile: SensitivityProfile, name: str) -> io.NodeOutput:
        path = _own_path(name)
        save(profile, path)
        return io.NodeOutput(ui=summary(f"Saved as {path.name} in models/{FOLDER}."))


class CBCombineProfiles(io.ComfyNode):
    """Several series made one, or one question held against another."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBCombineProfiles",
            display_name="Combine Sensitivity Profiles",
            category=CATEGORY,
            search_aliases=found_by("merge profiles", "average profiles", "compare styles"),
            description="Merges profiles that measure the same thing on different subjects, or contrasts two: ranks "
            "first the layers that are sensitive to what the first measures and not to what the second does.",
            inputs=[
                io.Combo.Input(
                    "operation",
                    options=[TRIMMED_MEAN, CONTRAST],
                    default=TRIMMED_MEAN,
                    tooltip="trimmed mean: for every score, the lowest and the highest are dropped and the rest is "
                    "averaged, as the paper's authors do with five series. contrast: layers sensitive to the first "
                    "profile and not to the second, such as style minus geometry.",
                ),
                *(
                    Profile.Input(
                        f"profile_{number}",
                        optional=number > 2,
                        tooltip=f"Profile {number}, of the same architecture. "
                        + ("Contrast uses these two." if number <= 2 else "For the trimmed mean; may stay open."),
                    )
                    for number in range(1, COMBINED + 1)
                ),
            ],
            outputs=profile_outputs(),
        )

    @classmethod
    @timed
    def execute(cls, operation: str, **profiles: SensitivityProfile) -> io.NodeOutput:
        given = dict(sorted(profiles.items()))
        if operation == CONTRAST and len(given) != 2:
            raise ValueError(f"'operation' contrast takes two profiles and {len(given)} are connected: leave two.")
        try:
            made = contrast(*given.values()) if operation == CONTRAST else trimmed_mean(list(given.values()))
        except (ProfilesDiffer, NoCommonFeature) as error:
            raise ValueError(misfit(error, list(given))) from error
        return shown_profile(made)


def misfit(error: ProfilesDiffer | NoCommonFeature, names: Sequence[str]) -> str:
    """Why profiles do not go together, by the names of their inputs."""
    if isinstance(error, NoCommonFeature):
        listed = ", ".join(f"'{name}'" for name in names)
        return f"{listed} have no feature in common ({error.listed}): connect profiles of the same features."
    return (
        f"'{names[error.number - 1]}' was measured on {len(error.mine)} layers and '{names[0]}' on "
        f"{len(error.theirs)} of another architecture: connect profiles of one architecture."
    )


def _subjects() -> list[io.Input]:
    """What Profile Sensitivity looks at."""
    return [
        io.Model.Input(
            "model",
            tooltip="The model to measure, UNet (SD1.5, SDXL) or transformer (SD3.5, Flux, Qwen-Image), with LoRAs.",
        ),
        ImageClusters.Input(
            "clusters",
            tooltip="Two or more clusters of two or more images; 5 clusters of 5 give a usable ranking, 10 of 5 a "
            "good one.",
        ),
        io.Vae.Input("vae", tooltip="The VAE of the same model."),
        io.Conditioning.Input(
            "positive",
            tooltip="One prompt for all images. Keep it neutral, such as 'a picture', and do not name a style: the "
            "prompt would give it away.",
        ),
        io.Conditioning.Input(
            "negative",
            optional=True,
            tooltip="Measured beside the positive one, as in sampling with cfg. Connect an empty prompt; leave it "
            "open to halve the time.",
        ),
    ]


def _settings() -> list[io.Input]:
    """How Profile Sensitivity looks."""
    return [
        io.String.Input(
            "measures",
            default="style",
            tooltip="What the clusters differ in. Shown in the heat map and kept in the file; changes nothing else.",
        ),
        io.Int.Input(
            "noise_levels",
            default=12,
            min=1,
            max=50,
            tooltip="Noise levels to measure at, in even steps from most noise to least. 12 are enough: rankings "
            "between them are interpolated. Time grows with it.",
        ),
        io.Combo.Input(
            "features",
            options=list(FEATURES),
            default="q and k",
            tooltip="What to measure of each layer: its queries (q), keys (k), values (v). q and k are what Style "
            "Injection needs.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=False,
            tooltip="Draws the noise, one for all images, and the resampling behind the intervals. Another seed "
            "changes the ranking a little.",
        ),
    ]


def _rarely_changed() -> list[io.Input]:
    """How it looks, where the defaults nearly always do."""
    return [
        io.Combo.Input(
            "aspect",
            options=ASPECTS,
            default="from images",
            tooltip="Shape that images are cropped to. 'from images' takes the middle one of yours.",
        ),
        advanced(
            io.Int.Input(
                "size",
                default=0,
                min=0,
                max=4096,
                step=64,
                tooltip="Side in pixels of a square of the same area. 0 is the model's own: 1024 for SDXL and "
                "transformers, 512 for SD1.5.",
            )
        ),
        advanced(
            io.Combo.Input(
                "distance",
                options=list(DISTANCES),
                default="jensen_shannon",
                tooltip="How two images' features are compared. jensen_shannon is bounded and robust; bhattacharyya is "
                "what the paper's code computes.",
            )
        ),
    ]


def _stopping() -> io.Input:
    return advanced(
        io.Float.Input(
            "stop_when_sure",
            default=0.0,
            min=0.0,
            max=0.99,
            step=0.01,
            optional=True,
            tooltip="Stops before all images are measured once the ranking is this sure: its expected correlation with "
            "the true one. 0 measures everything; 0.9 saves time on large folders. Images are then taken in up to four "
            "portions and compared inside each.",
        )
    )


def profile_outputs() -> list[io.Output]:
    return [
        Profile.Output(
            display_name="profile",
            tooltip="Scores by feature, noise level and layer: save it, or choose layers with it.",
        ),
        io.Image.Output(display_name="heat map", tooltip="Layers across, noise levels down, bright = sensitive."),
        io.String.Output(
            display_name="report",
            tooltip="Top and bottom layers, how sure and stable the ranking is, and what it cost.",
        ),
    ]


def _cluster_folder(name: str) -> Path:
    folder = inside(folder_paths.get_input_directory(), name)
    if folder is None or not holds_folders(folder):
        raise ValueError(
            f"'folder': the input folder has no folder {quoted(name)} with subfolders of images "
            f"({', '.join(SUFFIXES)}): put one there, one subfolder for each cluster, and press R."
        )
    return folder


def _profile_names() -> list[str]:
    """The user's profiles and the shipped ones. Not ComfyUI's list, which a disk can make fail, and links endless."""
    roots = folder_paths.get_folder_paths(FOLDER)
    return sorted({name for root in roots for name in files_below(root, SUFFIX)})


def profile_path(name: str) -> Path:
    """The file of a profile by its name in the menu. Raises ValueError for any other name."""
    paths = (inside(root, name) for root in folder_paths.get_folder_paths(FOLDER))
    path = next((path for path in paths if path is not None and os.path.isfile(path)), None)
    if path is None or not name.lower().endswith(SUFFIX):
        raise ValueError(
            f"'profile': there is no {quoted(name)} in models/{FOLDER} or the pack: press R and pick another."
        )
    return path


def _own_path(name: str) -> Path:
    """Where a profile of that name is saved. Raises ValueError for a name that is none."""
    return Path(folder_paths.get_folder_paths(FOLDER)[0]) / _file_name(name)


def _file_name(name: str) -> str:
    """A plain file name with the right ending; refused are folders, names that hide or escape, and Windows' devices."""
    return plain_name(name.strip().removesuffix(SUFFIX), "name") + SUFFIX


def plain_name(name: str, what: str) -> str:
    """A plain name for a file or folder; `what` is the input it was given in, for the error."""
    bad = (
        name.startswith(".")
        or name.endswith((".", " "))
        or bool(set(name) & set('/\\:*?"<>|'))
        or not name.isprintable()
    )
    bad |= DEVICES.fullmatch(name) is not None
    if not name or bad or len(name.encode("utf-8", "replace")) > LONGEST_NAME:
        raise ValueError(
            f"'{what}': {quoted(name)} is not a plain file name: use letters, digits, dots and dashes, "
            f"{LONGEST_NAME} at most, and no folders."
        )
    return name


def _clustered(clusters: Sequence[Cluster]) -> io.NodeOutput:
    listed = ", ".join(f"{cluster.name} ({len(cluster.images)})" for cluster in clusters)
    words = f"{counted(len(clusters), 'cluster')}: {listed}."
    return io.NodeOutput(clusters, ui=summary(f"{words}{_subjects_in_words(clusters)}"))


def _subjects_in_words(clusters: Sequence[Cluster]) -> str:
    named = [set(filter(None, cluster.subjects)) for cluster in clusters]
    known = set().union(*named)
    if not known:
        return ""
    recurring = sum(sum(subject in names for names in named) > 1 for subject in known)
    return f" {counted(len(known), 'subject')}, {recurring} of them in two clusters or more."


def shown_profile(
    profile: SensitivityProfile, note: str = "", more: Mapping[str, list[str]] = MappingProxyType({})
) -> io.NodeOutput:
    """Profile, heat map [1, h, w, 3] and report; on the node itself the layer map, a summary, the report and `more`."""
    pixels = np.asarray(draw(profile, title_of(profile)), dtype=np.float32) / 255
    text = "\n".join(part for part in (note, report(profile)) if part)
    words = " ".join(part for part in (in_short(profile), note) if part)
    shown = summary(words) | layer_map(profile) | ui.PreviewText(text).as_dict() | dict(more)
    return io.NodeOutput(profile, torch.from_numpy(pixels)[None], text, ui=shown)


NODES = [
    CBImageClusters,
    CBLoadImageClusters,
    CBProfileSensitivity,
    CBLoadSensitivityProfile,
    CBSaveSensitivityProfile,
    CBCombineProfiles,
]
