"""What the parts that learn to paint share: couples and diptychs, losses, the head that tells subjects."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from demo.training.diffusion import attended
from demo.training.pool import Pairs, Pool
from demo.world.scenes import NOTHING
from demo.world.subjects import SUBJECTS

GROUND = len(SUBJECTS)  # the head's class for what is no subject
LOSS_SHARES = {"pictures": 1.0, "patches": 0.2, "colours": 0.3, "subjects": 0.1}


class Batch(NamedTuple):
    latents: Tensor  # [B, 8, h, w]
    masks: Tensor  # [B, S, h, w] in [0, 1], of subjects that follow
    subject: Tensor  # [B, S], NOTHING where there is none
    captions: Tensor  # [B, 77]
    drift: Tensor  # [B, 8, h, w]


def couples(pool: Pool, count: int) -> Batch:
    """Rows i and i + B / 2 share a style. The latter drift, more or less far, toward their scenes in other styles."""
    pairs: Pairs = pool.content[pool.rows(max(1, count // 2))]
    astray = pairs.strayed.float() - pairs.latents[:, 1].float()
    astray *= torch.rand(len(pairs), 1, 1, 1, device=astray.device)
    return Batch(
        both(pairs.latents),
        both(pairs.masks).float() / 255,
        both(pairs.subject),
        both(pairs.captions).long(),
        torch.cat([torch.zeros_like(astray), astray]),
    )


def both(parts: Tensor) -> Tensor:
    """[N, 2, ...] to [2 N, ...], all first ones before all second ones."""
    return parts.movedim(1, 0).flatten(0, 1)


def diptychs(pool: Pool, count: int) -> Batch:
    """Two scenes in one style side by side: [B / 2, ..., h, 2 w]."""
    pairs: Pairs = pool.content[pool.rows(max(1, count // 2))]
    blank = torch.zeros_like(pairs.masks[:, 0])
    left, right = torch.cat([pairs.masks[:, 0], blank], 3), torch.cat([blank, pairs.masks[:, 1]], 3)
    return Batch(
        torch.cat([pairs.latents[:, 0], pairs.latents[:, 1]], 3),
        torch.cat([left, right], 1).float() / 255,
        pairs.subject.flatten(1),
        pairs.sheet_captions.long(),
        torch.zeros_like(left[:, :1], dtype=torch.float32),
    )


def subject_weighted(error: Tensor, masks: Tensor) -> Tensor:
    """Mean of an error [B, h, w] in which subjects count three times."""
    weight = 1 + 2 * masks.sum(1)
    return (weight * error).mean() / weight.mean()


class SubjectHead(nn.Module):
    """Tells from features [B, C, h, w] which subject is where.

    A true version of the representations that REPA aligns with (arXiv 2410.06940); training drops it afterwards.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tell = nn.Conv2d(width, GROUND + 1, 1)

    def forward(self, features: Tensor, batch: Batch) -> Tensor:
        """The loss: cross-entropy with the share of each subject in each cell, in which subjects count four times."""
        told = functional.log_softmax(self.tell(features).float(), 1)
        masks = functional.adaptive_avg_pool2d(batch.masks, told.shape[-2:])
        which = torch.where(batch.subject == NOTHING, GROUND, batch.subject)
        seen = told.gather(1, which[:, :, None, None].expand(-1, -1, *told.shape[-2:]))
        ground = (1 - masks.sum(1)).clamp_min(0)
        return -(4 * (masks * seen).sum(1) + ground * told[:, GROUND]).mean()


def joint_attention(coupled: bool, words: int = 77) -> object:
    """Attention of a transformer in Flux form, [B, heads, N, D]; `coupled`, row i + B / 2 also sees row i's picture."""

    def attend(func: object, q: Tensor, k: Tensor, v: Tensor, heads: int, *_: object, **__: object) -> Tensor:
        if not coupled:
            return _merged(attended(q, k, v))
        half = len(q) // 2
        more_k = torch.cat([k[half:], k[:half, :, words:]], 2)
        more_v = torch.cat([v[half:], v[:half, :, words:]], 2)
        return _merged(torch.cat([attended(q[:half], k[:half], v[:half]), attended(q[half:], more_k, more_v)]))

    return attend


def _merged(values: Tensor) -> Tensor:
    return values.transpose(1, 2).flatten(2)
