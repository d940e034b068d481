"""Structure gates: which slots feed which layers, the paper's schedule, ranked slots and weights by hand."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine.ablation import SlotAblation, agreement, relative_change
from conditional_balance.engine.grammar import GrammarError
from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.profile import LayersDiffer, SensitivityProfile
from conditional_balance.engine.structure import (
    NotRankable,
    PaperSchedule,
    RankedSlots,
    SlotsDiffer,
    SlotWeights,
    gate_residuals,
    parse_weights,
    scaled,
    slot_layout,
    slot_scores,
    stream_layout,
)
from conditional_balance.render.ablation import ablation_report
from conditional_balance.render.gate_map import standard_sigma


def layers_of(blocks: dict[str, dict[int, int]]) -> list[LayerId]:
    return [
        LayerId(part, number, transformer)
        for part, numbers in blocks.items()
        for number, depth in numbers.items()
        for transformer in range(depth)
    ]


SD15_LAYERS = layers_of({
    "input": dict.fromkeys((1, 2, 4, 5, 7, 8), 1), "middle": {0: 1}, "output": dict.fromkeys(range(3, 12), 1)
})  # fmt: skip
SDXL_LAYERS = layers_of({
    "input": {4: 2, 5: 2, 7: 10, 8: 10}, "middle": {0: 10}, "output": {0: 10, 1: 10, 2: 10, 3: 2, 4: 2, 5: 2}
})  # fmt: skip
SD15, SDXL = slot_layout(12, SD15_LAYERS), slot_layout(9, SDXL_LAYERS)


def profile(layers: list[LayerId], scores: torch.Tensor, sigmas: tuple[float, ...] = (10.0, 0.1)) -> SensitivityProfile:
    """The same scores for q and k; `scores` [T, L]."""
    both = scores.double()[None].repeat(2, 1, 1)
    return SensitivityProfile(tuple(layers), ("q", "k"), torch.tensor(sigmas, dtype=torch.float64), both)


def by_output_block(layers: list[LayerId], scores: dict[int, float]) -> SensitivityProfile:
    row = torch.tensor([scores.get(layer.number, 0.5) if layer.block == "output" else 0.5 for layer in layers])
    return profile(layers, row.repeat(2, 1))


def fed(layout, slot: int) -> set[tuple[str, int]]:
    return {layer[:2] for layer in layout.feeds[slot]}


def test_a_slot_feeds_the_output_block_at_the_other_end_of_its_skip() -> None:
    assert [fed(SDXL, slot) for slot in (8, 7, 6, 5, 4, 3)] == [{("output", number)} for number in range(6)]
    assert [fed(SD15, slot) for slot in range(9)] == [{("output", 11 - slot)} for slot in range(9)]
    assert len(SDXL.feeds[8]) == 10 and len(SDXL.feeds[5]) == 2


def test_a_slot_whose_output_block_has_no_attention_counts_for_the_nearest_that_has() -> None:
    assert [fed(SD15, slot) for slot in (9, 10, 11)] == [{("output", 3)}] * 3  # passed on to the next block
    assert [fed(SDXL, slot) for slot in (0, 1, 2)] == [{("output", 5)}] * 3  # behind the last one


@pytest.mark.parametrize(("removed", "full"), [(0.0, 50), (0.5, 25), (0.8, 10), (0.85, 7), (0.9, 5), (1.0, 0)])
def test_the_paper_schedule_keeps_as_many_of_fifty_steps_as_the_official_code(removed: float, full: int) -> None:
    gate = PaperSchedule(1 - removed)
    sigmas = [standard_sigma(1 - t / 999) for t in range(981, 0, -20)]
    found = [gate.weights(sigma, SDXL, lambda p: 1e9 if p <= 0 else standard_sigma(p)) for sigma in sigmas]
    assert [weights.skips[0] for weights in found] == [1.0] * full + [0.0] * (50 - full)
    assert {weights.middle for weights in found} == {1.0}
    assert all(len(set(weights.skips)) == 1 for weights in found)


def test_the_paper_schedule_weighs_the_middle_once_it_is_alone() -> None:
    early, late = (PaperSchedule(0.5, 0.25).weights(sigma, SDXL, standard_sigma) for sigma in (14.0, 0.1))
    assert early == SlotWeights((1.0,) * 9, 1.0) and late == SlotWeights((0.0,) * 9, 0.25)


def test_ranked_keeps_the_slots_that_feed_the_least_sensitive_layers() -> None:
    measured = by_output_block(SDXL_LAYERS, {0: 0.9, 1: 0.1, 2: 0.8, 3: 0.7, 4: 0.6, 5: 0.2})
    found = RankedSlots(measured, 0.45).weights(1.0, SDXL, standard_sigma)
    assert found == SlotWeights((0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0), 1.0)  # output blocks 4, 3, 2 and 0


def test_ranked_follows_the_noise_level() -> None:
    rows = torch.stack([torch.linspace(0, 1, 70), torch.linspace(1, 0, 70)])  # early layers, then late ones
    gate = RankedSlots(profile(SDXL_LAYERS, rows), 0.34)
    assert gate.weights(10.0, SDXL, standard_sigma).skips != gate.weights(0.1, SDXL, standard_sigma).skips


def test_of_equal_slots_the_deeper_one_stays() -> None:
    flat = by_output_block(SDXL_LAYERS, {})
    for count in range(10):
        found = RankedSlots(flat, count / 9).weights(1.0, SDXL, standard_sigma).skips
        assert found == (0.0,) * (9 - count) + (1.0,) * count


@given(kept=st.floats(0, 1), softness=st.floats(0, 1), seed=st.integers(0, 1000), sigma=st.floats(0.01, 20))
def test_ranked_weights_fall_with_sensitivity_and_all_or_none_are_exact(kept, softness, seed, sigma) -> None:
    scores = torch.rand(2, len(SD15_LAYERS), generator=torch.Generator().manual_seed(seed))
    measured = profile(SD15_LAYERS, scores)
    found = torch.tensor(RankedSlots(measured, kept, softness).weights(sigma, SD15, standard_sigma).skips)
    scores = slot_scores(measured, sigma, SD15)
    less_sensitive = scores[:, None] > scores
    assert bool((found[:, None] >= found)[less_sensitive].all())
    assert bool(((found >= 0) & (found <= 1)).all())
    if softness == 0:
        assert int(found.sum()) == int(kept * 12 + 1e-9)
    for whole in (0.0, 1.0):
        assert set(RankedSlots(measured, whole, softness).weights(sigma, SD15, standard_sigma).skips) == {whole}


def test_a_soft_edge_becomes_the_hard_one() -> None:
    measured = by_output_block(SD15_LAYERS, {number: number / 12 for number in range(3, 12)})
    hard = RankedSlots(measured, 0.5).weights(1.0, SD15, standard_sigma).skips
    soft = RankedSlots(measured, 0.5, 1e-6).weights(1.0, SD15, standard_sigma).skips
    wide = RankedSlots(measured, 0.5, 0.5).weights(1.0, SD15, standard_sigma).skips
    assert soft == hard
    assert any(0 < weight < 1 for weight in wide)


def test_slot_scores_are_means_over_layers_and_features() -> None:
    measured = by_output_block(SDXL_LAYERS, {number: float(number) for number in range(6)})
    measured = SensitivityProfile(
        measured.layers, ("q", "k"), measured.sigmas, torch.stack([measured.scores[0], measured.scores[1] + 2])
    )
    torch.testing.assert_close(
        slot_scores(measured, 1.0, SDXL), torch.tensor([5.0, 5, 5, 5, 4, 3, 2, 1, 0], dtype=torch.float64) + 1
    )


def test_a_profile_of_another_architecture_is_refused() -> None:
    with pytest.raises(LayersDiffer, match="measured on 70 attention layers and the model has 16"):
        RankedSlots(by_output_block(SDXL_LAYERS, {}), 0.5).weights(1.0, SD15, standard_sigma)


def test_a_unet_without_attention_on_the_way_up_cannot_be_ranked() -> None:
    layers = layers_of({"input": {1: 1}})
    with pytest.raises(NotRankable, match="cannot be ranked, as the UNet's output blocks have no attention"):
        RankedSlots(by_output_block(layers, {}), 0.5).weights(1.0, slot_layout(3, layers), standard_sigma)


def test_a_transformers_slots_cannot_be_ranked() -> None:
    with pytest.raises(NotRankable, match="cannot be ranked, as it is not known which layers of a transformer"):
        RankedSlots(by_output_block(SD15_LAYERS, {}), 0.5).weights(1.0, stream_layout([("input", 3)]), standard_sigma)


@pytest.mark.parametrize(
    ("text", "skips", "middle"),
    [
        ("1x9 m1", (1.0,) * 9, 1.0),
        ("1x3 0.5x3 0x3 m0.25", (1.0,) * 3 + (0.5,) * 3 + (0.0,) * 3, 0.25),
        ("m0, 1,1 , .5\n2.", (1.0, 1.0, 0.5, 2.0), 0.0),
        (" 0.3 * 2 ", (0.3, 0.3), 1.0),
        ("M 2 1X2", (1.0, 1.0), 2.0),
    ],
)
def test_weights_by_hand(text: str, skips: tuple[float, ...], middle: float) -> None:
    assert parse_weights(text).written == SlotWeights(skips, middle)


@given(
    st.lists(st.tuples(st.floats(0, 10).map(lambda w: round(w, 3)), st.integers(1, 9)), min_size=1, max_size=5),
    st.one_of(st.none(), st.floats(0, 10).map(lambda w: round(w, 3))),
)
def test_weights_are_read_as_they_are_written(runs, middle) -> None:
    text = " ".join(f"{weight:.3f}x{times}" for weight, times in runs) + ("" if middle is None else f", m{middle:.3f}")
    found = parse_weights(text).written
    assert found.skips == tuple(weight for weight, times in runs for _ in range(times))
    assert found.middle == (1.0 if middle is None else middle)


@pytest.mark.parametrize(
    ("text", "problem", "at"),
    [
        ("", "Expected a weight for each slot", 0),
        ("m1", "Expected a weight for each slot", 0),
        ("1x9, high", "Expected a weight", 5),
        ("1 -1", "Expected a weight", 2),
        ("1x", "Expected a weight", 0),
        ("1 11x2", "A weight is at most 10", 2),
        ("1x9 m1 m0", "The middle has one weight", 7),
        ("1x9 m1x2", "The middle has one weight", 4),
        ("1.2.3", "Expected a weight", 0),
    ],
)
def test_a_wrong_weight_is_pointed_at(text: str, problem: str, at: int) -> None:
    with pytest.raises(GrammarError, match=f"^{re.escape(problem)} at character {at + 1}; write for instance") as error:
        parse_weights(text)
    assert error.value.at == at
    assert str(error.value).splitlines()[-1] == " " * at + "^"


def test_a_wrong_number_of_weights_is_counted() -> None:
    says = r"There are 9 weights besides the middle one and this model has 12 .*such as 1x12 \('1x9 m1'\)"
    with pytest.raises(SlotsDiffer, match=says) as caught:
        parse_weights(" 1x9 m1").weights(1.0, SD15, standard_sigma)
    assert (caught.value.found, caught.value.slots, caught.value.text) == (9, 12, " 1x9 m1")


def test_strength_scales_every_weight() -> None:
    written = parse_weights("1x4 0.5x5 m1")
    assert scaled(written, 1.0) is written
    assert scaled(written, 0.5).weights(1.0, SDXL, standard_sigma) == SlotWeights((0.5,) * 4 + (0.25,) * 5, 0.5)


def test_residuals_are_weighed_at_the_place_where_the_unet_takes_them() -> None:
    """The UNet pops from the end: the last "output" is the last input block's, the last "input" the first block's."""
    weights = SlotWeights((0.0, 0.1, 0.2, 0.3), 0.5)
    ones = [torch.ones(1) for _ in range(4)]
    found = gate_residuals({"output": ones, "middle": ones[:1], "input": ones}, weights)
    assert [None if x is None else round(float(x), 3) for x in found["output"]] == [None, 0.1, 0.2, 0.3]
    assert [None if x is None else round(float(x), 3) for x in found["input"]] == [0.3, 0.2, 0.1, None]
    assert float(found["middle"][0]) == 0.5
    assert [float(x) for x in gate_residuals({"output": ones[:2]}, weights)["output"]] == pytest.approx([0.2, 0.3])
    assert all(float(x) == 1 for x in ones)


def test_weight_one_is_the_same_tensor_in_a_list_of_its_own() -> None:
    residuals = {"output": [torch.ones(1), None], "middle": [torch.ones(1)]}
    found = gate_residuals(residuals, SlotWeights((1.0, 1.0), 1.0))
    assert found["output"][0] is residuals["output"][0] and found["output"][1] is None
    found["output"].clear()
    assert len(residuals["output"]) == 2


def test_the_change_of_a_slot_is_a_share_of_the_whole_control() -> None:
    full, none = torch.tensor([3.0, 4.0]), torch.zeros(2)
    assert relative_change(full, torch.tensor([3.0, 0.0]), none) == pytest.approx(0.8)
    assert relative_change(full, none, none) == 1.0
    assert relative_change(none, none, none) == 0.0
    assert math.isnan(relative_change(full, full, none * torch.nan))


def test_agreement_is_one_when_sensitive_slots_matter_most_and_minus_one_the_other_way() -> None:
    scores = {number: 0.1 * number for number in range(3, 12)}  # late output blocks, that is early slots, insensitive
    measured = by_output_block(SD15_LAYERS, scores)
    order = -slot_scores(measured, 1.0, SD15)
    change = torch.stack([torch.cat([sign * order, order[:1]]) for sign in (1, -1)])
    ablation = SlotAblation(torch.tensor([5.0, 0.5], dtype=torch.float64), change)
    agreed = agreement(ablation, measured, SD15)
    torch.testing.assert_close(agreed, torch.tensor([1.0, -1.0], dtype=torch.float64))
    text = ablation_report(ablation, agreed)
    assert "(Spearman): 0.00; by level 1.00, -1.00." in text
    assert text.splitlines()[1].split() == ["sigma", *map(str, range(12)), "mid"]
    assert "Spearman" not in ablation_report(ablation)


@pytest.mark.parametrize("text", ["1 " * 600, "1x999 1", "9" * 900 + "x", "m" + " " * 990 + "x"])
def test_long_weights_by_hand_are_refused_with_an_excerpt(text: str) -> None:
    with pytest.raises(GrammarError) as caught:
        parse_weights(text)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("steps", [2, 4, 5, 8, 20])
def test_the_paper_keeps_as_many_of_even_steps_as_the_official_code(steps: int) -> None:
    """A step that begins where `kept` ends is past it, and rounding does not decide that."""
    for step in range(1, steps + 1):
        gate, removed = PaperSchedule(step / steps), round((1 - step / steps) * 1000)
        for each in range(1, steps):
            t, sigma = int(999 * (1 - each / steps)), standard_sigma(each / steps)
            for wobble in (-1e-6, 0.0, 1e-6):
                kept = gate.weights(sigma * (1 + wobble), SDXL, standard_sigma).skips[0]
                assert kept == float(t >= removed) == float(each < step), (step, each)


def test_a_small_effect_is_still_an_effect_to_compare_with() -> None:
    none, full = torch.full((1, 1, 2, 2), 5.0), torch.full((1, 1, 2, 2), 5.1)
    assert relative_change(full, torch.full((1, 1, 2, 2), 5.05), none) == pytest.approx(0.5, rel=1e-4)
