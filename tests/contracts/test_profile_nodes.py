"""The profiling nodes as the executor calls them: what they show, and one clear sentence for every bad input."""

from __future__ import annotations

import errno
from pathlib import Path

import folder_paths
import numpy as np
import pytest
import tiny_transformers
import torch
from comfy_api.latest import io
from PIL import Image

import tiny
from conditional_balance.nodes import profile as nodes
from conditional_balance.nodes.profile import (
    NODES,
    CBImageClusters,
    CBLoadImageClusters,
    CBLoadSensitivityProfile,
    CBProfileSensitivity,
    CBSaveSensitivityProfile,
)
from conditional_balance.nodes.shown import recall
from conditional_balance.runtime.profile.subjects import names_written

PUBLISHED = "sdxl-base-1.0.style.published.safetensors"


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """ComfyUI's folders, in a place of the test's own; the shipped profiles stay where they are."""
    for name in ("input", "temp", "user"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    shipped = str(Path(nodes.__file__).resolve().parent.parent / nodes.FOLDER)
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, nodes.FOLDER, ([str(tmp_path / "user"), shipped], {nodes.SUFFIX})
    )


def pictures(count: int, seed: int = 0, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(seed))


def clustered(images: torch.Tensor, name: str, previous: tuple = (), subjects: str = "") -> io.NodeOutput:
    """Image Cluster as core runs it: every input is a list."""
    return CBImageClusters.execute([images], [name], [previous], [subjects])


def clusters(*counts: int):
    made = ()
    for number, count in enumerate(counts):
        made = clustered(pictures(count, number), f"style {number}", made)[0]
    return made


def profile(model, vae, groups=None, positive=None, negative=None, **widgets):
    settings = {
        "measures": "style",
        "noise_levels": 2,
        "features": "q and k",
        "seed": 0,
        "aspect": "from images",
        "size": 64,
        "distance": "jensen_shannon",
    }
    with torch.inference_mode():
        return CBProfileSensitivity.execute(
            model, clusters(2, 2) if groups is None else groups, vae, positive or tiny.cond(model, 1),
            negative=negative, **(settings | widgets),
        )  # fmt: skip


def write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = (pictures(1, number)[0].numpy() * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.mark.parametrize("node", NODES)
def test_every_input_and_output_is_explained(node):
    schema = node.GET_SCHEMA()
    assert schema.category.startswith("conditional balance/") and schema.node_id == node.__name__
    for socket in (*schema.inputs, *schema.outputs):
        assert socket.tooltip and len(socket.tooltip) > 15, socket
    assert node.INPUT_TYPES() and issubclass(node, io.ComfyNode)


def test_a_profile_comes_with_its_heat_map_and_report_and_shows_them(sdxl_model, vae):
    out = profile(sdxl_model, vae, negative=tiny.cond(sdxl_model, 2), features="q, k and v", noise_levels=3)
    measured, heat_map, text = out.args
    assert measured.features == ("q", "k", "v") and measured.scores.shape == (3, 3, 17)
    assert heat_map.shape[0] == 1 and heat_map.shape[2:] == (1024, 3) and 0 <= float(heat_map.min())
    assert "most sensitive" in text and "2 clusters: style 0 (2), style 1 (2)" in text and "24 image passes" in text
    assert out.ui["text"] == (text,) and recall(out.ui["cb_profile"][0]) is measured
    facts = measured.provenance
    assert facts["size"] == [64, 64] and facts["model"]["name"] == "SDXL" and facts["seed"] == 0


def test_save_and_load_round_trip_through_the_users_folder(sd15_model, vae, tmp_path):
    measured = profile(sd15_model, vae).args[0]
    CBSaveSensitivityProfile.execute(measured, "mine.style")
    assert [path.name for path in (tmp_path / "user").iterdir()] == ["mine.style.safetensors"]
    folder_paths.filename_list_cache.clear()
    assert CBLoadSensitivityProfile.validate_inputs("mine.style.safetensors") is True
    out = CBLoadSensitivityProfile.execute("mine.style.safetensors", sd15_model)
    assert torch.equal(out.args[0].scores, measured.scores) and out.args[0].layers == measured.layers
    assert "finetune" not in out.ui["text"][0]
    other = CBLoadSensitivityProfile.execute("mine.style.safetensors", tiny.tiny_model("sd15", seed=5))
    assert "another finetune" in other.ui["text"][0] and torch.equal(other.args[0].scores, measured.scores)


def test_the_shipped_profile_is_listed_and_loads_without_a_model():
    assert PUBLISHED in CBLoadSensitivityProfile.define_schema().inputs[0].options
    out = CBLoadSensitivityProfile.execute(PUBLISHED)
    assert len(out.args[0].layers) == 70 and "published" in out.args[2]


def test_a_profile_of_another_architecture_is_refused(sd15_model):
    with pytest.raises(ValueError, match="The profile was measured on 70 attention layers and the model has 16"):
        CBLoadSensitivityProfile.execute(PUBLISHED, sd15_model)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "  ",
        "../evil",
        "a/b",
        "a\\b",
        "/etc/x",
        "C:x",
        ".hidden",
        "a\nb",
        ".safetensors",
        "NUL",
        "com1.style",
        "CONIN$",
        "conout$.style",
        "COM\u00b9",
        "lpt\u00b3.style",
        "aux .x",
        "dots...",
        "spaces .safetensors",
        "a\u202eb",
        "\ud800",
        "x" * 300,
    ],
)
def test_names_that_are_no_plain_file_name_are_refused(sd15_model, vae, name, tmp_path):
    measured = CBLoadSensitivityProfile.execute(PUBLISHED).args[0]
    with pytest.raises(ValueError, match="'name'"):
        CBSaveSensitivityProfile.execute(measured, name)
    assert not list((tmp_path / "user").iterdir())


