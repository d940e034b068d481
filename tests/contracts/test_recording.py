"""Recording while a sampler generates: nothing changes, nothing stays, and the series is what was generated."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import comfy.sample
import comfy.samplers
import folder_paths
import pytest
import torch
from style_case import KINDS, hidden, model, run, styled
from tiny_transformers import cond as transformer_cond
from tiny_transformers import tiny_transformer

from conditional_balance.engine.recording_file import open_recording, picture_files
from conditional_balance.nodes.ranking import (
    NODES,
    CBCompareProfiles,
    CBProfileFromRecording,
    CBRecordSensitivity,
    recording_folder,
)
from conditional_balance.runtime.arch.registry import architecture_of
from tiny import cond, latent, sample


@pytest.fixture(autouse=True)
def own_output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))


def recorded(of, label="ink", **widgets):
    settings = {"series": "mine", "subject": "", "first_is_reference": False, "noise_levels": 12, "features": "q and k"}
    return CBRecordSensitivity.execute(of, label=label, **(settings | widgets)).args[0]


def no_memory(device=None, torch_free_too=False):
    return (0, 0) if torch_free_too else 0


def files() -> list[Path]:
    return picture_files(recording_folder("mine"))


def generate(label: str, seed: int, of=None, subject: str = "", batch: int = 1, **options):
    of = of or model("sd15")
    positive = cond(of, 40 + seed)
    return run(recorded(of, label, subject=subject), batch=batch, positive=positive, seed=seed, **options)


def profile_of(**widgets):
    return CBProfileFromRecording.execute(**({"series": "mine", "measures": "style", "seed": 0,
                                              "distance": "jensen_shannon"} | widgets))  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_recording_changes_no_picture_and_leaves_nothing_behind(kind):
    of = model(kind)
    plain = run(of, batch=2)
    hooks = [len(module._forward_hooks) for module in of.model.modules()]
    assert torch.equal(run(recorded(of), batch=2), plain)
    assert [len(module._forward_hooks) for module in of.model.modules()] == hooks
    assert len(files()) == 2 and not list(recording_folder("mine").glob(".*"))
    assert torch.equal(run(of, batch=2), plain)


def test_a_recorded_series_makes_a_profile_with_both_scores():
    for seed, (label, subject) in enumerate((a, b) for a in ("ink", "oil", "wash") for b in ("cat", "dog")):
        generate(label, seed, subject=subject)
    out = profile_of()
    found = out.args[0]
    assert found.layers == architecture_of(model("sd15")).layers and found.features == ("q", "k")
    assert found.content is not None and found.scores.shape == (2, 2, len(found.layers))
    assert found.provenance["clusters"] == {"ink": 2, "oil": 2, "wash": 2}
    assert "crossed series of 2 subjects" in out.args[2] and bool(found.scores.isfinite().all())


def test_the_moments_are_those_of_the_pictures_batched_or_alone_and_split_into_calls(monkeypatch):
    of = model("sd15")
    run(recorded(of, "ink, oil"), batch=2)
    together = open_recording(recording_folder("mine"))
    monkeypatch.setattr(comfy.model_management, "get_free_memory", no_memory)
    run(recorded(of, "ink, oil", series="split"), batch=2)
    apart = open_recording(recording_folder("split"))
    order = [apart.labels.index(label) for label in together.labels]
    for level in range(len(together.sigmas)):
        found = [recording.level(level, [0, 1]).values() for recording in (together, apart)]
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one.mean, other.mean[order], rtol=1e-4, atol=1e-4)


def test_the_same_picture_twice_counts_once_and_others_are_added():
    for seed, label in ((1, "oil"), (1, "ink"), (2, "ink")):
        generate(label, seed)
    assert open_recording(recording_folder("mine")).labels == ("ink", "ink")
    out = CBRecordSensitivity.execute(model("sd15"), "mine", "oil", "", False, 12, "q and k")
    assert "beside 2 that it held before" in out.ui["cb_summary"][0]


def test_the_reference_row_is_left_out_and_hidden_rows_too():
    of = model("sd15")
    run(recorded(styled(of), "ink, oil", first_is_reference=True), batch=3)
    assert sorted(open_recording(recording_folder("mine")).labels) == ["ink", "oil"]
    with_reference = styled(of, "all", hidden(of))
    plain = run(with_reference, batch=2)
    assert torch.equal(run(recorded(with_reference, "a, b", series="hidden"), batch=2), plain)
    assert len(open_recording(recording_folder("hidden")).files) == 2


def test_an_interrupted_run_leaves_the_recording_whole():
    generate("ink", 1)
    before = {file: file.read_bytes() for file in files()}

    calls = []

    def stop(apply, arguments):
        calls.append(1)
        if len(calls) > 2:
            raise comfy.model_management.InterruptProcessingException
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    stopped = model("sd15").clone()
    stopped.set_model_unet_function_wrapper(stop)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        generate("oil", 2, of=stopped, steps=4)
    assert {file: file.read_bytes() for file in files()} == before


@pytest.mark.parametrize("sampler", ["euler_ancestral", "heun", "dpmpp_2m", "uni_pc", "ddim", "dpmpp_sde"])
def test_any_sampler_records_every_level(sampler):
    generate("ink", 1, sampler=sampler, steps=4)
    assert len(open_recording(recording_folder("mine")).sigmas) == 4


def test_few_levels_of_many_steps_are_kept():
    run(recorded(model("sd15"), noise_levels=3), batch=1, steps=8)
    assert len(open_recording(recording_folder("mine")).sigmas) == 3


def test_two_branches_with_one_model_do_not_mix():
    of = model("sd15")
    one, other = recorded(of, "ink", series="one"), recorded(of, "oil", series="other")
    run(one, batch=1)
    run(other, batch=1, seed=3)
    assert open_recording(recording_folder("one")).labels == ("ink",)
    assert open_recording(recording_folder("other")).labels == ("oil",)


def test_pictures_that_do_not_belong_together_are_refused():
    generate("ink", 1)
    run(recorded(model("sd15"), "oil", series="other"), batch=1, steps=4)
    for file in picture_files(recording_folder("other")):
        file.rename(recording_folder("mine") / file.name)
    with pytest.raises(ValueError, match="made with other noise levels"):
        profile_of()
    files()[0].write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged: delete it"):
        profile_of()


@pytest.mark.parametrize(
    ("settings", "other", "differs"),
    [
        ({"denoise": 0.5}, {}, "other noise levels (sampler, scheduler, steps or denoise)"),
        ({"cfg": 1.0}, {}, "other features or another cfg (with and without a negative prompt)"),
        ({}, {"features": "q"}, "other features or another cfg (with and without a negative prompt)"),
        ({}, {}, "another model"),
    ],
)
def test_a_run_that_does_not_belong_to_the_series_is_left_out_and_said(settings, other, differs, caplog):
    """A second pass over the first one's picture by the same model, as for high resolutions, has other levels."""
    generate("ink", 1)
    before = files()
    of = model("sdxl" if differs == "another model" else "sd15")
    run(recorded(of, "ink", **other), batch=1, latent=latent(3), steps=2, **settings)
    assert files() == before
    assert (
        f"Record Sensitivity: This run was not recorded, as the series 'mine' holds pictures made with {differs}: "
        in (" ".join(caplog.messages))
    )
    generate("oil", 2)
    assert len(files()) == 2


