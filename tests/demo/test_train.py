"""Training: every part starts, stops, writes weights that load, and goes on from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from demo import train

SHORT = ["--samples", "8", "--batch", "4", "--pool", "8", "--processes", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    with torch.enable_grad():
        train.main(["autoencoder", "decoder", "judge", "unet", *SHORT, "--out", str(folder)])
    return folder


def test_every_part_writes_its_weights(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names == {f"{part}.safetensors" for part in ("autoencoder", "judge", "unet", "text_encoder")}
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


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["painter"])
    assert "there is no part 'painter'" in capsys.readouterr().err


def test_contrast_prefers_partners() -> None:
    first = torch.nn.functional.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    with_partners, with_others = (train.contrast(torch.cat([first, second])) for second in (first, first.roll(1, 0)))
    assert float(with_partners) < float(with_others)