def test_a_full_disk_is_said_with_file_and_cure(tmp_path, monkeypatch):
    measured = CBLoadSensitivityProfile.execute(PUBLISHED).args[0]

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"'mine\.safetensors' was not saved in .*No space left .*: free some space"):
        CBSaveSensitivityProfile.execute(measured, "mine")
    assert not list((tmp_path / "user").iterdir())


@pytest.mark.parametrize("measures", ["x" * 500, "\ud800"])
def test_a_question_that_could_not_be_saved_is_refused_before_the_run(sd15_model, vae, measures):
    with pytest.raises(ValueError, match="'measures'"):
        profile(sd15_model, vae, measures=measures)


@pytest.mark.parametrize("name", ["none.safetensors", "../input/secret.safetensors", "/etc/passwd"])
def test_a_profile_that_is_not_listed_is_refused_before_and_during_the_run(name):
    assert "'profile'" in CBLoadSensitivityProfile.validate_inputs(name)
    with pytest.raises(ValueError, match="'profile'"):
        CBLoadSensitivityProfile.execute(name)


def test_a_corrupt_file_is_named(tmp_path):
    (tmp_path / "user" / "bad.safetensors").write_bytes(b"not a profile")
    folder_paths.filename_list_cache.clear()
    with pytest.raises(ValueError, match=r"'bad\.safetensors' cannot be read"):
        CBLoadSensitivityProfile.execute("bad.safetensors")


def test_clusters_grow_and_a_name_used_twice_adds_to_its_cluster():
    made = clusters(2, 3)
    more = clustered(pictures(1, 9), " style 0 ", made)[0]
    assert [(c.name, len(c.images)) for c in more] == [("style 0", 3), ("style 1", 3)]
    assert [len(c.images) for c in made] == [2, 3]


def test_a_folder_of_folders_becomes_clusters_of_any_sizes(tmp_path, sd15_model, vae):
    write_images(tmp_path / "input" / "styles" / "oil", 3)
    write_images(tmp_path / "input" / "styles" / "ink", 2)
    (tmp_path / "input" / "styles" / "ink" / "notes.txt").write_text("no image")
    wide = Image.fromarray((pictures(1, 7, 60, 130)[0].numpy() * 255).astype(np.uint8))
    wide.save(tmp_path / "input" / "styles" / "ink" / "9.jpg")
    assert CBLoadImageClusters.define_schema().inputs[0].options == ["styles"]
    loaded = CBLoadImageClusters.execute("styles", 12)[0]
    assert [(c.name, len(c.images)) for c in loaded] == [("ink", 3), ("oil", 3)]
    assert [len(c.images) for c in CBLoadImageClusters.execute("styles", 2)[0]] == [2, 2]
    assert profile(sd15_model, vae, loaded).args[0].provenance["clusters"] == {"ink": 3, "oil": 3}


