"""Benchmarks of the drawn world: what they compare is what they say, and their arithmetic on made-up pictures."""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import attribution, balance, blend, harness, layers, positions, structure
from conditional_balance.engine.attribution import normalised
from conditional_balance.runtime.attribution.find import ProbeSettings, find_subject
from conditional_balance.runtime.attribution.layers import chosen_layers
from conditional_balance.runtime.attribution.settings import AttributionSettings
from conditional_balance.runtime.attribution.subject import Subject
from demo import models, nets
from demo.world import atlas, sets, subjects
from demo.world.media import MEDIA

READ = attribution.READ["unet"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Discs in the colours of their hands instead of drawings."""
    axis = (torch.arange(atlas.SIDE) + 0.5) / atlas.SIDE * 2 - 1
    alpha = 255.0 * (torch.hypot(axis, axis[:, None]) < 0.9)
    colours = torch.rand(len(sets.HANDS), 1, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    drawings = torch.cat([colours * alpha, alpha.expand(len(sets.HANDS), 1, 1, -1, -1)], 2)
    drawings = drawings.expand(-1, len(subjects.SUBJECTS), -1, -1, -1)
    folder = tmp_path_factory.mktemp("drawn")
    atlas.pack(atlas.Atlas(drawings.byte().contiguous(), tuple(sets.HANDS), subjects.SUBJECTS), folder / "atlas.bin")
    return folder


@pytest.fixture(scope="module")
def truth(prepared: Path) -> harness.Truth:
    return harness.Truth(prepared)


@pytest.fixture(scope="module")
def demo() -> Iterator[harness.Demo]:
    threads = torch.get_num_threads()
    yield harness.Demo(torch.float32)
    torch.set_num_threads(threads)


@pytest.fixture
def paintings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "PAINTINGS", tmp_path)


def chosen(**values: Any) -> Namespace:
    painted = {"weights": models.WEIGHTS, "model": "unet", "content": "well drawn", "position": "auto", "share": 1.0}
    return Namespace(**{"count": 2, "steps": 2, "seed": 0} | painted | values)


@pytest.fixture
def looking(demo: harness.Demo, truth: harness.Truth, paintings: None) -> None:
    attribution.share_objects(demo, truth, chosen(), attribution.paintings(chosen()))


@pytest.mark.parametrize("against", [False, True])
def test_a_map_of_the_benchmark_is_the_one_that_the_node_finds(looking: None, against: bool) -> None:
    job = attribution.Job("drawn", "two subjects", 1)
    case = attribution.case_of(job)
    way = attribution.Way("attention", AttributionSettings("attention", READ.auto))
    mine = normalised(attribution.maps_of(job, case, way)[int(against), 2])
    subject = case.subject if against else Subject(case.subject.conditioning, case.subject.phrases)
    settings = AttributionSettings("attention", propagation=2)
    latent = case.latents[attribution.LEVELS[0]]
    found = find_subject(attribution.DEMO.model, latent, subject, ProbeSettings(attribution.LEVELS, seed=1), settings)
    torch.testing.assert_close(mine, found.maps[0, 0], rtol=1e-2, atol=1e-2)


def test_scenes_show_what_their_situation_says(looking: None) -> None:
    pairs = {tuple(sorted(pair)) for pair in attribution.alike(harness.content("well drawn"))}
    for index in range(4):
        one, two, alike = (attribution.scene(name, index) for name in attribution.SITUATIONS)
        assert one.subject[0, 1] == attribution.NOTHING and (two.subject[0] != attribution.NOTHING).all()
        assert tuple(sorted(subjects.SUBJECTS[row] for row in alike.subject[0].tolist())) in pairs
        assert all(specs.place != attribution.NOTHING for specs in (one, two, alike))


def test_the_mask_is_the_targets_and_the_rest_names_the_other(looking: None) -> None:
    for index in (0, 1):
        job = attribution.Job("drawn", "two subjects", index)
        case, specs = attribution.case_of(job), attribution.scene("two subjects", index)
        words = [subjects.WORDS[row] for row in specs.subject[0].tolist()]
        assert case.subject.phrases[0].text == words[job.target]
        assert case.subject.surroundings[0].text == words[1 - job.target]
        true = attribution.TRUTH.rendered(specs)[1][0, job.target] > 0.5
        assert torch.equal(case.masks[0], true)


def test_measures_of_planted_maps() -> None:
    side = attribution.SIZE
    masks = torch.zeros(2, side, side, dtype=torch.bool)
    masks[0, 40:120, 20:80], masks[1, 40:120, 110:170] = True, True
    found = dict(zip(attribution.MEASURES, attribution.measures(masks[0].float(), masks).tolist(), strict=False))
    assert found["IoU own"] > 0.93 and found["AP"] == pytest.approx(1) and found["pointing"] == 1
    assert found["on the other"] == 0
    found = dict(zip(attribution.MEASURES, attribution.measures(masks.any(0).float(), masks).tolist(), strict=False))
    assert 0.4 < found["IoU own"] < 0.55 and found["on the other"] == pytest.approx(0.5, abs=0.05)
    assert attribution.ceiling(masks[0]) > 0.9


def test_ways_are_compared_on_the_pictures_that_both_saw() -> None:
    value = torch.zeros(len(attribution.MEASURES) + len(attribution.THRESHOLDS))
    rows = []
    for number in range(4):
        row = {name: value + 0.5 for name in attribution.names(READ) if "output" not in name}
        if number == 0:
            row |= {name: value + 0.7 for name in attribution.names(READ) if "output" in name}
        rows.append(row)
    found = attribution.beside(READ, rows, READ.default)["grad_sam_output, layers o4-5"]["alone"]
    assert found["mean"] == pytest.approx(0.2, abs=1e-4)


def test_pairs_of_the_blend_share_a_style_and_neither_subject_nor_place(
    demo: harness.Demo, truth: harness.Truth, paintings: None
) -> None:
    blend.share_objects(demo, truth, chosen(), blend.paintings(chosen()))
    blend.pair.cache_clear()
    alone, other = blend.pair(0), blend.pair(1)
    blend.pair.cache_clear()
    assert alone.theirs == blend.NOTHING and not alone.other_mask.any()
    assert other.theirs not in other.specs.subject[0].tolist() and other.other_mask.any()
    outside = ~(other.mask > 0) & ~(other.other_mask > 0)
    assert torch.equal(other.composed[0, :, outside], other.reference[0, :, outside])
    inside = other.mask == 1
    assert torch.equal(other.composed[0, :, inside], other.kept[0, :, inside])


def test_a_triple_shows_one_scene_by_two_hands(prepared: Path, paintings: None) -> None:
    settings = chosen(amount=0.43)
    studio = structure.Studio(Namespace(**vars(settings), prepared=prepared, rounds=1, references=1))
    with torch.no_grad():
        triple = studio.triple(0)
        assert triple.reference.specs.hand != triple.specs.hand
        assert triple.reference.specs.subject[0, 0] != triple.specs.subject[0, 0]
        by_a, by_b = (studio.measured(picture, triple) for picture in (triple.by_a, triple.by_b))
    rather, to_a, to_b = (structure.MEASURES.index(name) for name in ("B rather than A", "to A", "to B"))
    assert by_a[to_a] < 1e-2 < by_a[to_b] and by_a[rather] == 0
    assert by_b[to_b] < 1e-2 < by_b[to_a] and by_b[rather] == 1


def planted(references: int = 4) -> list[dict[str, Any]]:
    """Layers whose measured effects tell the true ones exactly."""
    dice = torch.Generator().manual_seed(0)
    true = torch.rand(21, generator=dice)
    seen = layers.Seen(0.4, torch.zeros(2, 5))
    return [
        {
            "plain": seen, "gain": true + 0.01 * torch.rand(21, generator=dice), "loss": 1 - true,
            "measured gain": 2 * true, "measured loss": 3 - true, "measured_s": 1.0, "run_s": 1.0,
        }
        for _ in range(references)
    ]  # fmt: skip


def test_rankings_of_layers_are_compared_with_the_truth() -> None:
    profile, rounds = harness.profile_of("unet"), planted()
    found = layers.summarised(rounds, profile, chosen(prompts=2))
    assert found["agreement"]["measured gain against true gain"]["mean"] > 0.98
    assert found["agreement"]["measured loss against true loss"]["mean"] == pytest.approx(1)
    assert found["cost_of_greedy"] == pytest.approx(1 / (21 * 22 / 2))
    assert found["halves agree"]["true gain"] > 0.98


def test_each_ranking_picks_its_share_of_layers() -> None:
    profile, rounds = harness.profile_of("unet"), planted()
    found = layers.picks(profile, rounds, 1)
    assert {name: len(text.split(",")) for name, text in found.items() if name.endswith("0.43")} == {
        f"{name} 0.43": 9 for name in layers.RANKINGS
    }
    best = str(profile.layers[int(rounds[1]["measured gain"].argmax())])
    assert best in found["measured gain 0.2"].split(", ")


@pytest.fixture(scope="module")
def flowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's weights with a transformer of random ones, whose gates are open."""
    folder = tmp_path_factory.mktemp("weights")
    for path in models.WEIGHTS.glob("*.safetensors"):
        (folder / path.name).symlink_to(path)
    torch.manual_seed(0)
    network = nets.new_transformer("cpu")
    for name, weight in network.named_parameters():
        if "mod" in name or "final_layer" in name:
            torch.nn.init.normal_(weight, std=0.02)
    (folder / "transformer.safetensors").unlink(missing_ok=True)
    save_file({name: weight.contiguous() for name, weight in network.state_dict().items()},
              folder / "transformer.safetensors")  # fmt: skip
    return folder


@pytest.fixture
def transformer(flowing: Path, truth: harness.Truth, paintings: None) -> Iterator[tuple[harness.Demo, Namespace]]:
    shutil.copy(harness.profile_file("transformer"), flowing)
    yield (
        harness.Demo(torch.float32, weights=flowing, paints="transformer"),
        chosen(weights=flowing, model="transformer", prompts=1, cfg=3.0),
    )


def test_attribution_reads_the_transformer(transformer: tuple[harness.Demo, Namespace], truth: harness.Truth) -> None:
    demo, asked = transformer
    attribution.share_objects(demo, truth, asked, attribution.paintings(asked))
    job = attribution.Job("generated", "two subjects", 0)
    case = attribution.case_of(job)
    found = {
        way.name: attribution.maps_of(job, case, way) for way in attribution.ways(attribution.READ["transformer"], job)
    }
    assert attribution.READ["transformer"].default in found
    auto = chosen_layers(demo.model, AttributionSettings())
    assert {str(layer) for layer in auto.targets} == {"s0", "s1", "s2", "s3"}
    assert all(maps.isfinite().all() and maps.std() > 0 for maps in found.values())
    assert not torch.equal(*(found[name] for name in list(found)[:2]))


@pytest.mark.parametrize("network", ["unet", "transformer"])
def test_every_way_to_look_is_one_that_the_network_allows(network: str, flowing: Path, paintings: None) -> None:
    of = harness.Demo(torch.float32, weights=flowing, paints=network).model
    ways = list(attribution.ways(attribution.READ[network]))
    assert all(chosen_layers(of, way.settings).targets for way in ways)
    assert any(way.settings.method == "grad_sam_output" for way in ways) == (network == "unet")


def test_blend_and_balance_paint_with_the_transformer(
    transformer: tuple[harness.Demo, Namespace], truth: harness.Truth
) -> None:
    demo, asked = transformer
    blend.share_objects(demo, truth, asked, blend.paintings(asked))
    blend.pair.cache_clear()
    picture, mask = blend.made(blend.Job("blend x0, grad_sam", 0))
    blend.pair.cache_clear()
    assert picture.shape == (1, 3, 192, 192) and mask.shape == (24, 24)
    balance.share_objects(demo, None, harness.profile_of("unet"), asked, *[harness.Paintings("balance", "test")] * 2)
    balance.pair.cache_clear()
    plain, shared = (
        balance.painted(balance.Job("known hands", policy, 1.0, 0)) for policy in (balance.NONE, balance.ALL)
    )
    balance.pair.cache_clear()
    assert plain.shape == shared.shape and not torch.allclose(plain, shared, atol=1e-3)


@pytest.mark.parametrize("content", list(harness.CONTENTS))
def test_masks_and_blends_are_of_the_content_that_is_asked_for(
    content: str, demo: harness.Demo, truth: harness.Truth, paintings: None
) -> None:
    asked, (known, media) = chosen(content=content), harness.content(content)
    blend.share_objects(demo, truth, asked, blend.paintings(asked))
    attribution.share_objects(demo, truth, asked, attribution.paintings(asked))
    blend.pair.cache_clear()
    pairs = [blend.pair(index) for index in range(2)]
    blend.pair.cache_clear()
    shown = [specs for pair in pairs for specs in (pair.specs, pair.second)]
    shown += [attribution.scene(name, index) for name in attribution.SITUATIONS for index in range(2)]
    for specs in shown:
        assert set(specs.subject.flatten().tolist()) <= {-1, *subjects.rows_of(known)}
        assert {list(MEDIA)[row] for row in specs.medium.tolist()} <= set(media)


def test_measured_layers_are_those_that_measure_layers_puts_first(
    transformer: tuple[harness.Demo, Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    demo, asked = transformer
    monkeypatch.setattr(balance, "MEASURED_LEVELS", 1)
    folders = balance.kept(asked, harness.sharing(asked))
    balance.share_objects(demo, None, harness.profile_of("transformer"), asked, *folders)
    found = balance.measured_profile("known hands", 0)
    gate = balance.gate_of(balance.Job("known hands", "measured", 0.1, 0))
    sigma = float(found.sigmas[0])
    opened = gate.weights(sigma, found.layers, lambda percent: sigma).amax(0)
    assert opened.sum() == 1 and int(opened.argmax()) == int(found.scores[0, 0].argmin())
    for kept in (balance.pair, balance.measured_profile):
        kept.cache_clear()


@pytest.mark.parametrize("content", list(harness.CONTENTS))
def test_balance_paints_the_content_that_is_asked_for(
    content: str, demo: harness.Demo, paintings: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In references and in what is painted in their style."""
    asked = chosen(content=content, prompts=2, cfg=3.0)
    balance.share_objects(demo, None, harness.profile_of("unet"), asked, *balance.kept(asked))
    monkeypatch.setattr(harness, "painted_reference", lambda demo, specs, *_: harness.Painted(specs, None, None))
    balance.pair.cache_clear()
    pairs = [balance.pair("known hands", index) for index in range(4)]
    balance.pair.cache_clear()
    known, media = harness.content(content)
    rows = {-1, *subjects.rows_of(known)}
    for specs in (each for reference, wanted in pairs for each in (reference.specs, wanted)):
        assert set(specs.subject.flatten().tolist()) <= rows
        assert {list(MEDIA)[row] for row in specs.medium.tolist()} <= set(media)


@pytest.mark.parametrize("asked", [{"share": 2.0}, {"position": "keep"}, {"position": "keep", "share": 2.0}])
def test_what_was_painted_with_other_sharing_is_not_taken(asked: dict[str, Any], paintings: None) -> None:
    usual, other = (chosen(prompts=1, cfg=3.0, **sharing) for sharing in ({}, asked))
    assert balance.kept(usual, harness.sharing(usual))[0].folder == balance.kept(usual)[0].folder
    assert balance.kept(other, harness.sharing(other))[0].folder != balance.kept(usual)[0].folder


def test_other_weights_have_a_profile_of_their_own(tmp_path: Path) -> None:
    assert harness.profile_file("unet") == harness.PROFILES / "demo.style.safetensors"
    assert harness.profile_file("unet", tmp_path) == tmp_path / "demo.style.safetensors"
    with pytest.raises(SystemExit, match=r"python dev\.py train profile"):
        harness.profile_of("unet", tmp_path)


def test_what_was_painted_of_other_content_is_not_taken(paintings: None) -> None:
    folders = {balance.kept(chosen(content=name, prompts=1, cfg=3.0))[0].folder for name in harness.CONTENTS}
    assert len(folders) == len(harness.CONTENTS)


def test_positions_are_compared_on_the_same_scenes(transformer: tuple[harness.Demo, Namespace]) -> None:
    demo, asked = transformer
    balance.share_objects(
        demo, None, harness.profile_of("unet"), asked, *[harness.Paintings("balance", "positions")] * 2
    )
    balance.pair.cache_clear()
    way = "keep, q or k", (balance.ALL, 1.0), 0
    found = dict(zip(positions.COLUMNS, positions.measured(way)[0].tolist(), strict=True))
    kept, shifted = (positions.painted((f"{name}, q or k", *way[1:])) for name in ("keep", "shift"))
    balance.pair.cache_clear()
    assert not torch.allclose(kept, shifted, atol=1e-3)
    assert -2 <= found["layout copied"] <= 2 and 0 < found["style distance"] < 2


def test_a_copied_layout_is_seen() -> None:
    reference = torch.rand(1, 3, 192, 192, generator=torch.Generator().manual_seed(0))
    found = positions.alike(torch.cat([0.5 + 0.3 * reference, 1 - reference]), reference)
    torch.testing.assert_close(found, torch.tensor([1.0, -1.0]))


def test_content_that_no_benchmark_knows_is_named() -> None:
    with pytest.raises(SystemExit, match=r"--content is one of 'all subjects', .*; it is 'dragons'"):
        harness.content("dragons")


def test_a_model_that_no_benchmark_knows_is_named() -> None:
    with pytest.raises(SystemExit, match="--model is one of unet, transformer; it is 'flux'"):
        harness.network("flux")


@pytest.mark.parametrize("paints", ["unet", "transformer"])
def test_weights_that_are_not_there_are_one_sentence(paints: str, tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit, match=rf"^There is no {paints}\.safetensors in .*`python dev.py train {paints}` first"
    ):
        harness.Demo(weights=tmp_path, paints=paints)


def test_a_profile_that_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = harness.NETWORKS["transformer"]._replace(profile=tmp_path / "demo.transformer.style.safetensors")
    monkeypatch.setitem(harness.NETWORKS, "transformer", lacking)
    with pytest.raises(SystemExit, match=r"`python dev\.py train profile` first"):
        harness.profile_of("transformer")
