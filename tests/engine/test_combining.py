"""Profiles made of profiles: the trimmed mean and the contrast, in closed form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine.combining import TooFewProfiles, contrast, trimmed_mean
from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.profile import NoCommonFeature, ProfilesDiffer, SensitivityProfile
from conditional_balance.engine.profile_file import load, save
from conditional_balance.engine.scoring import Scores
from conditional_balance.render.report import report

LAYERS = tuple(LayerId("output", number, 0) for number in range(5))
SIGMAS = torch.tensor([10.0, 1.0, 0.1], dtype=torch.float64)


def profile(scores: torch.Tensor, layers=LAYERS, features=("q", "k"), sigmas=SIGMAS, **facts) -> SensitivityProfile:
    return SensitivityProfile(layers, features, sigmas, scores.double(), provenance=facts)


def drawn(seed: int, **changes) -> SensitivityProfile:
    return profile(torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(seed)), **changes)


def test_the_lowest_and_the_highest_of_each_score_are_dropped() -> None:
    values = [torch.full((2, 3, 5), value) for value in (0.9, 0.1, 0.4, 0.3, 0.5)]
    torch.testing.assert_close(trimmed_mean([profile(each) for each in values]).scores, values[2].double())
    mixed = trimmed_mean([drawn(seed) for seed in range(5)]).scores
    stacked = torch.stack([drawn(seed).scores for seed in range(5)])
    torch.testing.assert_close(mixed, (stacked.sum(0) - stacked.amax(0) - stacked.amin(0)) / 3)


@given(seeds=st.lists(st.integers(0, 99), min_size=2, max_size=6, unique=True), shuffle=st.randoms())
def test_the_order_of_profiles_does_not_matter_and_equal_ones_stay(seeds, shuffle) -> None:
    made = trimmed_mean([drawn(seed) for seed in seeds]).scores
    shuffle.shuffle(seeds)
    torch.testing.assert_close(trimmed_mean([drawn(seed) for seed in seeds]).scores, made)
    torch.testing.assert_close(trimmed_mean([drawn(seeds[0])] * 4).scores, drawn(seeds[0]).scores)


def test_content_scores_are_kept_where_all_have_them(tmp_path) -> None:
    contents = [Scores(*(drawn(10 + seed).scores for _ in range(3))) for seed in range(3)]
    crossed = [replace(drawn(seed), content=content) for seed, content in enumerate(contents)]
    made = trimmed_mean(crossed)
    stacked = torch.stack([content.score for content in contents])
    torch.testing.assert_close(made.content.score, stacked.median(0).values)
    save(made, tmp_path / "made.safetensors")
    assert torch.equal(load(tmp_path / "made.safetensors").content.score, made.content.score)
    assert trimmed_mean([*crossed, drawn(4)]).content is None


def test_two_profiles_are_averaged() -> None:
    torch.testing.assert_close(trimmed_mean([drawn(0), drawn(1)]).scores, (drawn(0).scores + drawn(1).scores) / 2)


def test_profiles_meet_at_the_first_ones_levels_layers_and_common_features() -> None:
    first = drawn(0)
    order = [4, 2, 0, 1, 3]
    other = SensitivityProfile(
        tuple(LAYERS[place] for place in order), ("k",), torch.tensor([10.0, 0.1], dtype=torch.float64),
        first.scores[1:, ::2][:, :, order],
    )  # fmt: skip
    made = trimmed_mean([first, other])
    assert made.layers == LAYERS and made.features == ("k",) and torch.equal(made.sigmas, SIGMAS)
    torch.testing.assert_close(made.scores[0, ::2], first.scores[1, ::2])
    between = (first.scores[1, 1] + (first.scores[1, 0] + first.scores[1, 2]) / 2) / 2  # 1 is half way in log sigma
    torch.testing.assert_close(made.scores[0, 1], between)


def test_contrast_ranks_layers_that_answer_the_first_question_only() -> None:
    style = profile(torch.tensor([0.1, 0.1, 0.9, 0.9, 0.5]).expand(2, 3, 5))
    structure = profile(torch.tensor([0.9, 0.1, 0.9, 0.1, 0.5]).expand(2, 3, 5))
    row = contrast(style, structure).scores[0, 0]
    assert int(row.argmin()) == 0 and int(row.argmax()) == 3
    torch.testing.assert_close(contrast(style, style).scores, torch.zeros(2, 3, 5).double())
    torch.testing.assert_close(contrast(style, structure).scores, -contrast(structure, style).scores)


@given(scale=st.floats(0.01, 100), shift=st.floats(-5, 5))
def test_contrast_knows_no_unit(scale: float, shift: float) -> None:
    other = drawn(1)
    moved = profile(other.scores * scale + shift)
    torch.testing.assert_close(contrast(drawn(0), moved).scores, contrast(drawn(0), other).scores, atol=1e-6, rtol=1e-6)


def test_a_flat_profile_takes_no_part_in_a_contrast() -> None:
    flat = profile(torch.full((2, 3, 5), 0.4))
    found = contrast(drawn(0), flat).scores
    assert torch.equal(found[0, 0].argsort(), drawn(0).scores[0, 0].argsort())
    torch.testing.assert_close(found.std(-1, correction=0), torch.ones(2, 3).double())


def test_a_combined_profile_can_be_saved_and_says_what_it_is_made_of(tmp_path) -> None:
    model = {"name": "SDXL", "weights": "abc"}
    style = drawn(0, what="style", estimator="jensen_shannon", model=model)
    geometry = drawn(1, what="geometry", estimator="jensen_shannon", model=model)
    made = contrast(style, geometry)
    save(made, tmp_path / "made.safetensors")
    back = load(tmp_path / "made.safetensors")
    assert back.provenance["what"] == "style minus geometry" and back.provenance["model"] == model
    assert "Made of style (jensen_shannon); geometry (jensen_shannon)." in report(back)
    assert "model" not in trimmed_mean([style, drawn(2, model={"weights": "other"})]).provenance


def test_what_cannot_be_combined_is_refused() -> None:
    with pytest.raises(TooFewProfiles, match=r"^There is one profile to combine: two or more are needed"):
        trimmed_mean([drawn(0)])
    with pytest.raises(TooFewProfiles, match=r"^There is no profile"):
        trimmed_mean([])
    with pytest.raises(ProfilesDiffer, match="Profile 2 was measured on 4 layers and profile 1 on 5"):
        contrast(drawn(0), profile(torch.rand(2, 3, 4), LAYERS[:4]))
    with pytest.raises(ProfilesDiffer) as caught:
        trimmed_mean([drawn(0), drawn(1), profile(torch.rand(2, 3, 4), LAYERS[:4])])
    assert (caught.value.number, caught.value.mine, caught.value.theirs) == (3, set(LAYERS[:4]), set(LAYERS))
    with pytest.raises(NoCommonFeature, match=r"no feature in common \(q and k; v\)") as without:
        trimmed_mean([drawn(0), profile(torch.rand(1, 3, 5), features=("v",))])
    assert without.value.features == (("q", "k"), ("v",))


def test_of_three_profiles_the_middle_score_stays() -> None:
    three = [drawn(seed) for seed in range(3)]
    assert torch.equal(trimmed_mean(three).scores, torch.stack([each.scores for each in three]).median(0).values)
