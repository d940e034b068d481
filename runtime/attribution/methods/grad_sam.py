"""The method grad_sam: attention times its gradient (after arXiv 2204.11073), over probes of the whole prediction."""

from __future__ import annotations

import struct
from typing import ClassVar

import torch

from ....engine.attribution import grad_sam, gradients_of, on_grid, sign_probes
from ....engine.subject import Phrase
from ..calls import LayerCall, Respond, Rows
from ..gradients import backward, gradients
from ..maps import Columns
from ..question import Question
from .base import Method, register


@register
class GradSAM(Method):
    """Attention to a phrase times the ReLU of its gradient, over random combinations of all outputs.

    The scalar is <probe, predicted noise>. One forward pass, of which only the part from the first target layer on is
    remembered, and one backward pass through that part for each probe. The map belongs to the places that attend, and
    over random signs the ReLU's mean is the gradient's length over sqrt(2 pi): unlike the paper's map (arXiv
    2408.16232), which `grad_sam_output` makes, it does not tell which output a gradient belongs to.
    """

    name: ClassVar[str] = "grad_sam"
    about: ClassVar[str] = (
        "attention times the length of its gradient, estimated from random probes: near the paper's rule, but not its "
        "map; more time and memory."
    )
    levels: ClassVar[int] = 1
    fallback: ClassVar[str] = "jvp"

    def maps(self, question: Question) -> torch.Tensor:
        return self.over(question, None)

    def over(self, question: Question, probes: torch.Tensor | None) -> torch.Tensor:
        """The maps over given probes [P, B, C, h, w]; None draws signs."""
        traced: list[LayerCall] = []
        with gradients():
            noise = question.prediction.noise(question.predict(tracing(traced), differentiable=True))
            if probes is None:
                probes = sign_probes(question.settings.probes, noise, seed_of(question.prediction.sigma))
            slopes = list(backward(noise, probes, [call.output for call in traced]))
        seen = Columns()
        for call, gradient in zip(traced, map(torch.stack, zip(*slopes, strict=True)), strict=True):
            for part in call.parts:
                seen.add(call.layer, torch.stack([_map(call, part, gradient, phrase) for phrase in question.phrases]))
        return seen.combined(question)


def seed_of(sigma: torch.Tensor) -> int:
    """A seed for every noise level, so that windows draw probes of their own, and the same run the same ones."""
    return struct.unpack("<I", struct.pack("<f", float(sigma[0])))[0]


def tracing(traced: list[LayerCall]) -> Respond:
    """Collects the calls in the graph, which begins at the first target layer."""

    def trace(call: LayerCall) -> torch.Tensor:
        call = call.detached()
        traced.append(call)
        return call.output

    return trace


def _map(call: LayerCall, part: Rows, gradient: torch.Tensor, phrase: Phrase) -> torch.Tensor:
    """[B, heads, h, w] of one phrase at one layer from dL/dO [P, rows, queries, channels]."""
    slopes = gradients_of(gradient[:, part.rows], call.v[part.rows], part.positions(phrase), call.heads)
    return on_grid(grad_sam(call.column(part, phrase), slopes), call.grid)
