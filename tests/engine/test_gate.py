"""Gates: the paper's selections, the other policies' closed forms, and how gates combine."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine import gates
from conditional_balance.engine.combining import contrast
from conditional_balance.engine.gates import (
    CombinedGate,
    RankedGate,
    ScaledGate,
    WrittenGate,
    pinned,
    policy_of,
    windowed,
)
from conditional_balance.engine.gates.policies import (
    Budget,
    Content,
    EvenlySpaced,
    LowContent,
    Random,
    Reversed,
    Soft,
    Static,
    lowest,
)
from conditional_balance.engine.gates.policies.base import time_weights
from conditional_balance.engine.gates.policies.baselines import evenly_spaced
from conditional_balance.engine.gates.policies.soft import soft_weights
from conditional_balance.engine.gates.policies.static import time_mean
from conditional_balance.engine.grammar import parse
from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.profile import FEATURES, NoContentScores, SensitivityProfile
from conditional_balance.engine.profile_file import load
from conditional_balance.engine.scoring import Scores
from conditional_balance.render.gate_map import draw, facts, sampled, spread_sigmas, standard_sigma, summary

PUBLISHED = Path(__file__).parents[2] / "sensitivity_profiles" / "sdxl-base-1.0.style.published.safetensors"

# Selections of the paper's code at lambda 0.43, read from its published grading.
GOLDEN = {
    13.120411: (
        "i5.1, i8.2-9, o1.2-9, o2.0-9, o3.1, o4.0, m0.0",
        "i8.3-9, o1.3-9, o2.0-9, o3.0-1, o4.0-1, m0.0-1",
        33,
    ),
    1.623692: (
        "i4.0-1, i5.0-1, i7.0, i7.1, i7.4, i7.6-9, o1.5-9, o2.0-7, o3.0-1, o4.0-1, o5.0-1",
        "i4.0-1, i5.0-1, i7.1, i7.5-9, o1.3-9, o2.0-6, o3.0-1, o4.0-1, o5.0-1",
        33,
    ),
    0.041314: (
        "i4.0, i5.0-1, i7.0, i7.1, i7.4-9, o1.1-9, o2.1, o2.4-6, o3.0-1, o4.0-1, o5.0-1",
        "i5.1, i7.0, i7.1, i7.4-9, i8.7, o1.2-9, o2.0-5, o3.0-1, o4.0-1, o5.0-1",
        34,
    ),
}


def profile(layers: int = 10, levels: int = 6, seed: int = 0) -> SensitivityProfile:
    generator = torch.Generator().manual_seed(seed)
    return SensitivityProfile(
        layers=tuple(LayerId("output", number, 0) for number in range(layers)),
        features=("q", "k"),
        sigmas=torch.logspace(1.1, -1.4, levels, dtype=torch.float64),
        scores=torch.rand(2, levels, layers, generator=generator, dtype=torch.float64),
        content=Scores(*torch.rand(3, 2, levels, layers, generator=generator, dtype=torch.float64)),
    )


def weights(gate: gates.LayerGate, sigma: float, of: SensitivityProfile) -> torch.Tensor:
    found = gate.weights(sigma, of.layers, standard_sigma)
    assert found.dtype == torch.float64 and found.shape == (len(FEATURES), len(of.layers))
    return found


@pytest.fixture(scope="module")
def published() -> SensitivityProfile:
    return load(PUBLISHED)


@pytest.mark.parametrize("sigma", GOLDEN)
@pytest.mark.parametrize("nearby", [1.0, 1 + 1e-7, 1 - 1e-7])
def test_golden_selections_of_the_paper(published: SensitivityProfile, sigma: float, nearby: float) -> None:
    found = weights(RankedGate(published, 0.43), sigma * nearby, published)
    query, key, union = GOLDEN[sigma]
    assert torch.equal(found[0], parse(query).weights(published.layers)[0])
    assert torch.equal(found[1], parse(key).weights(published.layers)[0])
    assert int((found[:2].amax(0) > 0).sum()) == union


def test_the_layers_always_and_never_chosen(published: SensitivityProfile) -> None:
    found = torch.stack([weights(RankedGate(published, 0.43), float(sigma), published) for sigma in published.sigmas])
    always = parse("o1.4-9, o2.0-6, o3.0-1, o4.0-1").weights(published.layers)[0] > 0
    never = parse("o0, m0.2-9, o1.0, i7.2, i7.3, i8.0").weights(published.layers)[0] > 0
    assert (found[:, :2, always].amax(1) > 0).all()
    assert (found[:, :2, never] == 0).all()


@pytest.mark.parametrize(
    ("amount", "count"),
    [(0, 0), (0.43, 30), (0.57, 39), (1, 70), (0.005, 0), (1.9, 1), (30.7, 30), (500, 70), (0.3, 21)],
)
def test_layer_count_truncates(amount: float, count: int) -> None:
    assert gates.layer_count(amount, 70) == count


def test_layer_count_survives_rounding() -> None:
    assert all(
        gates.layer_count(count / layers, layers) == count for layers in range(1, 101) for count in range(layers + 1)
    )


@pytest.mark.parametrize("policy", gates.POLICIES)
@pytest.mark.parametrize("amount", [0, 1])
def test_none_is_none_and_all_is_all(policy: str, amount: int) -> None:
    known = profile()
    for sigma in (20.0, 3.0, 0.5, 0.001):
        found = weights(RankedGate(known, amount, policy_of(policy, {})), sigma, known)
        assert torch.equal(found, torch.full((3, 10), float(amount)).double())


@given(st.integers(0, 10), st.floats(0.02, 20), st.integers(0, 50))
def test_per_step_keeps_the_lowest_and_reversed_the_highest(count: int, sigma: float, seed: int) -> None:
    known = profile(seed=seed)
    amount = count / 10
    for feature in ("q", "k"):
        place = FEATURES.index(feature)
        low = weights(RankedGate(known, amount), sigma, known)[place] > 0
        high = weights(RankedGate(known, amount, Reversed()), sigma, known)[place] > 0
        scores = known.at(sigma, feature)
        assert low.sum() == high.sum() == count
        if 0 < count < 10:
            assert scores[low].max() <= scores[~low].min()
            assert scores[high].min() >= scores[~high].max()


def test_features_are_ranked_apart_and_an_unmeasured_one_follows_them() -> None:
    known = profile()
    found = weights(RankedGate(known, 0.3), 1.0, known)
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[2], torch.maximum(found[0], found[1]))


@given(st.integers(1, 9), st.floats(0.02, 20))
def test_soft_becomes_per_step(count: int, sigma: float) -> None:
    known = profile()
    hard = weights(RankedGate(known, count / 10), sigma, known)
    assert torch.equal(weights(RankedGate(known, count / 10, Soft(0.0)), sigma, known), hard)
    near = weights(RankedGate(known, count / 10, Soft(1e-6)), sigma, known)
    torch.testing.assert_close(near, hard, atol=0.5, rtol=0)
    assert torch.equal(near.round(), hard)


def test_soft_is_a_sigmoid_around_the_edge() -> None:
    scores = torch.tensor([0.0, 1.0, 2.0, 3.0, 40.0], dtype=torch.float64)
    found = soft_weights(scores, 2, softness=1 / float(scores.std(correction=0)))
    expected = torch.sigmoid(1.5 - scores)
    torch.testing.assert_close(found[:4], expected[:4])
    assert found[4] == 0


def test_static_is_one_list_by_the_mean_over_log_sigma() -> None:
    known = profile()
    found = [weights(RankedGate(known, 0.4, Static()), sigma, known) for sigma in (15.0, 2.0, 0.05)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])
    dense = torch.logspace(1.1, -1.4, 20001, dtype=torch.float64).tolist()
    mean = torch.stack([known.at(sigma, "q") for sigma in dense]).mean(0)
    torch.testing.assert_close(time_mean(known, "q"), mean, rtol=1e-3, atol=0)
    assert torch.equal(found[0][0], lowest(mean, 4))


def test_time_weights_do_not_depend_on_where_a_profile_was_measured() -> None:
    uneven = torch.tensor([10.0, 9.0, 8.0, 1.0, 0.1], dtype=torch.float64)
    found = time_weights(uneven)
    assert found.sum() == pytest.approx(1)
    assert found[0] == pytest.approx(math.log(10 / 9) / 2 / math.log(100))
    assert time_weights(torch.tensor([3.0])).tolist() == [1.0]


@given(st.integers(1, 9), st.integers(0, 50))
def test_budget_opens_as_many_layers_in_total(count: int, seed: int) -> None:
    known = profile(seed=seed)
    shares = time_weights(known.sigmas)
    opened = torch.stack(
        [weights(RankedGate(known, count / 10, Budget()), float(sigma), known)[0] for sigma in known.sigmas]
    ).sum(1)
    total = float(shares @ opened)
    assert count - 1e-9 <= total <= count + float(shares.max())


def test_random_depends_on_the_seed_alone() -> None:
    known = profile(layers=40)
    first = weights(RankedGate(known, 0.5, Random(1)), 9.0, known)
    assert torch.equal(first, weights(RankedGate(known, 0.5, Random(1)), 0.1, known))
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first, weights(RankedGate(known, 0.5, Random(2)), 9.0, known))
    assert first[0].sum() == 20


def test_evenly_spaced_in_forward_order_whatever_the_file_order() -> None:
    assert evenly_spaced(10, 5).tolist() == [0, 1] * 5
    assert evenly_spaced(7, 3).tolist() == [0, 1, 0, 1, 0, 1, 0]
    known = profile()
    turned = SensitivityProfile(known.layers[::-1], known.features, known.sigmas, known.scores.flip(2))
    found = [
        RankedGate(each, 0.3, EvenlySpaced()).weights(1.0, known.layers, standard_sigma) for each in (known, turned)
    ]
    assert torch.equal(*found)


@given(st.integers(0, 10), st.sampled_from(sorted(gates.POLICIES)), st.floats(0.02, 20))
def test_weights_follow_the_models_order_of_layers(count: int, policy: str, sigma: float) -> None:
    known = profile()
    gate = RankedGate(known, count / 10, policy_of(policy, {}))
    assert torch.equal(weights(gate, sigma, known).flip(1), gate.weights(sigma, known.layers[::-1], standard_sigma))


def test_pins_and_exclusions_win() -> None:
    known = profile()
    for amount in (0, 0.5, 1):
        found = weights(pinned(RankedGate(known, amount), parse("o1, o2:0.5, o3"), parse("o3-4")), 1.0, known)
        assert (found[:, 1] == 1).all()
        assert (found[:, 2] >= 0.5).all()
        assert (found[:, 3:5] == 0).all()


def test_windows_count_like_controlnets() -> None:
    known = profile()
    gate = windowed(WrittenGate(parse("all")), 0.2, 0.6)
    start, end = standard_sigma(0.2), standard_sigma(0.6)
    opened = [bool(weights(gate, sigma, known).any()) for sigma in (start * 1.01, start, 1.0, end, end * 0.99)]
    assert opened == [False, True, standard_sigma(0.6) <= 1.0, True, False]
    with pytest.raises(ValueError, match="before it starts"):
        windowed(gate, 0.6, 0.2)


def test_gates_combine() -> None:
    known = profile()
    some, others = WrittenGate(parse("o0-4, o5:0.5")), WrittenGate(parse("o3-6"))

    def first(gate: gates.LayerGate) -> list[float]:
        return weights(gate, 1.0, known)[0].tolist()

    assert first(CombinedGate(some, others, "and")) == [0, 0, 0, 1, 1, 0.5, 0, 0, 0, 0]
    assert first(CombinedGate(some, others, "or")) == [1, 1, 1, 1, 1, 1, 1, 0, 0, 0]
    assert first(CombinedGate(some, others, "minus")) == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert first(ScaledGate(some, 0.5)) == [0.5] * 5 + [0.25] + [0] * 4


def test_a_profile_of_other_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="measured on 10 attention layers and the model has 9"):
        RankedGate(profile(), 0.4).weights(1.0, profile(9).layers, standard_sigma)


def test_scores_that_are_no_numbers_are_refused() -> None:
    broken = profile()
    broken.scores[0, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"profile.*finite"):
        RankedGate(broken, 0.4)


def test_summary_and_map(published: SensitivityProfile) -> None:
    sigmas = spread_sigmas(13.1, 0.0413)
    found = sampled(RankedGate(published, 0.43), published.layers, sigmas)
    assert summary(facts(found, published.layers)).startswith("30 of 70 layers, mostly input 7 and output 1-2.")
    assert "closed" in summary(facts(torch.zeros_like(found), published.layers))
    one = facts(sampled(WrittenGate(parse("o1.8")), published.layers, sigmas), published.layers)
    assert one == ("1", 70, [("output", "1")], None, None) and summary(one) == "1 of 70 layers, mostly output 1."
    picture = draw(found, published.layers, sigmas)
    closed = draw(torch.zeros_like(found), published.layers, sigmas)
    assert picture.size == closed.size
    assert picture.width <= 1024
    assert picture.tobytes() != closed.tobytes()


def test_the_standard_schedule() -> None:
    assert standard_sigma(0.0) == math.inf
    assert standard_sigma(1.0) == 0.0
    assert standard_sigma(0.5) == pytest.approx(1.6156, rel=1e-3)


@given(st.integers(1, 9), st.floats(0.02, 20))
def test_content_and_style_with_low_content_rank_by_what_they_say(count: int, sigma: float) -> None:
    known = profile()
    alone = dataclasses.replace(known, scores=known.content.score, content=None)
    content = weights(RankedGate(known, count / 10, Content()), sigma, known)
    assert torch.equal(content, weights(RankedGate(alone, count / 10), sigma, known))
    found = weights(RankedGate(known, count / 10, LowContent()), sigma, known)
    assert torch.equal(found, weights(RankedGate(contrast(known, alone), count / 10), sigma, known))
    assert known.content is not None and found[:2].sum(1).tolist() == [count, count]


def test_a_layer_low_in_both_gives_way_to_one_that_is_low_in_style_alone() -> None:
    known = profile(layers=3, levels=1)
    style, content = torch.tensor([0.5, 0.6, 0.9]), torch.tensor([0.4, 0.9, 0.9])
    both = dataclasses.replace(
        known, scores=style.expand(2, 1, 3).double(), content=Scores(*[content.expand(2, 1, 3).double()] * 3)
    )
    assert weights(RankedGate(both, 1 / 3), 1.0, both)[0].tolist() == [1, 0, 0]
    assert weights(RankedGate(both, 1 / 3, LowContent()), 1.0, both)[0].tolist() == [0, 1, 0]


@pytest.mark.parametrize("policy", ["content", "style, low content"])
def test_a_plain_series_has_no_content_to_rank_by(policy: str) -> None:
    with pytest.raises(NoContentScores, match="holds no content scores"):
        RankedGate(dataclasses.replace(profile(), content=None), 0.5, policy_of(policy, {}))


def test_a_policy_takes_its_own_parameters_out_of_all_values() -> None:
    values = {"softness": 0.3, "random_seed": 7, "pin": "o1"}
    assert policy_of("soft", values) == Soft(0.3) and policy_of("random", values) == Random(7)
    assert policy_of("per-step", values) == gates.policies.PerStep() and policy_of("soft", {}) == Soft(0.1)
    with pytest.raises(gates.UnknownPolicy, match="no selection policy 'best'") as caught:
        policy_of("best", values)
    assert caught.value.name == "best"


def test_two_policies_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="called 'soft'"):
        gates.policies.register(Soft)


@pytest.mark.parametrize("kind", gates.POLICIES.values(), ids=str)
def test_every_parameter_has_a_default_within_its_range_and_words(kind: type[gates.Policy]) -> None:
    assert kind.about and "." not in kind.about
    for each in gates.parameters(kind):
        assert each.low <= each.default <= each.high and each.step > 0 and each.about.endswith(".")
