"""The judge: what a picture shows, which style family it is of, and how far two pictures are apart in style.

Three small convolutional networks. `subject`, `background` and `family` (of the known ones) are classes. Style is a
point on a sphere, learned so that two scenes in one style lie together and two styles lie apart (NT-Xent, arXiv
2002.05709 eq. 1), over styles remixed from the known families, so that it also orders styles it never saw.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

# As many as its weights know, which are of the world before this one.
SUBJECT_NAMES, BACKGROUND_NAMES, KNOWN = range(8), range(6), range(9)
WEIGHTS = Path(__file__).parent / "weights" / "judge.safetensors"


def stage(fan_in: int, fan_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False), nn.BatchNorm2d(fan_out), nn.ReLU(),
        nn.Conv2d(fan_out, fan_out, 3, 1, 1, bias=False), nn.BatchNorm2d(fan_out), nn.ReLU(),
    )  # fmt: skip


class ContentNet(nn.Module):
    """[B, 3, 128, 128] to logits of subject and background, looked at in half size."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 128)
        self.body = nn.Sequential(*(stage(a, b, 2) for a, b in pairwise(widths)))
        self.head = nn.Linear(128 * 16, len(SUBJECT_NAMES) + len(BACKGROUND_NAMES))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(functional.avg_pool2d(pictures, 2) * 2 - 1)
        return self.head(features.flatten(1)).split((len(SUBJECT_NAMES), len(BACKGROUND_NAMES)), 1)


class StyleNet(nn.Module):
    """[B, 3, 128, 128] to [B, `size`], from mean and spread of features at four scales."""

    def __init__(self, size: int) -> None:
        super().__init__()
        widths = (3, 32, 48, 64, 96)
        self.stages = nn.ModuleList(stage(a, b, 2) for a, b in pairwise(widths))
        self.head = nn.Sequential(nn.Linear(2 * sum(widths), 256), nn.ReLU(), nn.Linear(256, size))

    def forward(self, pictures: Tensor) -> Tensor:
        features, summaries = pictures * 2 - 1, []
        for step in (nn.Identity(), *self.stages):
            features = step(features)
            summaries += [features.mean((2, 3)), (features.var((2, 3)) + 1e-5).sqrt()]
        return self.head(torch.cat(summaries, 1))


class Verdict(NamedTuple):
    subject: Tensor  # [B] class indices
    background: Tensor  # [B]
    family: Tensor  # [B] indices into FAMILY_NAMES, whose first are the known ones
    style: Tensor  # [B, 64] unit vectors


class Judge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.content, self.family, self.style = ContentNet(), StyleNet(len(KNOWN)), StyleNet(64)

    def point(self, pictures: Tensor) -> Tensor:
        """Where the pictures lie in style: unit vectors [B, 64]."""
        return functional.normalize(self.style(pictures).float(), dim=1)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Verdict:
        """Judge pictures [B, 3, 128, 128] in [0, 1]."""
        subject, background = self.content(pictures)
        return Verdict(subject.argmax(1), background.argmax(1), self.family(pictures).argmax(1), self.point(pictures))


def style_distance(a: Tensor, b: Tensor) -> Tensor:
    """Angle between style vectors over pi, in [0, 1]; broadcasts over leading axes."""
    return (a * b).sum(-1).clamp(-1, 1).arccos() / torch.pi


def load_judge(path: Path = WEIGHTS, device: str | torch.device = "cpu") -> Judge:
    judge = Judge()
    judge.load_state_dict({k: v if v.dtype == torch.int64 else v.float() for k, v in load_file(path).items()})
    return judge.eval().to(device)
