"""Nodes that record a series while it is generated, make a profile of it, and hold two rankings against each other."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import torch
from comfy_api.latest import io, ui

from ..engine.comparing import compare
from ..engine.divergence import DISTANCES
from ..engine.gates.ranked import layer_count
from ..engine.profile import NoCommonFeature, ProfilesDiffer, SensitivityProfile
from ..engine.recording_file import picture_files
from ..engine.texts import storable
from ..render.comparison import comparison_chart, comparison_report
from ..runtime.profile.profiling import title_of
from ..runtime.profile.recorded import profile_recording
from ..runtime.profile.recording import Series, record, times_deleted
from ..runtime.profile.subjects import names_written
from .profile import CATEGORY, FEATURES, Profile, misfit, plain_name, profile_outputs, shown_profile
from .schema import Schema, found_by
from .shown import summary, timed
from .widgets import advanced, never_the_same

FOLDER = "sensitivity_recordings"


def recording_folder(series: str) -> Path:
    """The folder of a recording under ComfyUI's output folder. Raises ValueError for a name that is none."""
    return Path(folder_paths.get_output_directory()) / FOLDER / plain_name(series.strip(), "series")


def _series_input() -> io.Input:
    return io.String.Input(
        "series",
        default="my series",
        tooltip=f"The recording's name, a folder in output/{FOLDER}. Record and profile under the same name; choose a "
        "new one for another model, sampler or number of steps.",
    )


def _what_is_made() -> list[io.Input]:
    """The model, and what its pictures are."""
    return [
        io.Model.Input(
            "model",
            tooltip="The model to measure, with the LoRAs and the style injection that it is to have.",
        ),
        _series_input(),
        io.String.Input(
            "label",
            default="style 1",
            tooltip="What this run's pictures have in common, such as their style: the cluster they belong to. "
            "For a batch of several, one label each, separated by commas.",
        ),
        io.String.Input(
            "subject",
            default="",
            tooltip="What is shown. Use the same subjects under every label, and style and content are told "
            "apart. Leave it empty where no subject recurs.",
        ),
        io.Boolean.Input(
            "first_is_reference",
            default=False,
            tooltip="Turn it on when Style Injection takes its style from the first picture of the batch: that "
            "picture is left out, as in the paper. References from a Style Reference node are left out anyway.",
        ),
    ]


def _what_is_kept() -> list[io.Input]:
    return [
        advanced(
            io.Int.Input(
                "noise_levels",
                default=12,
                min=1,
                max=50,
                tooltip="At most so many of the sampler's steps are recorded, spread evenly. 12 are enough; "
                "files grow with it (SDXL: about 3 MB a level and picture).",
            )
        ),
        advanced(
            io.Combo.Input(
                "features",
                options=list(FEATURES),
                default="q and k",
                tooltip="What to record of each layer: queries (q), keys (k), values (v). q and k are what "
                "Style Injection needs.",
            )
        ),
    ]


