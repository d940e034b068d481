"""The engine on a device that lacks float64 and pooling over cells of unequal size gives what a CPU gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lesser_device import DEVICE, OnDevice, lesser_device

from conditional_balance.engine.ablation import relative_change
from conditional_balance.engine.attribution import columns, contribution, propagated, resized, strength
from conditional_balance.engine.divergence import DISTANCES, between, pairwise
from conditional_balance.engine.effect import effect_of
from conditional_balance.engine.inversion import decibels
from conditional_balance.engine.masks import RULES, MaskSettings, mask_of
from conditional_balance.engine.moments import Moments
from conditional_balance.engine.projection import projected

Random = Callable[..., torch.Tensor]


def moments(random: Random, pictures: int) -> Moments:
    return Moments(random(pictures, 2, 8), random(pictures, 2, 8).abs() + 0.1)


TASKS: dict[str, Callable[[Random], Any]] = {
    **{
        f"mask by {rule}": lambda random, rule=rule: mask_of(
            random(1, 2, 9, 7).abs(), MaskSettings(rule=rule, amount=0.5, dilate=1, feather=2)
        )
        for rule in RULES
    },
    **{f"{name} within": lambda random, name=name: pairwise(moments(random, 5), name) for name in DISTANCES},
    **{
        f"{name} between": lambda random, name=name: between(moments(random, 3), moments(random, 2), name)
        for name in DISTANCES
    },
    "ablation": lambda random: torch.tensor(relative_change(*(random(2, 4, 6, 6) for _ in range(3)))),
    "inversion": lambda random: torch.tensor(decibels(random(2, 4, 6, 6), random(2, 4, 6, 6))),
    "effect": lambda random: effect_of(random(2, 4, 9, 7), random(2, 4, 9, 7), random(1, 4, 8, 8)).gain,
    "projection": lambda random: projected(random(2, 4, 9, 7), random(1, 4, 9, 7), (4, 2)),
    "maps of another size": lambda random: resized(random(2, 1, 9, 7).abs(), (4, 5)),
    "propagation": lambda random: propagated(random(1, 2, 8, 8).abs(), random(1, 20, 16), random(1, 20, 16), 2, (5, 4)),
    "columns": lambda random: columns(random(1, 20, 16), random(1, 7, 16), [2, 3], 2),
    "contribution": lambda random: contribution(random(1, 2, 20, 2), random(1, 7, 16), [2, 3], 2),
    "strength": lambda random: strength(random(2, 4, 6, 6)),
}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_lesser_device_gives_the_same(task: Callable[[Random], Any]) -> None:
    dice = torch.Generator().manual_seed(0)
    expected = task(lambda *shape: torch.randn(*shape, generator=dice))
    dice.manual_seed(0)
    with lesser_device():
        found = task(lambda *shape: torch.randn(*shape, generator=dice).to(DEVICE))
        found = found.cpu()
    torch.testing.assert_close(found, expected)


def test_the_device_lacks_what_it_should() -> None:
    with lesser_device():
        there = torch.ones(1, 1, 3, 3, device=DEVICE)
        assert isinstance(there, OnDevice) and there.device == DEVICE and (there + 1).device == DEVICE
        with pytest.raises(TypeError):
            there.double()
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="divisible"):
            torch.nn.functional.adaptive_avg_pool2d(there, (2, 2))