def test_a_disk_that_refuses_a_recording_costs_no_picture_and_is_said(caplog):
    plain = run(model("sd15"), batch=1)
    recording_folder("mine").parent.write_text("in the way")
    assert torch.equal(run(recorded(model("sd15")), batch=1), plain)
    (said,) = (message for message in caplog.messages if message.startswith("Record Sensitivity:"))
    assert "This run was not recorded: " in said and "was not saved in" in said


@pytest.mark.parametrize("levels", [(14.6, 5.0, 2.0, 1.0), (1.0, 2.0, 5.0, 14.6)])
def test_a_stage_that_stops_before_the_picture_is_whole_or_goes_up_is_recorded_whole(levels, caplog):
    of = model("sd15")
    with torch.inference_mode():
        comfy.sample.sample_custom(
            recorded(of), torch.zeros(1, 4, 16, 16), 1.0, comfy.samplers.ksampler("euler"), torch.tensor(levels),
            cond(of, 1), cond(of, 2), latent(3)["samples"], disable_pbar=True,
        )  # fmt: skip
    assert open_recording(recording_folder("mine")).sigmas.tolist() == pytest.approx(sorted(levels[:-1], reverse=True))
    assert not [message for message in caplog.messages if message.startswith("Record Sensitivity:")]


def test_too_few_pictures_and_an_empty_recording_are_said():
    with pytest.raises(ValueError, match="'mine' holds no picture"):
        profile_of()
    generate("ink", 1)
    with pytest.raises(ValueError, match=r"holds 'ink' \(1\)"):
        profile_of()


