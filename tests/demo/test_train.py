"""Training: every part writes weights that load, and a stop changes nothing."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from demo import gpu, nets, train
from demo.training import couples, prepare, transformer
from demo.training.autoencoder import load_autoencoder
from demo.training.loop import Trainer, save
from demo.training.pool import Pool, World, drawn_pairs, in_other_styles
from demo.training.run import Run
from demo.world import atlas, scenes, sets, subjects
from demo.world.words import load_vocabulary, new_vocabulary

TINY = ["--batch", "4", "--pool", "4", "--renew", "2", "--sheet", "0", "--processes", "1", "--save-every", "0"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas of small discs instead of drawings, and the words."""
    folder = tmp_path_factory.mktemp("prepared")
    axis = (torch.arange(32) + 0.5) / 16 - 1
    disc = (torch.hypot(axis, axis[:, None]) < 0.9).byte()
    drawings = torch.full((len(sets.HANDS), len(subjects.SUBJECTS), 4, 32, 32), 255, dtype=torch.uint8) * disc
    drawings[:, :, :3] //= torch.arange(1, 11, dtype=torch.uint8)[:, None, None, None, None]
    atlas.pack(atlas.Atlas(drawings, tuple(sets.HANDS), subjects.SUBJECTS), folder / "atlas.bin")
    new_vocabulary().save(folder / "words.json")
    return folder


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    with torch.enable_grad():
        train.main([*TINY, "--samples", "8", "--prepared", str(prepared), "--out", str(folder)])
    return folder


def test_every_part_writes_its_weights(trained: Path) -> None:
    parts = {"autoencoder", "unet", "text_encoder", "controlnet", "transformer"}
    assert {path.stem for path in trained.glob("*.safetensors")} == parts
    for part in parts:
        assert all(bool(torch.isfinite(weight).all()) for weight in load_file(trained / f"{part}.safetensors").values())
    assert sum(path.stat().st_size for path in trained.glob("*.safetensors")) < 60e6


def test_an_atlas_that_was_cut_short_does_not_count_as_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_short(_: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare.atlas, "draw_atlas", lambda: None)
    monkeypatch.setattr(prepare.atlas, "pack", cut_short)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(tmp_path)
    assert not (tmp_path / "atlas.bin").exists()


def test_what_is_finished_is_left_alone(trained: Path, prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in trained.glob("*.safetensors")}
    train.main([*TINY, "--samples", "8", "--prepared", str(prepared), "--out", str(trained)])
    assert capsys.readouterr().out.count("finished before") == 4
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_training_does_not_go_on_with_other_pictures(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = ["autoencoder", *TINY, "--samples", "20", "--prepared", str(prepared), "--out", str(tmp_path)]
    apply = Trainer.apply

    def dies(self: Trainer, gradients: list[torch.Tensor], progress: float) -> None:
        if self.count == 2:
            raise KeyboardInterrupt
        apply(self, gradients, progress)

    with torch.enable_grad(), monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Trainer, "apply", dies)
        train.main(order)
    for name, value in (("subjects", "5"), ("batch", "6"), ("repeated", "0.5"), ("often", "4")):
        with pytest.raises(SystemExit, match=rf"autoencoder\.checkpoint was begun with --{name} .*, not {value}:"):
            train.main([*order, f"--{name}", value])
    with torch.enable_grad():
        train.main(order)
    assert (tmp_path / "autoencoder.safetensors").exists()


def test_a_training_does_not_go_on_from_other_weights(tmp_path: Path) -> None:
    counted = {"batch": 2, "processes": 1, "subjects": 5, "often": 0, "repeated": 0.0, "samples": 9.0, "rank": 0}
    options = Namespace(**counted, minutes={"unet": 1.0}, out=tmp_path, fresh=False, begin=tmp_path / "one")
    Run("unet", options, Trainer(torch.nn.Linear(2, 2), rate=0.0)).save(False)
    Run("unet", options, Trainer(torch.nn.Linear(2, 2), rate=0.0))
    options.begin = None
    with pytest.raises(SystemExit, match=r"was begun with --begin .*one, not without"):
        Run("unet", options, Trainer(torch.nn.Linear(2, 2), rate=0.0))


