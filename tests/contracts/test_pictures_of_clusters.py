"""Pictures of every kind are read right or refused in one sentence, and take memory only while they are encoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conditional_balance.runtime.profile import pictures
from conditional_balance.runtime.profile.clusters import load_clusters, picture_size, with_cluster
from conditional_balance.runtime.profile.pictures import HeldPicture, StoredPicture, held, stored

RAMP = np.tile(np.linspace(0, 1, 96), (64, 1))  # 64 high, 96 wide, dark at the left
RED = (220, 30, 20)


def grey8() -> Image.Image:
    return Image.fromarray((RAMP * 255).round().astype(np.uint8))


def grey16() -> Image.Image:
    return Image.fromarray((RAMP * 65535).round().astype(np.uint16))


def big_endian() -> Image.Image:
    return Image.frombytes("I;16B", (96, 64), (RAMP * 65535).round().astype(">u2").tobytes())


def floats() -> Image.Image:
    return Image.fromarray(RAMP.astype(np.float32))


def clear(mode: str) -> Image.Image:
    """A red square on transparent black."""
    image = Image.new("RGBA", (96, 64), (0, 0, 0, 0))
    image.paste((*RED, 255), (32, 16, 64, 48))
    return image.convert(mode)


GREYS = {
    "8-bit grey": (grey8, "png"),
    "16-bit grey PNG": (grey16, "png"),
    "16-bit grey TIFF": (grey16, "tiff"),
    "big-endian 16-bit grey": (big_endian, "tiff"),
    "32-bit grey in the range of 16": (lambda: Image.fromarray((RAMP * 65535).round().astype(np.int32)), "tiff"),
    "float TIFF from 0 to 1": (floats, "tiff"),
    "grey with alpha": (lambda: grey8().convert("LA"), "png"),
    "colour": (lambda: grey8().convert("RGB"), "bmp"),
    "CMYK": (lambda: grey8().convert("RGB").convert("CMYK"), "tiff"),
    "palette": (lambda: grey8().convert("P"), "gif"),
    "WebP": (lambda: grey8().convert("RGB"), "webp"),
    "JPEG": (grey8, "jpg"),
}


@pytest.mark.parametrize(("make", "ending"), GREYS.values(), ids=GREYS)
def test_a_grey_ramp_is_the_same_ramp_in_every_format(tmp_path, make: Callable[[], Image.Image], ending: str):
    file = tmp_path / f"ramp.{ending}"
    make().save(file)
    read = stored(file).fitted(96, 64)
    assert read.shape == (64, 96, 3) and read.dtype == torch.float32
    torch.testing.assert_close(read, torch.from_numpy(RAMP).float()[..., None].expand(-1, -1, 3), atol=0.03, rtol=0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_white_paper(tmp_path, mode: str):
    (clear("RGBA").quantize(4) if mode == "P" else clear(mode)).save(tmp_path / "clear.png")
    read = stored(tmp_path / "clear.png").fitted(96, 64)
    assert bool((read[0, 0] > 0.97).all())
    assert float(read[32, 48, 2]) < 0.5


def test_a_palette_with_alpha_shows_white_paper():
    image = Image.new("RGB", (8, 8), RED).quantize(4).convert("PA")
    assert pictures.in_rgb(image).getpixel((0, 0)) == RED
    image.putalpha(0)
    assert pictures.in_rgb(image).getpixel((0, 0)) == (255, 255, 255)


def test_a_colour_that_stands_for_transparent_in_a_palette_shows_white(tmp_path):
    image = Image.new("P", (96, 64), 0)
    image.putpalette([0, 0, 0, *RED])
    image.save(tmp_path / "a.png", transparency=0)
    assert bool((stored(tmp_path / "a.png").fitted(96, 64) > 0.97).all())


def test_one_bit_is_black_and_white(tmp_path):
    grey8().convert("1", dither=Image.Dither.NONE).save(tmp_path / "a.png")
    read = stored(tmp_path / "a.png").fitted(96, 64)
    assert float(read[:, :40].max()) < 0.1 and float(read[:, -40:].min()) > 0.9


@pytest.mark.parametrize("ending", ["png", "jpg", "tiff"])
def test_a_picture_on_its_side_stands_up(tmp_path, ending: str):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter
    grey8().convert("RGB").save(tmp_path / f"a.{ending}", exif=exif)
    picture = stored(tmp_path / f"a.{ending}")
    read = picture.fitted(64, 96)
    assert picture.aspect == pytest.approx(64 / 96)
    assert read.shape == (96, 64, 3) and float(read[:8].mean()) < 0.15 and float(read[-8:].mean()) > 0.85


def test_the_first_frame_of_an_animation_counts(tmp_path):
    frames = [Image.new("RGB", (96, 64), RED), Image.new("RGB", (96, 64), "blue")]
    for ending in ("gif", "webp", "png"):
        frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:])
        assert float(stored(tmp_path / f"a.{ending}").fitted(96, 64)[..., 0].mean()) > 0.7


def broken(folder: Path) -> dict[str, Path]:
    """Files that claim to be pictures."""
    grey8().convert("RGB").resize((960, 640)).save(folder / "whole.jpg")
    grey8().convert("RGB").resize((960, 640)).save(folder / "whole.png")
    for name in ("jpg", "png"):
        data = (folder / f"whole.{name}").read_bytes()
        (folder / f"cut.{name}").write_bytes(data[: len(data) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 64)
    (folder / "text.png").write_text("hello")
    Image.fromarray(RAMP.astype(np.float32) * 300).save(folder / "light.tiff")
    Image.fromarray((RAMP * 2e9).astype(np.int32)).save(folder / "deep.tiff")
    Image.fromarray(np.full((64, 96), np.nan, dtype=np.float32)).save(folder / "nan.tiff")
    return {path.name: path for path in folder.iterdir() if not path.name.startswith("whole")}


WORDS = {"light.tiff": "floats outside 0 to 1", "nan.tiff": "floats outside 0 to 1", "deep.tiff": "32 bits a pixel"}


@pytest.mark.parametrize(
    "name", ["cut.jpg", "cut.png", "empty.png", "phone.heic", "text.png", "light.tiff", "deep.tiff", "nan.tiff"]
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, name: str):
    with pytest.raises(ValueError, match=WORDS.get(name, "not a picture that can be read")) as refused:
        stored(broken(tmp_path)[name]).fitted(64, 64)
    text = str(refused.value)
    assert text.startswith(f"'{tmp_path.name[:20]}") and name in text and text.isprintable() and text.endswith(".")


@pytest.mark.parametrize("limit", [50, None])
def test_a_picture_that_would_fill_the_memory_is_refused_by_its_header(tmp_path, monkeypatch, limit):
    """Also where another pack has taken Pillow's own limit away."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(pictures, "MOST_PIXELS", 1000)
    grey8().save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match=r"bomb\.png' has more than .* million pixels: make it smaller"):
        stored(tmp_path / "bomb.png")


