"""Training: every part starts, stops, writes weights that load, and goes on from them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from demo import train, world
from demo.training import captions, judge
from demo.training.diffusion import coupled_attention, noised, plain_attention, pooled_error, signal_shares
from demo.training.pictures import Pool, contour_pool, in_other_styles, joined
from demo.training.unet import couples, diptychs

SHORT = ["--samples", "8", "--batch", "4", "--pool", "8", "--processes", "1"]
PARTS = ("autoencoder", "judge", "unet", "text_encoder", "controlnet")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    with torch.enable_grad():
        train.main(["autoencoder", "decoder", "judge", "unet", "controlnet", *SHORT, "--out", str(folder)])
    return folder


def test_every_part_writes_its_weights(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names == {f"{part}.safetensors" for part in PARTS}
    for name in names:
        assert all(bool(torch.isfinite(tensor).all()) for tensor in load_file(trained / name).values())


def test_it_goes_on_from_weights_that_are_there(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = load_file(trained / "unet.safetensors")
    with torch.enable_grad():
        train.main(["unet", *SHORT, "--out", str(trained)])
    assert "going on from unet.safetensors" in capsys.readouterr().out
    after = load_file(trained / "unet.safetensors")
    change = max(float((after[name].float() - weight.float()).abs().max()) for name, weight in before.items())
    assert 0 < change < 0.02  # a step or two of Adam, not a new start


def test_the_controlnet_learns_beside_a_unet_that_does_not(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step opens the zero convolutions, a second run goes on from there, and the UNet's file stays as it is."""
    folder = shutil.copytree(trained, tmp_path / "weights")
    (folder / "controlnet.safetensors").unlink()
    unet = (folder / "unet.safetensors").read_bytes()
    with torch.enable_grad():
        train.main(["controlnet", *SHORT, "--out", str(folder)])
        first = load_file(folder / "controlnet.safetensors")
        train.main(["controlnet", *SHORT, "--out", str(folder)])
    second = load_file(folder / "controlnet.safetensors")
    assert all(float(first[f"zero_convs.{slot}.0.weight"].abs().max()) > 0 for slot in range(6))
    assert float(first["middle_block_out.0.weight"].abs().max()) > 0
    assert "going on from controlnet.safetensors" in capsys.readouterr().out
    change = max(float((second[name].float() - weight.float()).abs().max()) for name, weight in first.items())
    assert 0 < change < 0.02
    assert (folder / "unet.safetensors").read_bytes() == unet
    assert (folder / "controlnet.safetensors").stat().st_size < 9e6


def test_without_a_unet_there_is_no_controlnet(trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "autoencoder.safetensors", tmp_path)
    with pytest.raises(SystemExit, match="train the part 'unet' first"):
        train.main(["controlnet", *SHORT, "--out", str(tmp_path)])


def test_edge_maps_are_pooled_in_the_order_of_their_scenes() -> None:
    specs = world.random_specs(40, torch.Generator().manual_seed(0))
    pool = contour_pool(specs)
    assert pool.shape == (40, 128, 128) and pool.dtype == torch.uint8
    own = world.contours(world.draw_scene(specs[35:36], 128))
    assert float((pool[35:36].float() / 255 - own).abs().max()) < 0.01


@pytest.fixture(scope="module")
def pool() -> Pool:
    """Latents that tell their row; rows i and i + 20 share a style."""
    half = world.random_specs(20, torch.Generator().manual_seed(0))
    specs = joined(half, world.random_specs(20, torch.Generator().manual_seed(1)).in_style_of(half))
    return Pool(torch.arange(40.0)[:, None, None, None].expand(-1, 8, 16, 16), torch.zeros(40, 6, 16, 16), specs)


def agrees(specs: world.Specs, rows: torch.Tensor) -> torch.Tensor:
    """[B, 3]: whether captions say of subject, background and family what pictures show, or leave it out."""
    shown = torch.stack([specs.subject, specs.background, specs.family[:, 0]], 1)
    named = torch.stack(captions.parts_named(rows), 1)
    return (named == shown) | (named == torch.tensor(captions.CAPTION_PARTS) - 1)


def test_captions_say_what_the_pictures_show_or_leave_it_out(pool: Pool) -> None:
    torch.manual_seed(0)
    latents, _, rows, _ = couples(pool, pool.latents[20:], 64)
    assert agrees(pool.specs[latents[:, 0, 0, 0].long()], rows).all()
    assert len(rows.unique()) > 20 and (rows < captions.single_captions()).all()


