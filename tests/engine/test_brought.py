"""What a reference brings apart from its row is all that the operator needs; damped tokens count as little as told."""

from __future__ import annotations

import math

import pytest
import torch
from test_several import CHUNKS, PICTURES, STYLES, TOKENS, attend, leads, projections, rows_of

from conditional_balance.engine.brought import Brought, inject_brought
from conditional_balance.engine.joint_style import Unturned, inject_joint
from conditional_balance.engine.several import Places, inject_several
from conditional_balance.engine.style import LayerStyle, inject, share_bias

GONE = torch.tensor([0.0, 0.0, 0.0, 0.0, -1e9, -1e9], dtype=torch.float64)  # of the last two tokens


class Doubled:
    """Stands for a rotation: undone and redone exactly."""

    def undo(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2

    def redo(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def apart(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The pictures' rows, and the reference's, which stands last in its chunk."""
    chunked = x.unflatten(0, (CHUNKS, -1))
    return chunked[:, :PICTURES].flatten(0, 1), chunked[:, PICTURES]


def brought_alone(qkv, style, places, damping=None):
    (q, of_q), (k, of_k), (v, of_v) = map(apart, qkv)
    return inject_brought(q, k, v, style, Brought.of(of_q, of_k, of_v, places), attend, places, damping)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("damping", [None, GONE])
def test_it_is_the_operator_without_the_references_row(style: LayerStyle, damping: torch.Tensor | None) -> None:
    qkv = projections(1)
    expected, _ = apart(inject(*qkv, style, rows_of(1), attend, damping))
    torch.testing.assert_close(brought_alone(qkv, style, Places(), damping), expected)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("turn", [Unturned(), Doubled()])
def test_the_same_beside_text_and_under_a_rotation(style: LayerStyle, turn: Unturned) -> None:
    qkv, image = projections(1, heads=2), slice(2, TOKENS)
    damping = GONE[2:]

    def cure(keys: torch.Tensor) -> torch.Tensor:
        return keys + 1

    expected, _ = apart(inject_joint(*qkv, style, rows_of(1), attend, image, turn, cure, damping))
    torch.testing.assert_close(brought_alone(qkv, style, Places(image, turn, cure), damping), expected)


def test_a_token_that_is_damped_away_might_not_be_there() -> None:
    q, k, v = projections(1)
    style = LayerStyle(0, 0, 0, 1)
    found = inject(q, k, v, style, rows_of(1), attend, GONE)
    torch.testing.assert_close(apart(found)[1], apart(attend(q, k, v, None))[1])  # the reference itself is as it was
    (own_q, _), (own_k, ref_k), (own_v, ref_v) = map(apart, (q, k, v))
    keys, values = (
        torch.cat((own, ref[:, None, :4].expand(-1, PICTURES, -1, -1).flatten(0, 1)), 1)
        for own, ref in ((own_k, ref_k), (own_v, ref_v))
    )
    torch.testing.assert_close(apart(found)[0], attend(own_q, keys, values, None))


def test_damping_counts_like_a_share() -> None:
    qkv, style = projections(1), LayerStyle(1, 1, 0, 1)
    half = torch.full((TOKENS,), math.log(0.5), dtype=torch.float64)
    torch.testing.assert_close(
        inject(*qkv, style, rows_of(1), attend, half), inject(*qkv, style._replace(share=0.5), rows_of(1), attend)
    )
    assert share_bias(qkv[0], 2, 1.0) is None
    assert share_bias(qkv[0], TOKENS, 1.0, torch.zeros(TOKENS)) is not None


@pytest.mark.parametrize("heads", [0, 2])
def test_each_of_several_references_has_its_own(heads: int) -> None:
    qkv, style = projections(1, heads), LayerStyle(1, 1, 0, 0.7)
    one = inject_several(*qkv, style, rows_of(1), leads(1.0), attend, Places(), (GONE,))
    if not heads:
        torch.testing.assert_close(one, inject(*qkv, style, rows_of(1), attend, GONE), rtol=1e-4, atol=1e-5)
    twice = [torch.cat((each := x.unflatten(0, (CHUNKS, -1)), each[:, PICTURES:]), 1).flatten(0, 1) for x in qkv]
    both = inject_several(*twice, style, rows_of(2), leads(1.0, 1.0), attend, Places(), (GONE, GONE))
    torch.testing.assert_close(apart_of(both, 2), apart_of(one, 1), rtol=1e-4, atol=1e-5)
    mixed = inject_several(*twice, style, rows_of(2), leads(1.0, 1.0), attend, Places(), (GONE, None))
    plain = inject_several(*twice, style, rows_of(2), leads(1.0, 1.0), attend, Places())
    assert not torch.allclose(mixed, plain) and not torch.allclose(mixed, both)


def apart_of(x: torch.Tensor, references: int) -> torch.Tensor:
    return x.unflatten(0, (CHUNKS, PICTURES + references))[:, :PICTURES]
