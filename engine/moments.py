"""Moments: what a layer's projected tokens look like, whatever their number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

VARIANCE_FLOOR = 1e-5  # added under the root, as StyleAligned's AdaIN does, so that a dead channel has a width


class Moments(NamedTuple):
    """Mean and standard deviation over tokens, float32, both [..., channels] (channels = heads * dim_head)."""

    mean: torch.Tensor
    std: torch.Tensor


def moments_of(tokens: torch.Tensor, keepdim: bool = False) -> Moments:
    """Moments [..., channels] of projected tokens [..., tokens, channels]; with `keepdim` [..., 1, channels].

    The standard deviation is sqrt(unbiased variance + 1e-5). Every channel belongs to one head, so a statistic per
    channel is one per head and channel (arXiv 2412.19853). Tokens are taken to float32 first: the variance of half
    precision overflows at a deviation of 256.
    """
    lone = tokens.shape[-2] == 1  # the middle of a very small picture: no spread, but no NaN either
    variance, mean = torch.var_mean(tokens.float(), dim=-2, correction=0 if lone else 1, keepdim=keepdim)
    return Moments(mean, (variance + VARIANCE_FLOOR).sqrt())


def join_channels(parts: Sequence[Moments]) -> Moments:
    """One vector from several of the same image, such as its conditional and its unconditional one."""
    return Moments(torch.cat([part.mean for part in parts], -1), torch.cat([part.std for part in parts], -1))
