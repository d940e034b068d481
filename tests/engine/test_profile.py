"""The profile: reading between noise levels, and files that are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.noise import LOGIT, NOISES, back, evenly_spaced, variable
from conditional_balance.engine.profile import NoContentScores, SensitivityProfile, by_content, note_on_model
from conditional_balance.engine.profile_file import load
from conditional_balance.engine.scoring import Scores

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "sensitivity_profiles" / "sdxl-base-1.0.style.published.safetensors"
LAYERS = (LayerId("input", 1, 0), LayerId("middle", 0, 0), LayerId("output", 3, 0))


def profile(**changes) -> SensitivityProfile:
    scores = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas = torch.tensor([10.0, 3.0, 1.0, 0.1], dtype=torch.float64)
    facts = {"seed": 3, "clusters": {"ink": 2, "öl": 3}, "model": {"name": "SD15", "weights": "abc"}}
    fields = {"layers": LAYERS, "features": ("q", "k"), "sigmas": sigmas, "scores": scores, "provenance": facts}
    return SensitivityProfile(**(fields | changes))


@pytest.mark.parametrize("noise", NOISES)
def test_noise_levels_are_even_in_their_models_variable(noise: str) -> None:
    """In flow models the ratio of noise to signal falls by one factor, in others sigma itself."""
    ratios = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.25], dtype=torch.float64)
    expected = ratios / (1 + ratios) if noise == LOGIT else ratios / 10
    high, low = float(expected[0]), float(expected[-1])
    torch.testing.assert_close(evenly_spaced(high, low, 5, noise), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(evenly_spaced(high, low, 1, noise), expected[2:3], rtol=1e-12, atol=0)
    torch.testing.assert_close(back(variable(high, noise), noise), expected[0], rtol=1e-12, atol=0)


@given(st.floats(1e-4, 1e3))
def test_between_knots_scores_lie_between_and_outside_they_stay(sigma):
    measured = profile()
    knots = measured.scores[1]
    read = measured.at(sigma, "k")
    assert bool((read >= knots.min(0).values).all() & (read <= knots.max(0).values).all())
    if sigma >= 10:
        assert torch.equal(read, knots[0])
    if sigma <= 0.1:
        assert torch.equal(read, knots[-1])


def test_at_a_knot_the_score_is_the_measured_one_and_halfway_in_log_sigma_the_mean():
    measured = profile()
    for level, sigma in enumerate(measured.sigmas.tolist()):
        torch.testing.assert_close(measured.at(sigma, "q"), measured.scores[0, level])
    torch.testing.assert_close(measured.at((3.0 * 1.0) ** 0.5, "q"), measured.scores[0, 1:3].mean(0))


def test_layers_of_another_architecture_are_refused_and_another_finetune_is_noted():
    assert profile().aligned(LAYERS[::-1]) == list(range(len(LAYERS)))[::-1]
    with pytest.raises(ValueError, match=r"3 attention layers and the model has 2"):
        profile().aligned(LAYERS[:2])
    assert note_on_model(profile(), {"weights": "abc"}) == ""
    assert "another finetune" in note_on_model(profile(), {"weights": "xyz"})


GOLDEN = {
    (13.120411, "q"): "i5.1 i8.2-9 o1.2-9 o2.0-9 o3.1 o4.0 m0.0",
    (13.120411, "k"): "i8.3-9 o1.3-9 o2.0-9 o3.0-1 o4.0-1 m0.0-1",
    (1.623692, "k"): "i4.0-1 i5.0-1 i7.1 i7.5-9 o1.3-9 o2.0-6 o3.0-1 o4.0-1 o5.0-1",
    (0.041314, "q"): "i4.0 i5.0-1 i7.0-1 i7.4-9 o1.1-9 o2.1 o2.4-6 o3.0-1 o4.0-1 o5.0-1",
    (0.041314, "k"): "i5.1 i7.0-1 i7.4-9 i8.7 o1.2-9 o2.0-5 o3.0-1 o4.0-1 o5.0-1",
}


def spelled_out(golden: str) -> set[str]:
    names = set()
    for term in golden.split():
        block, _, span = term.partition(".")
        first, _, last = span.partition("-")
        names |= {f"{block}.{number}" for number in range(int(first), int(last or first) + 1)}
    return names


@pytest.mark.parametrize(("knot", "golden"), GOLDEN.items())
def test_the_thirty_lowest_at_a_knot_are_the_golden_ones(knot, golden):
    ranks = load(PUBLISHED)
    lowest = ranks.at(*knot).argsort()[:30].tolist()
    assert {str(ranks.layers[index]) for index in lowest} == spelled_out(golden)


def test_content_scores_make_a_profile_of_their_own_and_a_plain_series_has_none():
    content = Scores(*(torch.full((2, 4, 3), value) for value in (0.5, 0.4, 0.6)))
    facts = {"what": "style", "separation": {"p": 0.1, "share": 0}, "content_separation": {"p": 0.2, "share": 1}}
    found = by_content(profile(content=content, provenance=facts))
    assert torch.equal(found.scores, content.score) and torch.equal(found.high, content.high)
    assert found.provenance["what"] == "content" and found.provenance["separation"]["p"] == 0.2
    with pytest.raises(NoContentScores, match="holds no content scores"):
        by_content(profile())