class CBRecordSensitivity(io.ComfyNode):
    """Records while any sampler generates."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBRecordSensitivity",
            display_name="Record Sensitivity (while generating)",
            category=CATEGORY,
            search_aliases=found_by("record layers", "measure while sampling", "analyze generation", "style series"),
            description="Records what the attention layers do while pictures are generated, under the label you give "
            "them. Put it before the sampler, queue one run for each picture, then use Profile from Recording.",
            inputs=[*_what_is_made(), *_what_is_kept()],
            outputs=[io.Model.Output(display_name="model", tooltip="Connect to the sampler.")],
        )

    @classmethod
    def fingerprint_inputs(cls, series: str | None, **others: Any) -> int:
        """Where the recording was deleted, its pictures have to be made again; a new one is not yet recorded."""
        return times_deleted(None if series is None else recording_folder(series))

    @classmethod
    @timed
    def execute(
        cls,
        model: Any,
        series: str,
        label: str,
        subject: str,
        first_is_reference: bool,
        noise_levels: int,
        features: str,
    ) -> io.NodeOutput:
        folder = recording_folder(series)
        labels, subjects = names_written(label, "label"), names_written(subject, "subject") or ("",)
        if not labels:
            raise ValueError("'label' is empty: name what these pictures have in common, such as their style.")
        chosen = Series(folder, labels, subjects, FEATURES[features], noise_levels, first_is_reference)
        words, held = f"Every run adds its pictures to '{folder.name}' as {', '.join(labels)}", picture_files(folder)
        words += f", beside {len(held)} that it held before" if held else ""  # true of later runs too, which cache it
        return io.NodeOutput(record(model, chosen), ui=summary(f"{words}."))


class CBProfileFromRecording(io.ComfyNode):
    """A recorded series made a profile."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBProfileFromRecording",
            display_name="Profile from Recording",
            category=CATEGORY,
            search_aliases=found_by("measure style layers", "style ranking", "layer analysis", "recorded series"),
            description="Makes a sensitivity profile of the pictures that Record Sensitivity has recorded: labels are "
            "the clusters.",
            is_output_node=True,
            inputs=[
                _series_input(),
                io.String.Input(
                    "measures",
                    default="style",
                    tooltip="What the labels differ in. Shown in the heat map and kept in the file; changes nothing "
                    "else.",
                ),
                advanced(
                    io.Int.Input(
                        "seed",
                        default=0,
                        min=0,
                        max=0xFFFFFFFFFFFFFFFF,
                        control_after_generate=False,
                        tooltip="Draws the resampling behind intervals and tests. It changes no score.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "distance",
                        options=list(DISTANCES),
                        default="jensen_shannon",
                        tooltip="How two pictures' features are compared. jensen_shannon is bounded and robust; "
                        "bhattacharyya is what the paper's code computes.",
                    )
                ),
                io.Latent.Input(
                    "after",
                    optional=True,
                    tooltip="Connect the sampler's latent to make the profile in the same run, after its pictures are "
                    "recorded. Leave it open to read what is there.",
                ),
            ],
            outputs=profile_outputs(),
        )

    @classmethod
    def validate_inputs(cls, series: str | None = None) -> bool | str:
        try:
            if series is not None:
                recording_folder(series)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, series: str | None, **others: Any) -> str | float:
        if series is None:
            return never_the_same()
        files = [(file.name, file.stat().st_mtime_ns) for file in picture_files(recording_folder(series))]
        return hashlib.sha256(str(files).encode()).hexdigest()

    @classmethod
    @timed
    def execute(
        cls, series: str, measures: str, seed: int, distance: str, after: dict[str, Any] | None = None
    ) -> io.NodeOutput:
        return shown_profile(
            profile_recording(recording_folder(series), storable(measures, "measures"), distance, seed)
        )


class CBCompareProfiles(io.ComfyNode):
    """Two rankings held against each other."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBCompareProfiles",
            display_name="Compare Sensitivity Profiles",
            category=CATEGORY,
            search_aliases=found_by("compare rankings", "profile agreement", "difference", "rank correlation"),
            description="Says how far two profiles rank the layers alike, at every noise level: two checkpoints, two "
            "series, or style against geometry.",
            is_output_node=True,
            inputs=[
                Profile.Input("profile_1", tooltip="The first profile; agreement is shown at its noise levels."),
                Profile.Input("profile_2", tooltip="The second one, of the same architecture."),
                io.Float.Input(
                    "lambda",
                    default=0.43,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the layers that are compared by name, as in Select Layers: 0.43 compares the "
                    "first 30 of SDXL's 70.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="chart", tooltip="Agreement upward, noise falling to the right: 1 is the same ranking."
                ),
                io.String.Output(display_name="report", tooltip="The agreement in words and figures."),
            ],
        )

    @classmethod
    @timed
    def execute(cls, profile_1: SensitivityProfile, profile_2: SensitivityProfile, **values: float) -> io.NodeOutput:
        count = max(1, layer_count(values["lambda"], len(profile_1.layers)))
        try:
            found = compare(profile_1, profile_2, count)
        except (ProfilesDiffer, NoCommonFeature) as error:
            raise ValueError(misfit(error, ("profile_1", "profile_2"))) from error
        names = [title_of(profile) for profile in (profile_1, profile_2)]
        words = comparison_report(found, names)
        pixels = np.asarray(comparison_chart(found, names), dtype=np.float32) / 255
        shown = summary(words.partition("\n")[0]) | ui.PreviewText(words).as_dict()
        return io.NodeOutput(torch.from_numpy(pixels)[None], words, ui=shown)


NODES = [CBRecordSensitivity, CBProfileFromRecording, CBCompareProfiles]