def write_named(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = (pictures(1, number)[0].numpy() * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)


def subjects(loaded) -> dict[str, tuple[str, ...]]:
    return {cluster.name: cluster.subjects for cluster in loaded}


def test_files_of_one_name_are_one_subject_and_so_are_folders_of_subjects(tmp_path):
    styles = tmp_path / "input" / "styles"
    write_named(styles, "ink/Cat.png", "ink/dog.png", "oil/cat.jpg", "oil/owl.png")
    write_named(styles, "wash/cat/1.png", "wash/cat/2.png", "wash/dog/7.png")
    out = CBLoadImageClusters.execute("styles", 12)
    assert subjects(out[0]) == {"ink": ("cat", "dog"), "oil": ("cat", "owl"), "wash": ("cat", "dog", "cat")}
    assert "3 subjects, 2 of them in two clusters or more" in out.ui["cb_summary"][0]
    assert subjects(CBLoadImageClusters.execute("styles", 2)[0])["wash"] == ("cat", "dog")
    assert not any(map(any, subjects(CBLoadImageClusters.execute("styles", 12, "none")[0]).values()))


def test_a_folder_of_a_subject_may_be_called_like_its_style_or_the_series(tmp_path):
    write_named(
        tmp_path / "input" / "ink",
        *(f"{style}/{subject}/1.png" for style in ("ink", "oil") for subject in ("ink", "cat")),
    )
    assert subjects(CBLoadImageClusters.execute("ink", 12)[0]) == {"ink": ("cat", "ink"), "oil": ("cat", "ink")}


def test_a_subject_is_one_however_its_letters_are_written(tmp_path):
    """Folders that come from a Mac may hold an accent as a character of its own."""
    write_named(tmp_path / "input" / "styles", "ink/caf\u00e9.png", "ink/dog.png", "oil/cafe\u0301.png", "oil/owl.png")
    found = subjects(CBLoadImageClusters.execute("styles", 12)[0])
    assert found == {"ink": ("caf\u00e9", "dog"), "oil": ("caf\u00e9", "owl")}


def test_chinese_and_japanese_commas_separate_names():
    assert names_written("\u72d0\u72f8\uff0c\u718a\u3001cat, dog\n", "subjects") == (
        "\u72d0\u72f8",
        "\u718a",
        "cat",
        "dog",
    )


def test_names_that_only_count_are_no_subjects_unless_told(tmp_path):
    styles = tmp_path / "input" / "styles"
    write_named(styles, *(f"{style}/ComfyUI_{number:05}_.png" for style in ("ink", "oil") for number in (1, 2)))
    assert not any(map(any, subjects(CBLoadImageClusters.execute("styles", 12)[0]).values()))
    told = subjects(CBLoadImageClusters.execute("styles", 12, "file names")[0])
    assert told["ink"] == told["oil"] == ("comfyui_00001_", "comfyui_00002_")
    seen = {CBLoadImageClusters.fingerprint_inputs("styles", 12, reading) for reading in ("auto", "file names")}
    assert len(seen) == 2


def test_a_list_of_pictures_is_one_cluster_and_a_list_of_names_makes_one_of_each():
    tall, wide = pictures(1, 0, 64, 32), pictures(2, 1, 32, 64)
    (one,) = CBImageClusters.execute([tall, wide], ["ink"], [None], ["cat, dog, owl"])[0]
    assert [image.aspect for image in one.images] == [0.5, 2, 2]
    assert one.subjects == ("cat", "dog", "owl")
    two = CBImageClusters.execute([wide, wide], ["oil", "ink"], [(one,)], ["cat, dog"])[0]
    assert [(each.name, each.subjects) for each in two] == [
        ("ink", ("cat", "dog", "owl", "cat", "dog")),
        ("oil", ("cat", "dog")),
    ]
    assert CBImageClusters.execute([tall], ["pen"], [(one,), two])[0][0].subjects == one.subjects + two[0].subjects
    with pytest.raises(ValueError, match="'images' of cluster 'ink' is empty"):
        CBImageClusters.execute([], ["ink"])


def test_subjects_are_written_one_for_each_image_or_one_for_all():
    made = clustered(pictures(2), "ink", subjects="cat, dog\n")[0]
    made = clustered(pictures(2, 1), "ink", made, "owl")[0]
    made = clustered(pictures(1, 2), "ink", made)[0]
    assert made[0].subjects == ("cat", "dog", "owl", "owl", "")
    with pytest.raises(ValueError, match="'subjects' names 3 subjects and 'images' holds 2"):
        clustered(pictures(2), "ink", subjects="cat, dog, owl")


def crossed(*names: str, styles: int = 3):
    made = ()
    for style in range(styles):
        made = clustered(pictures(len(names), style), f"style {style}", made, ", ".join(names))[0]
    return made


def test_a_crossed_series_gives_both_scores_in_profile_report_and_file(sd15_model, vae):
    out = profile(sd15_model, vae, crossed("cat", "dog", "owl"))
    measured, _, text = out.args
    assert measured.content.score.shape == measured.scores.shape and measured.low is not None
    assert "Read as a crossed series of 3 subjects (cat, dog, owl)" in text and "style and content rankings" in text
    assert "The subjects do NOT clearly separate" in text and "Crossed series" in out.ui["cb_summary"][0]
    CBSaveSensitivityProfile.execute(measured, "both")
    folder_paths.filename_list_cache.clear()
    back = CBLoadSensitivityProfile.execute("both.safetensors").args[0]
    assert torch.equal(back.content.score, measured.content.score)


@pytest.mark.parametrize("names", [("cat", "cat"), ("", "")], ids=["one subject", "no labels"])
def test_without_recurring_subjects_the_numbers_are_the_plain_ones(sd15_model, vae, names):
    labelled = profile(sd15_model, vae, crossed(*names)).args[0]
    plain = profile(sd15_model, vae, clusters(2, 2, 2)).args[0]
    assert labelled.content is None
    for name in ("scores", "low", "high"):
        assert torch.equal(getattr(labelled, name), getattr(plain, name))
    assert labelled.provenance["separation"] == plain.provenance["separation"]


@pytest.mark.parametrize(("sure", "stops"), [(0.0, False), (0.3, True), (0.99, False)])
def test_measuring_stops_when_the_ranking_is_sure_enough(sd15_model, vae, sure, stops):
    """Styles of plain colour are told apart from a quarter of the pictures on; 0.99 is out of reach of so few."""
    made, names = (), "cat, dog, owl, elk, ape, cow, fox, hen"
    for style in range(4):
        colour = torch.rand(1, 1, 1, 3, generator=torch.Generator().manual_seed(style))
        made = clustered(0.8 * colour + 0.2 * pictures(8, 9), f"style {style}", made, names)[0]
    out = profile(sd15_model, vae, made, stop_when_sure=sure)
    facts = out.args[0].provenance
    assert ("stopped" in facts) == stops == ("Measured" in out.args[2])
    measured = facts["stopped"]["images"] if stops else 32
    assert facts["cost"]["forward_passes"] == 2 * measured
    assert not stops or (8 <= measured < 32 and facts["stopped"]["of"] == 32 and facts["stopped"]["sure"] >= sure)
    assert ("pairs" in facts) == (sure > 0 and not stops)


def test_a_series_that_looks_crossed_without_labels_is_said(sd15_model, vae):
    subject = pictures(3)
    made = ()
    for style in range(3):
        made = clustered(0.9 * subject + 0.1 * pictures(3, 5 + style), f"style {style}", made)[0]
    out = profile(sd15_model, vae, made)
    assert "looks crossed" in out.args[2] and "name its subjects" in out.ui["cb_summary"][0]


def test_changed_pictures_are_noticed(tmp_path):
    write_images(tmp_path / "input" / "styles" / "oil", 2)
    before = CBLoadImageClusters.fingerprint_inputs("styles", 12)
    assert before == CBLoadImageClusters.fingerprint_inputs("styles", 12)
    Image.new("RGB", (64, 64)).save(tmp_path / "input" / "styles" / "oil" / "2.png")
    assert before != CBLoadImageClusters.fingerprint_inputs("styles", 12)


def test_an_empty_folder_is_named(tmp_path):
    (tmp_path / "input" / "styles" / "oil").mkdir(parents=True)
    with pytest.raises(ValueError, match="'folder': 'styles' has no subfolders with images"):
        CBLoadImageClusters.execute("styles", 12)


@pytest.mark.parametrize("name", ["missing", "..", "../..", "/", ""])
def test_a_folder_that_is_not_offered_is_refused(name):
    assert "'folder'" in CBLoadImageClusters.validate_inputs(name)
    with pytest.raises(ValueError, match="'folder'"):
        CBLoadImageClusters.execute(name, 12)


def test_an_unreadable_picture_is_named(tmp_path):
    write_images(tmp_path / "input" / "styles" / "oil", 1)
    (tmp_path / "input" / "styles" / "oil" / "broken.png").write_bytes(b"\x89PNG nonsense")
    with pytest.raises(ValueError, match=r"'oil/broken\.png'"):
        CBLoadImageClusters.execute("styles", 12)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((3,), "^'clusters' holds one cluster: give it two or more"),
        ((3, 1), "^'clusters': 'style 1' has 1 image; give it two or more"),
        ((), "^'clusters' holds no cluster: "),
    ],
)
def test_too_few_clusters_or_images_are_refused(sd15_model, vae, counts, words):
    with pytest.raises(ValueError, match=words):
        profile(sd15_model, vae, clusters(*counts))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_pictures_that_are_not_finite_are_refused(bad):
    images = pictures(2)
    images[1, 3, 4, 0] = bad
    with pytest.raises(ValueError, match="'images' of cluster 'ink'"):
        clustered(images, "ink")