def test_a_folder_of_pictures_is_not_held_in_memory_and_its_jpegs_are_decoded_small(tmp_path, monkeypatch):
    (tmp_path / "styles" / "oil").mkdir(parents=True)
    for number in range(3):
        grey8().convert("RGB").resize((1920, 1280)).save(tmp_path / "styles" / "oil" / f"{number}.jpg")
    (cluster,) = load_clusters(tmp_path / "styles", 12)
    assert all(isinstance(picture, StoredPicture) for picture in cluster.images)
    assert not any(isinstance(part, torch.Tensor) for picture in cluster.images for part in vars(picture).values())
    decoded = []
    real = pictures.in_rgb
    monkeypatch.setattr(pictures, "in_rgb", lambda image: real(decoded.append(image.size) or image))
    assert cluster.images[0].fitted(64, 64).shape == (64, 64, 3)
    assert decoded == [(240, 160)]  # an eighth


def test_a_stored_picture_is_fitted_as_a_held_one(tmp_path):
    noise = torch.rand(64, 96, 3, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(noise.movedim(-1, 0), 9, 1, 4).movedim(0, -1)
    Image.fromarray((smooth.numpy() * 255).round().astype(np.uint8)).save(tmp_path / "a.png")
    difference = stored(tmp_path / "a.png").fitted(64, 64) - held(smooth).fitted(64, 64)
    assert float(difference.abs().max()) < 0.02


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_an_image_of_one_to_four_channels_is_a_picture(channels: int):
    image = torch.rand(2, 40, 60, channels)
    (cluster,) = with_cluster((), "ink", list(image))
    read = cluster.images[0].fitted(60, 40)
    assert read.shape == (40, 60, 3)
    expected = image[0][..., :3] if channels > 2 else image[0][..., :1].expand(-1, -1, 3)
    assert float((read - expected).abs().max()) <= 1 / 255 + 1e-6


@pytest.mark.parametrize(
    "image",
    [torch.rand(40, 60, 5), torch.rand(40, 60, 0), torch.rand(40, 60), torch.rand(0, 60, 3),
     torch.zeros(40, 60, 3, dtype=torch.uint8), torch.rand(2, 40, 60, 3)],
    ids=lambda image: str(tuple(image.shape)),
)  # fmt: skip
def test_what_is_no_picture_is_refused_by_its_shape(image: torch.Tensor):
    with pytest.raises(ValueError, match=r"'images' of cluster 'ink' is a tensor of shape .*check the node") as refused:
        with_cluster((), "ink", [image])
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("shape", [(4, 4000), (4000, 4), (1, 1)])
def test_an_extreme_shape_does_not_make_an_extreme_run(shape):
    width, height = picture_size(with_cluster((), "ink", [torch.rand(*shape, 3)] * 2), "from images", 512)
    assert width * height == pytest.approx(512 * 512, rel=0.2) and 1 / 4 <= width / height <= 4
    assert HeldPicture(torch.rand(*shape, 3)).fitted(64, 64).shape == (64, 64, 3)
