"""What a guider predicts for a sampler's step, and who goes round it: PREDICT_NOISE.

Functions after CFG see the result of a plain guider. One that guides twice (core's DualCFGGuider) calls them half way,
with a prediction of nothing where a prompt is left out, and goes on with what they return.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from comfy.samplers import CFGGuider

from .model_call import KEY

OUTSIDE = f"{KEY}_trajectory"
"""Outside of all others: LazyCache answers some of a sampler's steps among them."""
PICTURE, KNOWN = f"{KEY}_picture", f"{KEY}_known"
"""Inside of all others, where a function after CFG would act: pictures blended in go over what is known of them."""

Step = Callable[..., torch.Tensor]
"""executor, x [B, C, ..., H, W], sigma [B] and what else a guider is given -> the predicted picture."""


@contextmanager
def around_steps(guider: CFGGuider, place: str, step: Step) -> Iterator[None]:
    """During a run `step` goes round the guider's predictions; of one place, the last to come is outermost."""
    before = guider.model_options
    options = before.get("transformer_options", {})
    wrappers = options.get("wrappers", {})
    others = dict(wrappers.get(WrappersMP.PREDICT_NOISE, {}))
    ours = {each: others.pop(each, []) for each in (OUTSIDE, PICTURE, KNOWN)}
    ours[place] = [step, *ours[place]]
    steps = {OUTSIDE: ours[OUTSIDE], **others, PICTURE: ours[PICTURE], KNOWN: ours[KNOWN]}
    options = {**options, "wrappers": {**wrappers, WrappersMP.PREDICT_NOISE: steps}}
    guider.model_options = {**before, "transformer_options": options}
    try:
        yield
    finally:
        guider.model_options = before


def after_steps(guider: CFGGuider, place: str, change: Callable[[torch.Tensor, float], torch.Tensor]) -> Any:
    """The same with a function of every predicted picture and its noise level."""

    def step(executor: Step, x: torch.Tensor, sigma: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return change(executor(x, sigma, *args, **kwargs), float(sigma.max()))

    return around_steps(guider, place, step)
