"""The maths of attribution against plain definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conditional_balance.engine import attribution

HEADS, CHANNELS, QUERIES, TOKENS = 2, 4, 6, 5


def projections(seed: int, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dice = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(rows, count, HEADS * CHANNELS, generator=dice) for count in (QUERIES, TOKENS, TOKENS))
    return q, k, v


def softmax_and_output(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out: probabilities [rows, heads, queries, tokens] and output [rows, queries, channels]."""
    q, k, v = (attribution.split_heads(x, HEADS) for x in (q, k, v))
    weights = (q @ k.transpose(2, 3) / math.sqrt(CHANNELS)).softmax(-1)
    return weights, (weights @ v).transpose(1, 2).flatten(2)


@given(st.integers(0, 1000), st.lists(st.integers(0, TOKENS - 1), min_size=1, max_size=4, unique=True))
def test_columns_are_the_softmax_at_their_positions(seed: int, positions: list[int]) -> None:
    q, k, v = projections(seed)
    weights, _ = softmax_and_output(q, k, v)
    torch.testing.assert_close(attribution.columns(q, k, positions, HEADS), weights[..., positions])


@given(st.integers(0, 1000), st.integers(1, TOKENS - 1))
def test_columns_know_nothing_of_keys_that_are_hidden(seed: int, seen: int) -> None:
    q, k, _ = projections(seed)
    bias = torch.zeros(1, 1, 1, TOKENS).index_fill(-1, torch.arange(seen, TOKENS), -torch.inf)
    expected = attribution.columns(q, k[:, :seen], range(seen), HEADS)
    torch.testing.assert_close(attribution.columns(q, k, range(seen), HEADS, bias), expected)


@pytest.mark.parametrize("queries", [1, QUERIES])
def test_columns_of_some_queries_at_a_time_are_those_of_all(monkeypatch, queries: int) -> None:
    q, k, _ = projections(0)
    bias = torch.randn(1, HEADS, queries, TOKENS, generator=torch.Generator().manual_seed(1))
    whole = attribution.columns(q, k, [0, 3], HEADS, bias)
    monkeypatch.setattr(attribution, "LARGEST", 4 * len(q) * HEADS * TOKENS)  # four queries, then two
    torch.testing.assert_close(attribution.columns(q, k, [0, 3], HEADS, bias), whole)


