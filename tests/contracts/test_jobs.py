"""The nodes of common jobs: the results of the nodes that they are made of, and one sentence for every bad input."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from style_case import HEIGHT, WIDTH, differ, empty, model, run, styled, tiny_controlnet
from test_transformers import run as run_transformer
from tiny_transformers import KINDS, tiny_transformer

from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.engine.profile_file import save
from conditional_balance.nodes import jobs
from conditional_balance.nodes.gate import CBSelectLayers
from conditional_balance.nodes.gradsam import CBGradSAMBlend
from conditional_balance.nodes.structure import CBGateControlNet
from conditional_balance.runtime.arch.fingerprint import fingerprint_of
from conditional_balance.runtime.arch.registry import architecture_of
from conditional_balance.runtime.attribution.subject import read_subject
from conditional_balance.runtime.inject.picture import encoded, latent_of
from conditional_balance.runtime.inject.reference import StyleReference
from conditional_balance.runtime.profile.choosing import choose_profile, guessed_order
from tiny import cond, tiny_vae

BY_ID = {node.define_schema().node_id: node for node in jobs.NODES}


def output(node_id: str, **inputs: Any) -> Any:
    """Execute a node as the server does: every widget that is not given has its default."""
    schema = BY_ID[node_id].define_schema()
    defaults = {each.id: each.default for each in schema.inputs if getattr(each, "default", None) is not None}
    with torch.inference_mode():
        return BY_ID[node_id].execute(**{**defaults, **inputs})


def encoded_picture(of: Any, **size: int) -> torch.Tensor:
    with torch.inference_mode():
        return latent_of(tiny_vae(), picture(**size), of)


def picture(seed: int = 3, height: int = 8 * HEIGHT, width: int = 8 * WIDTH) -> torch.Tensor:
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's profiles, empty."""
    paths, kinds = folder_paths.folder_names_and_paths[jobs.FOLDER]
    shipped = [path for path in paths if Path(path).resolve() == jobs.SHIPPED]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, jobs.FOLDER, ([str(tmp_path), *shipped], kinds))
    return tmp_path


