"""The method grad_sam_output: the map of arXiv 2408.16232, which belongs to outputs, at a bearable price."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch

from ....engine.attribution import gradients_of, nearest, output_groups, strength
from ....engine.subject import Phrase
from ...arch.transformer import Transformer
from ..calls import LayerCall
from ..gradients import backward, gradients
from ..question import Question
from .base import Method, register
from .grad_sam import seed_of, tracing

APART = 3
"""Cells of the layer's grid between outputs that share a backward pass; what follows the last layers reaches one."""


@register
class GradSAMOutput(Method):
    """For every output e the sum over heads and queries of W * ReLU(d eps_e / dW): what of e comes from the phrase.

    The official code takes one backward pass for each of 16,384 outputs. Outputs that stand apart depend on queries of
    their own, so one pass serves all of a grid of them (Curtis, Powell and Reid 1974): a query's gradient is booked
    on the nearest output. Signs are random, so that what does reach further (group normalisation) cancels out. Layers
    at the latent's resolution take 36 passes for four channels.
    """

    name: ClassVar[str] = "grad_sam_output"
    about: ClassVar[str] = (
        "the paper's own map: how much of each place's prediction comes from the subject's words; dozens of passes, by "
        "far the slowest."
    )
    levels: ClassVar[int] = 1
    fallback: ClassVar[str] = "jvp"

    def maps(self, question: Question) -> torch.Tensor:
        return self.over(question, APART)

    def over(self, question: Question, apart: int) -> torch.Tensor:
        """The maps with outputs `apart` cells of the coarsest target layer from each other; exact when that is all."""
        if isinstance(question.prediction.architecture, Transformer):
            raise ValueError(
                "'method' grad_sam_output needs a UNet: in a transformer every place reaches every output, so outputs "
                "cannot share backward passes. Choose grad_sam or jvp."
            )
        traced: list[LayerCall] = []
        with gradients():
            noise = question.prediction.noise(question.predict(tracing(traced), differentiable=True))
            found = noise.new_zeros(len(question.phrases), *noise.shape, dtype=torch.float32)
            factor = max((math.ceil(noise.shape[2] / call.grid[0]) for call in traced), default=1)
            groups = list(_groups(noise, apart * factor, seed_of(question.prediction.sigma)))
            passes = backward(noise, (probe for probe, *_ in groups), [call.output for call in traced])
            for (_, channel, points, signs), slopes in zip(groups, passes, strict=True):
                for call, gradient in zip(traced, slopes, strict=True):
                    own = nearest(points, call.grid, (noise.shape[2], noise.shape[3])).to(noise.device)
                    _book(found[:, :, channel], call, gradient.detach(), question.phrases, points, own, signs)
        return torch.stack([strength(each) for each in found])


_Group = tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]
"""A probe [B, C, h, w], its channel, and the points [N, 2] at which it stands with signs [B, N]."""


def _groups(noise: torch.Tensor, apart: int, seed: int) -> Iterator[_Group]:
    generator = torch.Generator().manual_seed(seed)
    for points in output_groups((noise.shape[2], noise.shape[3]), apart):
        for channel in range(noise.shape[1]):
            signs = (torch.randint(0, 2, (len(noise), len(points)), generator=generator) * 2 - 1).to(noise)
            probe = torch.zeros_like(noise)
            probe[:, channel, points[:, 0], points[:, 1]] = signs
            yield probe, channel, points, signs


def _book(
    found: torch.Tensor,
    call: LayerCall,
    gradient: torch.Tensor,
    phrases: Sequence[Phrase],
    points: torch.Tensor,
    own: torch.Tensor,
    signs: torch.Tensor,
) -> None:
    """Add one layer's W * ReLU(dL/dW) to the outputs [phrases, B, h, w] that its queries belong to."""
    for part in call.parts:
        for number, phrase in enumerate(phrases):
            slopes = gradients_of(gradient[part.rows], call.v[part.rows], part.positions(phrase), call.heads)
            slopes = slopes * signs[:, own][:, None, :, None]
            queries = (call.column(part, phrase) * slopes.relu()).sum((1, 3))
            booked = queries.new_zeros(signs.shape).index_add(1, own, queries)
            found[number][:, points[:, 0], points[:, 1]] += booked