class _Largest(TorchDispatchMode):
    """The most elements that any tensor has had."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.most = max([self.most, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))])
        return out


@pytest.mark.parametrize("maps", [1, 3])
def test_no_picture_attends_to_itself_in_a_matrix(monkeypatch, maps: int) -> None:
    """At SDXL's and Flux's sizes that takes gigabytes, of which ComfyUI has freed none."""
    side, width = 24, HEADS * 8
    dice = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, side**2, width, generator=dice)
    monkeypatch.setattr(attribution, "LARGEST", side**3)
    with _Largest() as largest:
        attribution.propagated(torch.rand(1, maps, side, side, generator=dice), q, k, HEADS, (side, side))
        attribution.columns(q, k, [2, 3], HEADS)
    assert largest.most < HEADS * side**4 / 4


def test_all_columns_together_say_the_whole_output() -> None:
    q, k, v = projections(1)
    everything = range(TOKENS)
    column = attribution.columns(q, k, everything, HEADS)
    torch.testing.assert_close(attribution.contribution(column, v, everything, HEADS), softmax_and_output(q, k, v)[1])


def test_the_gradient_of_a_column_is_autograds() -> None:
    q, k, v = projections(2)
    weights = softmax_and_output(q, k, v)[0].requires_grad_()
    output = (weights @ attribution.split_heads(v, HEADS)).transpose(1, 2).flatten(2)
    slope = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
    (expected,) = torch.autograd.grad((output * slope).sum(), weights)
    found = attribution.gradients_of(slope[None], v, [1, 3], HEADS)[0]
    torch.testing.assert_close(found, expected[..., [1, 3]])


def test_grad_sam_drops_what_speaks_against_the_subject() -> None:
    column = torch.tensor([[[[0.5, 0.25]]]])
    gradients = torch.tensor([2.0, -1.0, 0.0, 4.0]).reshape(2, 1, 1, 1, 2)
    assert float(attribution.grad_sam(column, gradients)) == (0.5 * 2 + 0.25 * 4) / 2


def test_sign_probes_are_signs_and_repeat() -> None:
    like = torch.zeros(3, 4, 8, 8)
    before = torch.get_rng_state()
    probes = attribution.sign_probes(2, like, seed=5)
    assert torch.equal(before, torch.get_rng_state())
    assert set(probes.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float(probes.mean())) < 0.1
    assert torch.equal(probes, attribution.sign_probes(2, like, seed=5))
    assert not torch.equal(probes[0], probes[1])


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
def test_groups_of_outputs_hold_every_place_once_and_stand_apart(height: int, width: int, apart: int) -> None:
    groups = list(attribution.output_groups((height, width), apart))
    assert sorted(map(tuple, torch.cat(groups).tolist())) == [(y, x) for y in range(height) for x in range(width)]
    for points in groups:
        steps = (points[:, None] - points).abs().amax(-1)
        assert bool((steps + apart * torch.eye(len(points)) >= apart).all())


def test_queries_belong_to_the_nearest_output() -> None:
    points = torch.tensor([[0, 0], [0, 3], [3, 0], [3, 3]])
    own = attribution.nearest(points, (4, 4), (4, 4)).reshape(4, 4)
    assert own.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert attribution.nearest(points, (2, 2), (4, 4)).tolist() == [0, 1, 2, 3]


def test_uniform_weights_are_daams_mean() -> None:
    maps = [torch.rand(2, HEADS, 4, 4), torch.rand(2, HEADS, 4, 4)]
    found = attribution.combined(maps, [torch.ones(HEADS)] * 2, (4, 4))
    torch.testing.assert_close(found, torch.cat(maps, 1).mean(1))


def test_a_weight_of_zero_leaves_a_head_out() -> None:
    maps = [torch.rand(1, HEADS, 4, 4)]
    found = attribution.combined(maps, [torch.tensor([0.0, 0.3])], (4, 4))
    torch.testing.assert_close(found, maps[0][:, 1])


def test_resizing_never_falls_below_zero_and_keeps_a_constant() -> None:
    spike = torch.zeros(1, 1, 4, 4)
    spike[..., 1, 1] = 1
    assert attribution.resized(spike, (16, 16)).amin() == 0
    torch.testing.assert_close(
        attribution.resized(torch.full((1, 1, 4, 4), 0.3), (16, 8)), torch.full((1, 1, 16, 8), 0.3)
    )


def test_propagation_shares_among_alike_positions_and_leaves_others() -> None:
    """Two groups of positions that attend only within themselves: each ends at its own mean."""
    groups = torch.tensor([0, 0, 1, 1, 1, 0, 0, 0, 1])
    q = torch.nn.functional.one_hot(groups, HEADS * CHANNELS).float()[None] * 50
    q = q[..., :2].repeat(1, 1, HEADS * CHANNELS // 2)
    maps = torch.rand(1, 2, 3, 3, generator=torch.Generator().manual_seed(4))
    found = attribution.propagated(maps, q, q, HEADS, (3, 3)).flatten(2)
    for group in (0, 1):
        mean = maps.flatten(2)[..., groups == group].mean(-1, keepdim=True)
        torch.testing.assert_close(found[..., groups == group], mean.expand(-1, -1, int((groups == group).sum())))


def test_blind_attention_spreads_evenly() -> None:
    q = torch.zeros(2, 9, HEADS * CHANNELS)
    maps = torch.rand(2, 1, 3, 3)
    found = attribution.propagated(maps, q, q, HEADS, (3, 3))
    torch.testing.assert_close(found, maps.mean((2, 3), keepdim=True).expand_as(maps))


def test_contrast_weighs_a_map_by_its_share() -> None:
    """Of two places that the subject heeds alike, the one that the surroundings heed counts less."""
    subject, place = torch.tensor([[[[3.0, 3.0]]]]), torch.tensor([[[[1.0, 9.0]]]])
    found = attribution.contrasted(subject, place)
    torch.testing.assert_close(found, torch.tensor([[[[3 * 0.75, 3 * 0.25]]]]))


def test_contrast_leaves_places_dark_that_no_word_heeds() -> None:
    subject, place = torch.tensor([[[[3.0, 1e-6]]]]), torch.tensor([[[[1.0, 1e-9]]]])
    found = attribution.contrasted(subject, place)
    assert float(found[..., 1]) < 1e-5 * float(found[..., 0])


def test_contrast_with_several_surroundings_adds_them_and_with_none_changes_nothing() -> None:
    maps = torch.rand(2, 1, 3, 3)
    assert attribution.contrasted(maps, maps[:0]) is maps
    share = maps[:1] / (maps[:1] + maps.sum(0))
    torch.testing.assert_close(attribution.contrasted(maps[:1], maps), maps[:1] * share)
    assert not attribution.contrasted(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).any()


def test_strength_is_the_length_over_channels() -> None:
    change = torch.zeros(1, 2, 1, 1)
    change[0, :, 0, 0] = torch.tensor([3.0, 4.0])
    assert float(attribution.strength(change)) == 5


@pytest.mark.parametrize("value", [0.0, 1e-3, 50.0])
def test_normalised_maps_have_mean_one(value: float) -> None:
    maps = torch.full((2, 3, 4, 4), value)
    expected = 0.0 if value == 0 else 1.0
    torch.testing.assert_close(attribution.normalised(maps), torch.full_like(maps, expected))