def profile_for(of: Any, what: str = "style", **facts: Any) -> SensitivityProfile:
    layers = architecture_of(of).layers
    scores = torch.rand(2, 1, len(layers), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    facts = {"what": what, "model": fingerprint_of(of) | facts}
    return SensitivityProfile(layers, ("q", "k"), torch.tensor([1.0], dtype=torch.float64), scores, provenance=facts)


# Which ranking


def test_a_profile_of_this_checkpoint_comes_first_the_newest_of_several(own: Path) -> None:
    of = model("sd15")
    measured = profile_for(of)
    other = replace(measured, scores=1 - measured.scores)
    save(measured, own / "old.safetensors")
    save(other, own / "new.safetensors")
    old = (own / "old.safetensors").stat()
    os.utime(own / "old.safetensors", ns=(old.st_atime_ns, old.st_mtime_ns - 10**9))
    save(profile_for(of, "geometry"), own / "geometry.safetensors")
    choice = jobs._chosen(of)
    assert torch.equal(choice.profile.scores, other.scores)
    assert choice.words == "Layers by new, measured on this checkpoint."


def test_a_profile_of_another_finetune_is_better_than_a_guess(own: Path) -> None:
    of = model("sd15")
    save(profile_for(of, weights="0" * 16), own / "mine.safetensors")
    assert jobs._chosen(of).words == "Layers by mine, measured on another checkpoint of this family."


def test_profiles_of_other_models_and_broken_files_are_left_out(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(profile_for(model("sdxl")), own / "other.safetensors")
    (own / "broken.safetensors").write_bytes(b"nothing")
    choice = jobs._chosen(model("sd15"))
    assert choice.words.startswith("Layers by a guess (o5.0, o6.0, o4.0 first)")
    assert "leaves out the profile broken" in caplog.text


@pytest.mark.parametrize(("name", "family"), [("sdxl-base-1.0.style", "SDXL base 1.0"), ("sd3.5-large.style", "SD3.5")])
def test_published_rankings_serve_their_family(name: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers of the real models; only their names are asked for."""
    from conditional_balance.engine.profile_file import load
    from conditional_balance.runtime.profile import choosing

    (path,) = [jobs.SHIPPED / each for each in jobs.RANKINGS if each.startswith(name)]
    layers = load(path).layers
    monkeypatch.setattr(choosing, "architecture_of", lambda of: type("Real", (), {"layers": layers}))
    monkeypatch.setattr(choosing, "fingerprint_of", lambda of: {"weights": "?", "widths": []})
    choice = choose_profile(None, [], [jobs.SHIPPED / each for each in jobs.RANKINGS])
    assert choice.words.startswith(f"Layers by the published ranking of {family}")


def test_sd15_without_a_profile_keeps_its_six_style_layers(own: Path) -> None:
    order = guessed_order(architecture_of(model("sd15")))
    assert set(order[:6]) == {LayerId("output", number) for number in range(3, 9)}
    made = output("CBStyleFromPicture", model=model("sd15"), clip=None, vae=tiny_vae(), image=picture())
    assert "6 of 16 layers" in made.ui["cb_summary"][0]
    assert made.ui["cb_about"][0].startswith("Layers by a guess")


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_of_transformers_has_a_guess(kind: str) -> None:
    layers = architecture_of(tiny_transformer(kind)).layers
    order = guessed_order(architecture_of(tiny_transformer(kind)))
    assert sorted(order) == sorted(layers)


# Style from Picture


def test_it_is_the_chain_of_nodes_that_it_stands_for(own: Path, clip: Any) -> None:
    of, vae = model("sd15"), tiny_vae()
    (made,) = output("CBStyleFromPicture", model=of, clip=clip, vae=vae, image=picture(), shows="ink").args
    reference = StyleReference(encoded_picture(of), encoded(clip, "ink"))
    assert torch.equal(run(made, batch=1), run(styled(of, "o3-8", reference), batch=1))


def test_it_styles_sdxl_and_leaves_the_model_alone(own: Path) -> None:
    of = model("sdxl")
    before = run(of, batch=1)
    (made,) = output("CBStyleFromPicture", model=of, clip=None, vae=tiny_vae(), image=picture()).args
    assert differ(run(made, batch=1), before)
    assert torch.equal(run(of, batch=1), before)
    (off,) = output("CBStyleFromPicture", model=of, clip=None, vae=tiny_vae(), image=picture(), **{"lambda": 0.0}).args
    assert torch.equal(run(off, batch=1), before)


def test_it_styles_a_transformer(own: Path) -> None:
    of = tiny_transformer("sd3")
    made = output("CBStyleFromPicture", model=of, clip=None, vae=tiny_vae(channels=16), image=picture())
    assert differ(run_transformer(made.args[0], "sd3"), run_transformer(of, "sd3"))


def test_a_preset_stands_for_its_amount(own: Path) -> None:
    common = {"model": model("sd15"), "clip": None, "vae": tiny_vae(), "image": picture()}
    chosen = {"preset": "strong 0.75", "lambda": 0.1}, {"lambda": 0.75}
    summaries = [output("CBStyleFromPicture", **common, **values).ui["cb_summary"][0] for values in chosen]
    named, by_hand = (re.sub(r"; [\d.]+ s$|\.$", "", words) for words in summaries)  # without the seconds it took
    assert named == by_hand and "Style amount 0.75: 12 of 16 layers" in named
    for name, amount in jobs.PRESETS.items():
        found = re.search(r"\d*\.?\d+$", name)  # as js/presets.js reads it
        assert (found and float(found[0])) == amount


def test_a_connected_profile_wins(own: Path) -> None:
    of = model("sd15")
    made = output("CBStyleFromPicture", model=of, clip=None, vae=tiny_vae(), image=picture(), profile=profile_for(of))
    assert made.ui["cb_about"] == ["Layers by your profile."]


def test_large_pictures_are_brought_to_the_area_that_the_model_paints() -> None:
    assert tuple(encoded_picture(model("sd15"), height=1024, width=2048).shape[2:]) == (45, 91)
    assert tuple(encoded_picture(model("sd15"), height=64, width=72).shape[2:]) == (8, 9)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"vae": None}, "'vae' is empty"),
        ({"clip": None, "shows": "ink"}, "'clip' is empty, and 'what it shows' needs it"),
        ({"image": torch.full((1, 64, 64, 3), float("nan"))}, "'image' holds NaN or infinite values: connect"),
        ({"image": torch.zeros(1, 64, 64, 7)}, "'image' is a tensor of shape"),
        ({"vae": "sixteen"}, "'vae' makes latents of 16 channels and 'model' wants 4"),
        ({"lambda": 7.5}, "'lambda' is 7.5"),
        ({"exclude": "z9"}, "'exclude': "),
        ({"pin": "z9"}, "'pin': "),
        ({"policy": "wild"}, "'policy': there is no 'wild'"),
        ({"start_percent": float("nan")}, "'start_percent' is nan"),
        ({"start_percent": 0.9, "end_percent": 0.1}, "'end_percent' (0.1) lies before 'start_percent'"),
        ({"shows": "x" * 100_001}, "'shows' is too long"),
        ({"preset": "wild"}, "'preset': there is no 'wild'"),
    ],
)
def test_bad_input_gets_one_sentence(wrong: dict[str, Any], words: str, own: Path, clip: Any) -> None:
    wrong = wrong | ({"vae": tiny_vae(channels=16)} if wrong.get("vae") == "sixteen" else {})
    inputs = {"model": model("sd15"), "clip": clip, "vae": tiny_vae(), "image": picture(), **wrong}
    with pytest.raises(ValueError, match=re.escape(words)):
        output("CBStyleFromPicture", **inputs)


@pytest.mark.parametrize("node_id", ["CBStyleFromPicture", "CBStyleAndStructure"])
def test_a_new_profile_makes_the_node_run_again(node_id: str, own: Path) -> None:
    before = BY_ID[node_id].fingerprint_inputs()
    assert BY_ID[node_id].fingerprint_inputs() == before
    save(profile_for(model("sd15")), own / "mine.safetensors")
    assert BY_ID[node_id].fingerprint_inputs() != before


def test_blanks_are_no_words_of_what_a_picture_shows(own: Path) -> None:
    """So they need no text encoder, and the picture is read under the run's own prompt."""
    common = {"model": model("sd15"), "clip": None, "vae": tiny_vae(), "image": picture()}
    blank, empty_text = (output("CBStyleFromPicture", **common, shows=shows).args[0] for shows in (" \n ", ""))
    assert torch.equal(run(blank, batch=1), run(empty_text, batch=1))


@pytest.mark.parametrize("node_id", ["CBStyleFromPicture", "CBKeepSubject"])
def test_a_batch_of_pictures_is_told_that_one_is_taken(node_id: str, own: Path, clip: Any) -> None:
    common = {"model": model("sd15"), "clip": clip, "vae": tiny_vae()}
    one, two = (output(node_id, **common, image=picture().repeat(count, 1, 1, 1)).ui for count in (1, 2))
    assert not one["cb_warning"] and two["cb_warning"] == ["'image' holds 2 pictures: the first is taken."]


def test_an_empty_latent_takes_the_style_at_its_own_size(own: Path) -> None:
    of = model("sd15")
    made = output("CBStyleFromPicture", model=of, clip=None, vae=tiny_vae(), image=picture(height=200, width=120)).args
    assert run(made[0], latent=empty(1, 16, 8), batch=1).shape[2:] == (16, 8)


# Keep My Subject


def test_it_keeps_the_subject_as_the_nodes_that_it_stands_for(clip: Any) -> None:
    of = model("sd15")
    common = {"model": of, "clip": clip, "vae": tiny_vae(), "image": picture()}
    texts = {"prompt": "a red fox in the snow", "phrase": "red fox", "surroundings": "snow"}
    made, latent, positive, _ = output("CBKeepSubject", **common, **texts).args
    subject = read_subject(clip, *texts.values())
    defaults = jobs._settled(CBGradSAMBlend, {})
    reference = {"samples": encoded_picture(of)}
    blended, canvas, _ = CBGradSAMBlend.execute(model=of, reference=reference, subject=subject, **defaults).args
    assert torch.equal(latent["samples"], canvas["samples"]) and not latent["samples"].any()
    options = {"positive": positive, "latent": latent, "steps": 4, "batch": 1}
    kept = run(made, **options)
    assert torch.equal(kept, run(blended, **options))
    assert differ(kept, run(of, **options))


def test_what_is_left_out_is_not_taken_and_is_said(clip: Any) -> None:
    inputs = {"model": model("sd15"), "clip": clip, "vae": tiny_vae(), "image": picture()}
    options = {"latent": output("CBKeepSubject", **inputs).args[1], "steps": 4, "batch": 1}
    whole, empty_mask = torch.ones(1, 64, 128), torch.zeros(1, 64, 64)  # Load Image's of a picture without alpha
    plain, left, same = (
        output("CBKeepSubject", **inputs, **more) for more in ({}, {"leave_out": whole}, {"leave_out": empty_mask})
    )
    options["positive"] = plain.args[2]
    assert torch.equal(run(left.args[0], **options), run(inputs["model"], **options))
    assert torch.equal(run(same.args[0], **options), run(plain.args[0], **options))
    assert "what 'leave out' does not cover comes from the picture" in left.ui["cb_summary"][0]
    assert "all else comes from the picture" in same.ui["cb_summary"][0]


def test_a_mask_beyond_one_covers_as_one_does_and_nan_is_refused(clip: Any) -> None:
    inputs = {"model": model("sd15"), "clip": clip, "vae": tiny_vae(), "image": picture()}
    half = torch.zeros(1, 64, 128)
    half[..., :64] = 1
    one, many = (output("CBKeepSubject", **inputs, leave_out=each).args for each in (half, 255 * half))
    options = {"positive": one[2], "latent": one[1], "steps": 4, "batch": 1}
    assert torch.equal(run(one[0], **options), run(many[0], **options))
    with pytest.raises(ValueError, match="mask holds NaN"):
        output("CBKeepSubject", **inputs, leave_out=half * torch.nan)


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("a red fox in the snow", "red fox"),
        ("(red fox:1.2), snow, photo", "red fox"),
        ("Photo of a woman with a hat", "woman"),
        ("an old inn", "old inn"),
        ("cat", "cat"),
        ("the cat on a mat", "cat"),
        ("  ", ""),
    ],
)
def test_without_a_subject_the_first_words_name_it(prompt: str, subject: str) -> None:
    assert jobs.subject_in(prompt) == subject


def test_it_says_what_it_keeps(clip: Any) -> None:
    made = output("CBKeepSubject", model=model("sd15"), clip=clip, vae=tiny_vae(), image=picture())
    assert made.ui["cb_summary"][0].startswith("Keeps 'red fox' in 128 x 64 pixels")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"clip": None}, "'clip' is empty, and 'prompt' needs it"),
        ({"vae": None}, "'vae' is empty"),
        ({"prompt": ""}, "'subject' is empty: write the words of the prompt"),
        ({"phrase": "bear"}, "'subject': 'bear' is not in the prompt"),
        ({"surroundings": "sea"}, "'surroundings': 'sea' is not in the prompt"),
        ({"image": torch.full((1, 64, 64, 3), float("inf"))}, "'image' holds NaN or infinite values"),
    ],
)
def test_what_cannot_be_kept_gets_one_sentence(wrong: dict[str, Any], words: str, clip: Any) -> None:
    inputs = {"model": model("sd15"), "clip": clip, "vae": tiny_vae(), "image": picture(), **wrong}
    with pytest.raises(ValueError, match=re.escape(words)):
        output("CBKeepSubject", **inputs)