def test_labels_must_fit_the_batch_and_be_there():
    with pytest.raises(ValueError, match="'label' of Record Sensitivity names 3 and the batch holds 2"):
        run(recorded(model("sd15"), "a, b, c"), batch=2)
    with pytest.raises(ValueError, match="'label' is empty"):
        recorded(model("sd15"), " , ")
    for name in ("", "../x", "a/b", ".x"):
        assert "'series'" in CBProfileFromRecording.validate_inputs(name)


def test_a_new_picture_makes_the_profile_again():
    before = CBProfileFromRecording.fingerprint_inputs("mine")
    generate("ink", 1)
    assert CBProfileFromRecording.fingerprint_inputs("mine") != before


def test_a_recording_that_was_deleted_is_made_again():
    """Core would take the samplers' latents from its cache, and nothing would be recorded."""

    def mark():
        return CBRecordSensitivity.fingerprint_inputs("mine"), CBRecordSensitivity.fingerprint_inputs(None)

    first = mark()
    generate("ink", 1)
    generate("ink", 2)
    assert mark() == first  # no run is for nothing: what it made is there
    files()[0].unlink()
    assert mark() == first  # one that was taken out on purpose stays out
    shutil.rmtree(recording_folder("mine"))
    again = mark()
    assert again[0] != first[0] and again[1] != first[1]
    generate("ink", 1)
    assert mark() == again


def test_profiles_are_compared_in_words_and_a_chart():
    for seed, label in enumerate(("ink", "ink", "oil", "oil")):
        generate(label, seed)
    found = profile_of().args[0]
    chart, words = CBCompareProfiles.execute(found, found, **{"lambda": 0.43}).args
    assert chart.shape[0] == 1 and "the same layers come first" in words


def test_profiles_of_two_architectures_are_not_compared():
    generate("ink", 1)
    generate("ink", 2)
    generate("oil", 3)
    generate("oil", 4)
    found = profile_of().args[0]
    fewer = replace(found, layers=found.layers[1:], scores=found.scores[..., 1:], low=None, high=None)
    says = "^'profile_2' was measured on .* layers and 'profile_1' on .* of another architecture: connect"
    with pytest.raises(ValueError, match=says):
        CBCompareProfiles.execute(found, fewer, **{"lambda": 0.43})


@pytest.mark.parametrize("node", NODES)
def test_every_input_and_output_is_explained(node):
    schema = node.GET_SCHEMA()
    for socket in (*schema.inputs, *schema.outputs):
        assert socket.tooltip and len(socket.tooltip) > 15, socket


def test_a_transformer_is_recorded_as_it_generates():
    """Joint layers, a flow schedule: pure noise is left out, and what is recorded makes a profile."""
    of, places = tiny_transformer("sd3"), ["ink", "oil"]
    for seed, label in enumerate(places * 2):
        latent = {"samples": torch.zeros(1, 16, 8, 8)}
        given = {"positive": transformer_cond("sd3", 1 + seed), "negative": transformer_cond("sd3", 9)}
        sample(recorded(of, label), latent=latent, seed=seed, steps=3, **given)
    recording = open_recording(recording_folder("mine"))
    assert recording.layers == architecture_of(of).layers and recording.noise == "logit"
    assert sorted(recording.labels) == ["ink", "ink", "oil", "oil"] and float(recording.sigmas[0]) < 1
    found = profile_of().args[0]
    assert bool(found.scores.isfinite().all()) and found.noise == "logit"