@pytest.mark.parametrize("part", ["autoencoder", "unet"])
def test_a_training_that_was_killed_ends_where_it_would_have(
    part: str, trained: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        if part == "unet":
            (folder / "autoencoder.safetensors").write_bytes((trained / "autoencoder.safetensors").read_bytes())
    order = [part, *TINY, "--samples", "20", "--prepared", str(prepared)]
    apply = Trainer.apply

    def dies(self: Trainer, gradients: list[torch.Tensor], progress: float) -> None:
        if self.count == 3:
            raise KeyboardInterrupt
        apply(self, gradients, progress)

    with torch.enable_grad():
        train.main([*order, "--out", str(whole)])
        monkeypatch.setattr(Trainer, "apply", dies)
        with pytest.raises(KeyboardInterrupt):
            train.main([*order, "--out", str(killed)])
        monkeypatch.setattr(Trainer, "apply", apply)
        assert not train.finished(part, train_options(killed))
        train.main([*order, "--out", str(killed)])
    one, other = (load_file(folder / f"{part}.safetensors") for folder in (whole, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def train_options(out: Path):
    return type("Options", (), {"out": out, "fresh": False})


def test_the_clock_stops_a_part_and_its_weights_are_there(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = ["autoencoder", *TINY, "--samples", "1e9", "--stop", "0.02", "--prepared", str(prepared)]
    with torch.enable_grad():
        train.main([*order, "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "stopped by the clock" in said or "no time left" in said
    assert "no time left" in said or (tmp_path / "autoencoder.safetensors").exists()


def test_nothing_is_trained_without_an_atlas(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="train prepare"):
        train.main(["unet", *TINY, "--prepared", str(tmp_path), "--out", str(tmp_path)])


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["painter"])
    assert "there is no part 'painter'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.main(["unet", "prepare"])
    assert "'prepare' is a command of its own" in capsys.readouterr().err


@pytest.mark.parametrize("step", range(8))
def test_a_pool_that_is_filled_late_stands_as_one_that_was_renewed(step: int) -> None:
    def block(number: int) -> torch.Tensor:
        return torch.full((2,), float(number))

    renewed, late = Pool(block, 3, 2), Pool(block, 3, 2)
    renewed.fill(0)
    for number in range(step):
        renewed.renew(number)
    late.fill(step)
    assert torch.equal(renewed.content, late.content)
    assert sorted(late.content.unique().tolist()) == [step, step + 1, step + 2]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_pairs_shows_the_same_twice_in_other_poses(share: float, prepared: Path, trained: Path) -> None:
    asked = train_options(trained)
    asked.device, asked.dtype, asked.processes = "cpu", torch.float32, 1
    drawings = train.prepared_atlas(prepared)
    words = load_vocabulary(prepared / "words.json")
    world = World(drawings, drawings.half(), words, subjects.SUBJECTS, "cpu", torch.float32, 0, share)
    pairs = drawn_pairs(world, load_autoencoder(asked), 40, 0, False)
    again = (pairs.subject[:, 0] == pairs.subject[:, 1]).all(1)
    assert abs(float(again.float().mean()) - share) < 0.2
    assert not torch.isclose(pairs.latents[again, 0], pairs.latents[again, 1]).flatten(1).all(1).any()


def test_a_share_beyond_all_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["unet", "--repeated", "1.5"])
    assert "--repeated must lie between 0 and 1" in capsys.readouterr().err


def test_three_of_four_blocks_keep_to_the_subjects_that_come_often(prepared: Path, trained: Path) -> None:
    asked = train_options(trained)
    asked.device, asked.dtype, asked.processes = "cpu", torch.float32, 1
    drawings = train.prepared_atlas(prepared)
    words = load_vocabulary(prepared / "words.json")
    often = subjects.EASIEST_FIRST[:3]
    world = World(drawings, drawings.half(), words, subjects.KNOWN_SUBJECTS, "cpu", torch.float32, 0, often=often)
    vae = load_autoencoder(asked)
    shown = [set(drawn_pairs(world, vae, 6, number, False).subject.flatten().tolist()) for number in range(5)]
    few = {scenes.NOTHING, *subjects.rows_of(often)}
    assert [kept <= few for kept in shown] == [False, True, True, True, False]


def test_more_frequent_subjects_than_there_are_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["unet", "--subjects", "10", "--often", "11"])
    assert "--often must lie between 2 and the number of subjects" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (["unet", "--begin", "nowhere"], "without unet.safetensors and text_encoder.safetensors"),
        (["controlnet", "--begin", "demo/weights"], "--begin is for the UNet's training"),
    ],
)
def test_weights_that_no_training_can_begin_with_are_refused(
    order: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train.main(order)
    assert said in " ".join(capsys.readouterr().err.split())


def test_strayed_scenes_are_by_possible_hands() -> None:
    specs = scenes.random_specs(400, torch.Generator().manual_seed(0))
    strayed = in_other_styles(specs, torch.Generator().manual_seed(1))
    one_colour = torch.isin(strayed.hand, torch.tensor([list(sets.HANDS).index(name) for name in sets.ONE_COLOUR]))
    assert torch.equal(one_colour, strayed.colour != scenes.NOTHING)
    assert torch.equal(strayed.subject, specs.subject)
    assert 0.4 < float((strayed.hand == specs.hand).float().mean()) < 0.7


def test_the_flows_velocity_leads_back_from_noise_and_drift() -> None:
    clean, noise, drift = torch.randn(3, 4, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([0.01, 0.3, 0.7, 1.0])
    noisy, velocity = transformer.flowing(clean, noise, levels, drift)
    assert torch.allclose(noisy - levels[:, None, None, None] * velocity, clean, atol=1e-5)
    straight, plain = transformer.flowing(clean, noise, levels, 0.0)
    assert torch.allclose(plain, noise - clean, atol=1e-4) and torch.allclose(straight[3], noise[3])


def test_only_the_second_of_a_couple_sees_the_others_picture() -> None:
    q, k, v = torch.randn(3, 4, 2, 7, 8, generator=torch.Generator().manual_seed(0))
    seen = couples.joint_attention(True, words=3)(None, q, k, v, 2)
    alone = couples.joint_attention(False)(None, q, k, v, 2)
    assert seen.shape == (4, 7, 16) and torch.equal(seen[:2], alone[:2])
    other = k.clone()
    other[:2, :, :3] += 1  # the first ones' words
    assert torch.equal(couples.joint_attention(True, words=3)(None, q, other, v, 2)[2:], seen[2:])
    other[:2, :, 3:] += 1
    assert not torch.allclose(couples.joint_attention(True, words=3)(None, q, other, v, 2)[2:], seen[2:])


def test_the_head_is_right_when_it_tells_what_is_there() -> None:
    head = couples.SubjectHead(couples.GROUND + 1)
    torch.nn.init.eye_(head.tell.weight[:, :, 0, 0].data)
    head.tell.bias.data.zero_()
    masks = torch.zeros(1, 2, 4, 4)
    masks[0, 0, :2] = 1
    batch = couples.Batch(torch.zeros(1), masks, torch.tensor([[5, scenes.NOTHING]]), torch.zeros(1), 0.0)
    told = torch.zeros(1, couples.GROUND + 1, 4, 4)
    told[0, 5, :2] = told[0, couples.GROUND, 2:] = 20
    with torch.no_grad():
        assert float(head(told, batch)) < 1e-3 < float(head(told.flip(2), batch))


def test_pieces_of_the_results_make_the_files_again(trained: Path, tmp_path: Path) -> None:
    gpu.split(trained, tmp_path / "pieces")
    assert all(piece.stat().st_size <= gpu.PIECE for piece in (tmp_path / "pieces").iterdir())
    gpu.join(tmp_path / "pieces", tmp_path / "whole")
    for path in trained.glob("*.safetensors"):
        assert (tmp_path / "whole" / path.name).read_bytes() == path.read_bytes()


def test_networks_begin_as_they_should() -> None:
    model = nets.new_transformer("cpu")
    latents, words = torch.randn(1, 8, 24, 24), torch.randn(1, 77, 128)
    with torch.no_grad():
        assert not model(latents, torch.tensor([0.5]), words, torch.randn(1, 128)).any()
    assert sum(p.numel() for p in model.parameters()) < 10e6
    assert sum(p.numel() for p in nets.new_unet("cpu").parameters()) < 12e6


def test_gradients_lie_in_memory_as_their_weights_do() -> None:
    net = torch.nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    trainer = Trainer(net, rate=1e-3)
    assert all(master.grad.stride() == master.stride() for master in trainer.masters)
    assert sum(master.grad.numel() for master in trainer.masters) == len(trainer.gradients)


def test_a_training_goes_on_from_weights_as_they_are_and_from_the_same_words(
    trained: Path, prepared: Path, tmp_path: Path
) -> None:
    begun, out = tmp_path / "begun", tmp_path / "out"
    for folder in (begun, out):
        folder.mkdir()
        (folder / "autoencoder.safetensors").write_bytes((trained / "autoencoder.safetensors").read_bytes())
    finer = {name: weight * 1.001 for name, weight in load_file(trained / "unet.safetensors").items()}
    save(finer, begun / "unet.safetensors")  # which bfloat16 cannot hold
    assert any(not torch.equal(weight, weight.bfloat16().half()) for weight in finer.values())
    words = (trained / "text_encoder.safetensors").read_bytes()
    (begun / "text_encoder.safetensors").write_bytes(words)
    order = ["unet", *TINY, "--samples", "1", "--prepared", str(prepared), "--out", str(out), "--begin", str(begun)]
    with torch.enable_grad():
        train.main([*order, "--rate", "0"])
    after = load_file(out / "unet.safetensors")
    assert all(torch.equal(finer[name], after[name]) for name in finer)
    with torch.enable_grad():
        train.main([*order, "--rate", "1e-3", "--fresh"])
    learnt = load_file(out / "unet.safetensors")
    assert any(not torch.equal(finer[name], learnt[name]) for name in finer)
    assert (out / "text_encoder.safetensors").read_bytes() == words
    learning = torch.load(out / "unet.checkpoint", weights_only=True)["trainer"]["masters"]
    assert len(learning) == len(list(nets.new_unet("cpu").parameters()))  # no words, and no head that knows nothing yet
