"""Pictures in one row keep their proportions and their order."""

from __future__ import annotations

import torch

from conditional_balance.render.side_by_side import GAP, side_by_side


def test_pictures_stand_in_order_at_the_height_of_the_last() -> None:
    dark, light = torch.zeros(1, 20, 40, 4), torch.ones(2, 10, 30, 3)
    strip = side_by_side([dark, light])
    assert strip.shape == (2, 10, 20 + GAP + 30, 3)
    assert not strip[:, :, :20].any() and strip[:, :, 20:].eq(1).all()


def test_pictures_in_half_precision_are_scaled_too() -> None:
    """As ComfyUI's --fp16-intermediates hands them on, perhaps beside others."""
    one, other = torch.rand(1, 20, 40, 3), torch.rand(1, 10, 30, 3)
    strip = side_by_side([one.half(), other])
    torch.testing.assert_close(strip, side_by_side([one, other]), rtol=0, atol=2e-3)


def test_one_picture_is_its_own_strip() -> None:
    picture = torch.rand(2, 8, 6, 3)
    assert torch.equal(side_by_side([picture]), picture)