def test_windows_are_read_before_the_run() -> None:
    assert "'windows'" in str(BY_ID["CBKeepSubject"].validate_inputs(windows="0.9-0.1"))
    assert BY_ID["CBKeepSubject"].validate_inputs(windows=None) is True


# Style and Structure


def test_style_and_structure_are_the_chain_that_they_stand_for(own: Path, clip: Any) -> None:
    """The control set on the positive prompt alone acts on the negative one too, as Apply ControlNet sets both."""
    from nodes import ControlNetApplyAdvanced

    of, hint = model("sd15"), picture(8)
    common = {"model": of, "clip": clip, "vae": tiny_vae(), "control_net": tiny_controlnet("sd15")}
    made, positive = output(
        "CBStyleAndStructure", **common, style_image=picture(), structure_image=hint, prompt="a fox", shows="ink"
    ).args
    gate, _ = jobs._gate(jobs._chosen(of), jobs._settled(CBSelectLayers, {"lambda": 0.57}))
    reference = StyleReference(encoded_picture(of), encoded(clip, "ink"))
    settings = jobs._settled(CBGateControlNet, {})
    gated = CBGateControlNet.execute(control_net=tiny_controlnet("sd15"), **settings).args[0]
    both = ControlNetApplyAdvanced().apply_controlnet(encoded(clip, "a fox"), cond(of, 2), gated, hint, 0.8, 0.0, 1.0)
    expected = run(styled(of, gate, reference), batch=1, positive=both[0], negative=both[1], steps=3)
    found = run(made, batch=1, positive=positive, steps=3)
    assert torch.equal(found, expected)
    plain = run(made, batch=1, positive=encoded(clip, "a fox"), steps=3)
    assert differ(found, plain)