def test_couples_are_two_scenes_in_one_style(pool: Pool) -> None:
    first, second = couples(pool, pool.latents[20:], 64)[0][:, 0, 0, 0].long().chunk(2)
    assert torch.equal(first + 20, second)


def test_only_the_second_of_a_couple_drifts_and_toward_its_own_scene(pool: Pool) -> None:
    torch.manual_seed(0)
    latents, _, _, drift = couples(pool, pool.latents[20:] ** 2, 64)
    first, second = drift.chunk(2)
    share = second / (latents[32:] ** 2 - latents[32:])
    assert not first.any() and ((share >= 0) & (share < 1)).all()
    assert float(share.std((1, 2, 3)).max()) < 1e-4 and share[:, 0, 0, 0].unique().numel() > 20


def test_what_is_to_be_predicted_leads_back_from_noise_and_drift() -> None:
    clean, drift = torch.randn(2, 8, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([0, 20, 100, 300, 500, 700, 900, 999])
    alpha = signal_shares()[times][:, None, None, None]
    torch.manual_seed(0)
    noisy, target = noised(clean, times, torch.float32, drift)
    torch.manual_seed(0)
    straight, _ = noised(clean, times, torch.float32)
    sigma = (1 - alpha**2).sqrt()
    assert torch.allclose(alpha * noisy - sigma * target, clean, atol=1e-5)
    assert torch.allclose(noisy - straight, torch.minimum(sigma, alpha) * drift, atol=1e-5)


def test_strayed_pictures_show_the_same_scenes_in_other_styles() -> None:
    specs = world.random_specs(400, torch.Generator().manual_seed(0))
    strayed = in_other_styles(specs, torch.Generator().manual_seed(1))
    assert all(torch.equal(getattr(strayed, part), getattr(specs, part)) for part in ("subject", "background", "pose"))
    assert not torch.equal(strayed.style, specs.style)
    assert 0.45 < float((strayed.family == specs.family).all(1).float().mean()) < 0.7  # half, and one in nine by chance


def test_only_the_second_of_a_couple_sees_the_other() -> None:
    dice = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 5, 8, generator=dice)
    first, second = coupled_attention(None, q, k, v, 2)
    both = (part.flatten(0, 1)[None] for part in (k, v))
    assert torch.allclose(first, plain_attention(None, q[:1], k[:1], v[:1], 2)[0])
    assert torch.allclose(second, plain_attention(None, q[1:], *both, 2)[0], atol=1e-6)
    words = torch.randn(2, 2, 7, 8, generator=dice)
    assert torch.equal(coupled_attention(None, q, *words, 2), plain_attention(None, q, *words, 2))


@pytest.mark.parametrize("size", [1, 4, 16])
def test_means_weigh_what_latents_weigh(size: int) -> None:
    """An estimate that is merely the noisy picture is off by noise / alpha in v: a loss of about 1 at every scale."""
    times = torch.full((64,), 20)
    noise = torch.randn(64, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    error = noise / signal_shares()[times][:, None, None, None]
    assert float(pooled_error(error, times, size)) == pytest.approx(1, abs=0.12)
    assert float(pooled_error(noise, times, 1)) == pytest.approx(float(noise.square().mean()))


def test_diptychs_name_the_style_of_both_halves_or_nothing(pool: Pool) -> None:
    torch.manual_seed(0)
    latents, _, rows = diptychs(pool, 64)
    assert latents.shape == (32, 8, 16, 32)
    left, right = latents[:, 0, 0, 0].long(), latents[:, 0, 0, 16].long()
    assert torch.equal(left + 20, right) and agrees(pool.specs[left], rows).all()
    assert (rows >= captions.single_captions()).all()


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["painter"])
    assert "there is no part 'painter'" in capsys.readouterr().err


def test_contrast_prefers_partners() -> None:
    first = torch.nn.functional.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    with_partners, with_others = (judge.contrast(torch.cat([first, second])) for second in (first, first.roll(1, 0)))
    assert float(with_partners) < float(with_others)


def test_a_remixed_style_is_of_no_family() -> None:
    specs = world.random_specs(200, torch.Generator().manual_seed(0), remixed=True)
    is_pure = (specs.family == specs.family[:, :1]).all(1)
    names = judge.family_or_none(specs)
    assert bool((names[~is_pure] == judge.NONE).all()) and torch.equal(names[is_pure], specs.family[is_pure, 0])
    assert 0 < int(is_pure.sum()) < 200
