"""Several references: one is the operator as it was, two of a kind are one, and each acts only where it is told."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conditional_balance.engine.joint_style import Unturned, inject_joint
from conditional_balance.engine.several import (
    Leads,
    Places,
    adain_several,
    apportioned,
    inject_several,
    inject_several_through,
)
from conditional_balance.engine.style import LayerStyle, Rows, adain, inject

TOKENS, CHUNKS, PICTURES = 6, 2, 2
STYLES = [LayerStyle(1, 1, 0, 1), LayerStyle(0.5, 0, 1, 0.3), LayerStyle(0, 0, 0, 2), LayerStyle(1, 1, 1, 0)]
strengths = st.floats(-1, 2)


def attend(q, k, v, bias, rows=None):
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    out = (logits if bias is None else logits + (bias[:, 0] if bias.ndim == 4 and q.ndim == 3 else bias)).softmax(
        -1
    ) @ v
    return out if out.ndim == 3 else out.transpose(1, 2).flatten(2)


def projections(references: int, heads: int = 0, seed: int = 0):
    shape = (CHUNKS * (PICTURES + references), *((heads,) if heads else ()), TOKENS, 4)
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, *shape, generator=generator, dtype=torch.float64)[each] for each in range(3)]


def rows_of(references: int) -> Rows:
    return Rows(CHUNKS, 0, PICTURES, PICTURES)


def leads(*weights: torch.Tensor | float) -> Leads:
    made = [torch.as_tensor(each, dtype=torch.float64).expand(1, 1) if isinstance(each, int | float) else each
            for each in weights]  # fmt: skip
    stacked = torch.stack(torch.broadcast_tensors(*made))
    return Leads.of(range(PICTURES, PICTURES + len(weights)), stacked)


@given(st.lists(strengths, min_size=1, max_size=4))
def test_strengths_share_what_the_strongest_asks_for(given_strengths: list[float]) -> None:
    found = apportioned(torch.tensor(given_strengths, dtype=torch.float64)[:, None])[:, 0].tolist()
    toward = [each for each in given_strengths if each > 0]
    assert sum(each for each in found if each > 0) == pytest.approx(
        min(sum(toward), max(1.0, *toward, 0.0)) if toward else 0, abs=1e-5
    )
    assert all(one == pytest.approx(two) for one, two in zip(found, given_strengths, strict=True) if two < 0)
    if len(given_strengths) == 1:
        assert found == pytest.approx(given_strengths)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("strength", [0.4, 1.0, 1.7])
def test_one_reference_is_the_operator_as_it_was(style: LayerStyle, strength: float) -> None:
    q, k, v = projections(1)
    expected = inject(q, k, v, style.times(strength), rows_of(1), attend)
    torch.testing.assert_close(
        inject_several(q, k, v, style, rows_of(1), leads(strength), attend, Places()), expected, rtol=1e-4, atol=1e-5
    )
    q, k, v = projections(1, heads=2)
    image = slice(2, TOKENS)
    joint = inject_joint(q, k, v, style.times(strength), rows_of(1), attend, image, Unturned(), lambda keys: keys)
    found = inject_several(q, k, v, style, rows_of(1), leads(strength), attend, Places(image))
    torch.testing.assert_close(found, joint, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("style", STYLES)
def test_the_same_reference_twice_is_the_reference_once(style: LayerStyle) -> None:
    once = projections(1)
    twice = [torch.cat((x, x[:, -1:]), 1).flatten(0, 1) for x in (y.unflatten(0, (CHUNKS, -1)) for y in once)]
    expected = inject(*once, style, rows_of(1), attend).unflatten(0, (CHUNKS, -1))[:, :PICTURES]
    for weights in ((1.0, 1.0), (0.6, 0.9), (0.25, 0.75)):
        found = inject_several(*twice, style, rows_of(2), leads(*weights), attend, Places())
        torch.testing.assert_close(found.unflatten(0, (CHUNKS, -1))[:, :PICTURES], expected)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("through", [False, True])
def test_references_act_where_they_are_told_and_rows_of_references_stay(style: LayerStyle, through: bool) -> None:
    q, k, v = projections(2)
    left = torch.tensor([[1.0, 1, 1, 0, 0, 0]], dtype=torch.float64)
    plain = attend(q, k, v, None).unflatten(0, (CHUNKS, -1))

    def led(*weights: torch.Tensor | float) -> torch.Tensor:
        if through:
            out = inject_several_through(q, k, v, style, rows_of(2), leads(*weights), attend)
        else:
            out = inject_several(q, k, v, style, rows_of(2), leads(*weights), attend, Places())
        return out.unflatten(0, (CHUNKS, -1))

    nothing = led(torch.zeros(1, TOKENS, dtype=torch.float64), 0.0)
    torch.testing.assert_close(nothing, plain)
    first = led(left, 0.0)
    torch.testing.assert_close(first[:, PICTURES:], plain[:, PICTURES:])
    assert not torch.allclose(first[:, :PICTURES, :3], plain[:, :PICTURES, :3])
    if not any(style[1:3]):  # moved keys and values are seen from everywhere
        torch.testing.assert_close(first[:, :PICTURES, 3:], plain[:, :PICTURES, 3:])
        both = led(left, 1 - left)
        torch.testing.assert_close(both[:, :PICTURES, :3], first[:, :PICTURES, :3])


@given(st.floats(-1, 2))
def test_moments_move_as_far_as_they_are_told(weight: float) -> None:
    x, reference = projections(0, seed=1)[0][:, None], projections(0, seed=2)[0][:1, None] * 2 + 3
    found = adain_several(x, [reference], leads(weight))
    torch.testing.assert_close(found, adain(x, reference, weight), rtol=1e-4, atol=1e-4)
    here, there, moved = (each.mean(-2) for each in (x, reference, found))
    torch.testing.assert_close(moved, here + weight * (there - here), rtol=1e-3, atol=1e-3)


def test_a_part_of_the_picture_takes_the_references_moments_there() -> None:
    x, reference = projections(0, seed=1)[0][:1, None], projections(0, seed=2)[0][:1, None] * 2 + 3
    part = torch.tensor([[1.0, 1, 1, 1, 0, 0]], dtype=torch.float64)
    found = adain_several(x, [reference], leads(part))
    torch.testing.assert_close(found[..., 4:, :], x[..., 4:, :])
    torch.testing.assert_close(found[..., :4, :].mean(-2), reference.mean(-2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[..., :4, :].std(-2), reference.std(-2), rtol=1e-3, atol=1e-3)


def test_below_nothing_pushes_away() -> None:
    q, k, v = projections(1)
    style = LayerStyle(share=1.0)
    plain = attend(q, k, v, None).unflatten(0, (CHUNKS, -1))[:, :PICTURES]
    shared = inject(q, k, v, style, rows_of(1), attend).unflatten(0, (CHUNKS, -1))[:, :PICTURES]
    for through in (inject_several_through, lambda *args: inject_several(*args, Places())):
        found = through(q, k, v, style, rows_of(1), leads(-0.5), attend).unflatten(0, (CHUNKS, -1))[:, :PICTURES]
        torch.testing.assert_close(found, plain + 0.5 * (plain - shared))


@pytest.mark.parametrize("through", [False, True])
def test_one_reference_leads_while_another_pushes_away(through: bool) -> None:
    """Away from what attention would be with it alone, whatever the other one brings."""
    qkv, style = projections(2), LayerStyle(share=1.0)
    chunked = [x.unflatten(0, (CHUNKS, -1)) for x in qkv]
    with_one, with_other = (
        inject(*(x[:, [0, 1, row]].flatten(0, 1) for x in chunked), style, rows_of(1), attend) for row in (2, 3)
    )
    plain = attend(*qkv, None)
    toward, away, plain = (x.unflatten(0, (CHUNKS, -1))[:, :PICTURES] for x in (with_one, with_other, plain))
    act = inject_several_through if through else lambda *args: inject_several(*args, Places())
    found = act(*qkv, style, rows_of(2), leads(1.0, -0.5), attend).unflatten(0, (CHUNKS, -1))[:, :PICTURES]
    torch.testing.assert_close(found, toward - 0.5 * (away - plain))


def test_a_share_above_one_counts_as_one_where_outputs_are_mixed() -> None:
    qkv = projections(1)
    whole, more = (
        inject_several_through(*qkv, LayerStyle(share=share), rows_of(1), leads(1.0), attend) for share in (1.0, 3.0)
    )
    torch.testing.assert_close(more, whole)


@pytest.mark.parametrize("sign", [1, -1])
def test_text_is_led_as_far_as_the_picture_is_on_average(sign: int) -> None:
    q, k, v = projections(1, heads=2)
    style, places = LayerStyle(share=1.0), Places(slice(2, TOKENS))
    part = sign * torch.tensor([[1.0, 0.5, 0, 0]], dtype=torch.float64)
    found, even = (
        inject_several(q, k, v, style, rows_of(1), leads(each), attend, places) for each in (part, sign * 0.375)
    )
    torch.testing.assert_close(found[:, :2], even[:, :2])
    assert not torch.allclose(found[:, 2:], even[:, 2:])


@pytest.mark.parametrize("sign", [1, -1])
def test_chunks_may_have_places_of_their_own(sign: int) -> None:
    q, k, v = projections(1)
    style = LayerStyle(1, 1, 0, 1)
    apart = sign * torch.tensor([[1.0, 1, 0, 0, 0, 0], [0.0, 0, 0, 0, 0.5, 1]], dtype=torch.float64)
    together = inject_several(q, k, v, style, rows_of(1), leads(apart), attend, Places()).unflatten(0, (CHUNKS, -1))
    for chunk in range(CHUNKS):
        own = inject_several(q, k, v, style, rows_of(1), leads(apart[chunk : chunk + 1]), attend, Places())
        torch.testing.assert_close(together[chunk], own.unflatten(0, (CHUNKS, -1))[chunk])


class _Made(TorchDispatchMode):
    """Bytes of all tensors that are made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        known = [x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in known:
                self.bytes += x.untyped_storage().nbytes()
        return out


def test_references_with_masks_take_few_tensors_of_a_layers_size() -> None:
    """Of each its difference to the mean, and what has come together so far; then what is clamped, and the result."""
    x, references = torch.randn(1, 2, 400, 64), [torch.randn(1, 1, 400, 64) for _ in range(2)]
    left = (torch.arange(400) < 200).float()[None]
    given = Leads.of((2, 3), torch.stack((left, 1 - left)))
    with _Made() as made:
        adain_several(x, references, given)
    assert made.bytes < 9 * x.nbytes


def test_their_bias_is_made_once_in_the_layers_own_type() -> None:
    """[queries, keys of the picture and of every reference]: at the size of SDXL's finest layers 100 MB in fp16."""
    q, k, v = (torch.randn(4, 400, 4).half() for _ in range(3))
    left = (torch.arange(400) < 200).float()[None]
    sizes: list[int] = []

    def seen(q, k, v, bias, rows=None):
        if bias is not None:
            sizes.append(bias.nbytes)
            made.bytes, sizes[1:] = 0, [made.bytes]
        return q

    with _Made() as made:
        inject_several(q, k, v, LayerStyle(share=1), Rows(1, 0, 2, 2), Leads.of((2, 3), torch.stack((left, 1 - left))),
                       seen, Places())  # fmt: skip
    assert sizes[0] == 400 * 1200 * 2 and sizes[1] < 1.2 * sizes[0]