def test_without_strength_no_control_acts(own: Path, clip: Any) -> None:
    common = {"model": model("sd15"), "clip": clip, "vae": tiny_vae(), "control_net": tiny_controlnet("sd15")}
    pictures = {"style_image": picture(), "structure_image": picture(8)}
    _, positive = output("CBStyleAndStructure", **common, **pictures, control_strength=0.0).args
    assert all("control" not in extra for _, extra in positive)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"clip": None}, "'clip' is empty, and 'prompt' needs it"),
        ({"style_image": torch.full((1, 64, 64, 3), float("nan"))}, "'style_image' holds NaN"),
        ({"lambda": -1.0}, "'lambda' is -1"),
        ({"pin": "z9"}, "'pin': "),
        ({"control_net": None}, "'control_net' is empty"),
        ({"structure_image": torch.zeros(1, 64, 64, 7)}, "'structure_image' is a tensor of shape"),
    ],
)
def test_what_has_no_structure_gets_one_sentence(wrong: dict[str, Any], words: str, own: Path, clip: Any) -> None:
    inputs = {"model": model("sd15"), "clip": clip, "vae": tiny_vae(), "control_net": tiny_controlnet("sd15")}
    inputs |= {"style_image": picture(), "structure_image": picture(8), **wrong}
    with pytest.raises(ValueError, match=re.escape(words)):
        output("CBStyleAndStructure", **inputs)
