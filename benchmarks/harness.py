"""What the demo-world benchmarks share: the demo model through ComfyUI's sampler, judge, contact sheets, intervals."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks._command import command_line, keep
from conditional_balance.runtime.inject.prompts import encode_rows
from demo import judge, models, world

CFG = 2.0
BATCH = 64


def options(about: str | None, **defaults: Any) -> argparse.Namespace:
    """The options of a benchmark of the demo world: `--json`, `--pictures`, `--seed`, and its own with defaults."""
    parser = command_line(about, seed=0, **defaults)
    parser.add_argument("--pictures", type=Path, help="write contact sheets into this folder")
    return parser.parse_args()


def report(results: dict[str, Any], chosen: argparse.Namespace) -> None:
    """Print results as JSON and write them where `--json` says."""
    print(keep(results, chosen))


class Demo:
    """The demo model and its judge; on CPUs in the precision that is fastest there."""

    def __init__(self, dtype: torch.dtype | None = None, cfg: float = CFG) -> None:
        self.cfg = cfg
        torch.set_grad_enabled(False)
        if dtype is None and comfy.model_management.cpu_mode():
            dtype = models.fast_dtype("cpu")
        self.model, self.clip, self.vae = models.load_unet(dtype=dtype), models.load_clip(), models.load_vae()
        self.judge = judge.load_judge()
        self._prompts: dict[str, tuple[Tensor, Tensor]] = {}

    def conditioning(self, prompts: Sequence[str]) -> list[list[Any]]:
        """One prompt per row; each text is encoded once."""
        for text in set(prompts) - self._prompts.keys():
            [[rows, extra]] = encode_rows(self.clip, [text])
            self._prompts[text] = rows, extra["pooled_output"]
        rows, pooled = zip(*(self._prompts[text] for text in prompts), strict=True)
        return [[torch.cat(rows), {"pooled_output": torch.cat(pooled)}]]

    def sample(self, model: Any, prompts: Sequence[str], seed: int, steps: int = 20) -> Tensor:
        """Latents [B, 8, 16, 16], euler on the normal schedule, through the sampler that KSampler uses."""
        latent = torch.zeros(len(prompts), 8, 16, 16)
        noise = comfy.sample.prepare_noise(latent, seed)
        positive, negative = self.conditioning(prompts), self.conditioning([""])
        return comfy.sample.sample(
            model, noise, steps, self.cfg, "euler", "normal", positive, negative, latent, disable_pbar=True, seed=seed
        )

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, 128, 128] in [0, 1]."""
        return torch.cat([self.vae.decode(part).movedim(-1, 1) for part in latents.split(BATCH)])

    def encode(self, pictures: Tensor) -> Tensor:
        return torch.cat([self.vae.encode(part.movedim(1, -1)) for part in pictures.split(BATCH)])

    def autoencoded(self, pictures: Tensor) -> Tensor:
        return self.decode(self.encode(pictures))

    def verdict(self, pictures: Tensor) -> judge.Verdict:
        parts = [self.judge(part) for part in pictures.split(BATCH)]
        return judge.Verdict(*(torch.cat(column) for column in zip(*parts, strict=True)))


def draw(specs: world.Specs) -> Tensor:
    """Pictures [B, 3, 128, 128], a few at a time so that they stay in the processor's cache."""
    return torch.cat([world.render(specs[rows])[0] for rows in torch.arange(len(specs)).split(32)])


def interval(values: Tensor, groups: Tensor, statistic: Callable[[Tensor], Tensor] = torch.mean) -> tuple[float, float]:
    """95 % bootstrap interval of a statistic, drawing whole groups (references), 1000 times."""
    names = groups.unique()
    rows = [values[groups == name] for name in names]
    dice = np.random.default_rng(0)
    draws = [statistic(torch.cat([rows[i] for i in dice.integers(len(rows), size=len(rows))])) for _ in range(1000)]
    low, high = np.quantile([float(value) for value in draws], (0.025, 0.975))
    return float(low), float(high)


def auc(same: Tensor, different: Tensor) -> float:
    """Probability that a same-style distance is below a different-style one."""
    ordered = different.flatten().sort().values
    return 1 - float(torch.searchsorted(ordered, same.flatten().contiguous()).double().mean()) / len(ordered)


def sheet(pictures: Tensor, columns: int, path: Path) -> None:
    """A contact sheet of [B, 3, H, W] pictures."""
    count, _, height, width = pictures.shape
    rows = count // columns
    table = pictures[: rows * columns].reshape(rows, columns, 3, height, width).permute(0, 3, 1, 4, 2)
    table = table.reshape(rows * height, columns * width, 3).clamp(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 * table).round().byte().numpy()).save(path)