@pytest.mark.parametrize(("images", "name", "words"), [(2, " ", "'name' is empty"), (0, "ink", "'images' of cluster")])
def test_a_cluster_without_name_or_images_is_refused(images, name, words):
    with pytest.raises(ValueError, match=words):
        clustered(pictures(images), name)


def test_nan_inside_the_model_is_blamed_on_a_layer(sd15_model, vae):
    model = tiny.tiny_model("sd15")
    with torch.inference_mode():
        model.model.diffusion_model.input_blocks[4][1].transformer_blocks[0].attn1.to_q.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"'model' gives no finite numbers in layer i4\.0"):
        profile(model, vae)


def test_a_vae_of_another_family_is_refused(sd15_model, vae):
    class SixteenChannels:
        def encode(self, pixels):
            return vae.encode(pixels).repeat(1, 4, 1, 1)

    with pytest.raises(ValueError, match="'vae' makes latents"):
        profile(sd15_model, SixteenChannels())


def test_a_model_of_no_known_family_is_refused_politely(vae):
    model = tiny.tiny_model("sd15")
    with torch.inference_mode():
        model.model.diffusion_model = torch.nn.Linear(1, 1)
    cond = tiny.cond(tiny.tiny_model("sd15"), 1)
    with pytest.raises(ValueError, match="'model' cannot be used here: its network Linear is none whose layers"):
        profile(model, vae, positive=cond)
    with pytest.raises(ValueError, match="'model' cannot be used here: its network Linear is none whose layers"):
        CBLoadSensitivityProfile.execute(PUBLISHED, model)


def test_a_profile_of_one_family_on_another_model_is_one_sentence():
    with pytest.raises(ValueError, match=r"and the model has 5 \(i4\.0.* and j0-1, s0-2\)"):
        CBLoadSensitivityProfile.execute(PUBLISHED, tiny_transformers.tiny_transformer("flux"))


@pytest.mark.parametrize(
    ("aspect", "size", "expected"),
    [("1:1", 256, [256, 256]), ("16:9", 256, [320, 192]), ("from images", 128, [192, 64]), ("2:3", 64, [64, 64])],
)
def test_pictures_are_cropped_to_one_size(sd15_model, vae, aspect, size, expected):
    wide = clustered(pictures(2, 0, 40, 120), "a")[0]
    wide = clustered(pictures(2, 1, 40, 120), "b", wide)[0]
    measured = profile(sd15_model, vae, wide, aspect=aspect, size=size, noise_levels=1).args[0]
    assert measured.provenance["size"] == expected
