"""Distances against integrals, closed forms and the authors' own expression."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise as consecutive

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from conditional_balance.engine import divergence
from conditional_balance.engine.divergence import (
    DISTANCES,
    FeaturesNotFinite,
    among,
    between,
    jensen_shannon_of,
    pairwise,
)
from conditional_balance.engine.moments import VARIANCE_FLOOR, Moments

widths = st.floats(0.02, 50)
offsets = st.floats(-30, 30)


def random_moments(images: int, groups: int, channels: int, seed: int = 0, spread: float = 1.0) -> Moments:
    generator = torch.Generator().manual_seed(seed)
    mean = spread * torch.randn(images, groups, channels, generator=generator)
    return Moments(mean, (spread * torch.randn(images, groups, channels, generator=generator)).exp())


def integral(mean1: float, std1: float, mean2: float, std2: float) -> float:
    """Jensen-Shannon divergence of two Gaussians by adaptive quadrature."""

    def log_density(z: float, mean: float, std: float) -> float:
        return -0.5 * ((z - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))

    def integrand(z: float) -> float:
        p, q = log_density(z, mean1, std1), log_density(z, mean2, std2)
        mixture = np.logaddexp(p, q) - math.log(2)
        return 0.5 * (math.exp(p) * (p - mixture) + math.exp(q) * (q - mixture))

    marks = sorted(mean + side * std for mean, std in ((mean1, std1), (mean2, std2)) for side in (-9, -3, 0, 3, 9))
    return sum(quad(integrand, one, other, epsabs=1e-13, limit=200)[0] for one, other in consecutive(marks))


def one_channel(mean1: float, std1: float, mean2: float, std2: float, distance: str) -> float:
    moments = Moments(torch.tensor([[[mean1]], [[mean2]]]), torch.tensor([[[std1]], [[std2]]]))
    return float(pairwise(moments, distance)[0, 0, 1])


@given(offsets, widths, offsets, widths)
def test_jensen_shannon_is_within_a_sixtieth_of_the_integral_for_every_channel(mean1, std1, mean2, std2):
    exact = integral(mean1, std1, mean2, std2)
    assert one_channel(mean1, std1, mean2, std2, "jensen_shannon") == pytest.approx(exact, rel=0.016, abs=1e-12)


def precise(distance: str, mean1: float, std1: float, mean2: float, std2: float) -> float:
    """A distance of two Gaussians in 40 digits; its parameters as float32 holds them."""
    mean1, std1, mean2, std2 = (mpmath.mpf(float(np.float32(each))) for each in (mean1, std1, mean2, std2))
    if distance == "bhattacharyya":
        middle = (std1**2 + std2**2) / 2
        return float((mean1 - mean2) ** 2 / (8 * middle) + mpmath.log(middle / (std1 * std2)) / 2)

    def integrand(z):
        p, q = mpmath.npdf(z, mean1, std1), mpmath.npdf(z, mean2, std2)
        return (p * mpmath.log(2 * p / (p + q)) + q * mpmath.log(2 * q / (p + q))) / 2

    return float(mpmath.quad(integrand, [mean1 + side * std1 for side in range(-12, 13, 2)]))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("gap", "ratio"), [(1e-4, 1.0), (0.0, 1 + 1e-4), (1e-4, 1 - 2e-4), (1e-3, 1.0), (0.02, 0.98)])
@pytest.mark.parametrize("std", [1.0, 0.004, 300.0])
def test_differences_of_a_ten_thousandth_of_a_width_are_not_lost(distance, gap, ratio, std):
    with mpmath.workdps(40):
        exact = precise(distance, 0.0, std, gap * std, ratio * std)
    assert 0 < exact < 2e-4
    assert one_channel(0.0, std, gap * std, ratio * std, distance) == pytest.approx(exact, rel=5e-3)


@pytest.mark.parametrize("distance", DISTANCES)
@given(factor=st.floats(1.5, 20), width=st.floats(0.01, 100))
def test_a_ratio_of_tiny_distances_is_the_ratio_of_their_squares(distance, factor, width):
    """What a score is made of: faint images inside and across clusters must not meet at a floor."""
    near, far = (one_channel(0.0, width, gap * width, width, distance) for gap in (1e-4, factor * 1e-4))
    assert far / near == pytest.approx(factor**2, rel=1e-3)


@pytest.mark.parametrize("distance", DISTANCES)
def test_images_that_do_not_differ_are_at_no_distance(distance):
    same = Moments(torch.full((3, 2, 4), 0.3), torch.full((3, 2, 4), 0.004))
    assert not pairwise(same, distance).any()


@given(st.floats(0, 60), st.floats(-7, 7))
def test_the_quadrature_is_exact(gap, log_ratio):
    exact = integral(0.0, math.exp(log_ratio / 2), gap, math.exp(-log_ratio / 2))
    assert float(jensen_shannon_of(np.array(gap), np.array(log_ratio))) == pytest.approx(exact, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("spread", [0.01, 0.1, 1.0, 3.0])
def test_the_mean_over_a_layers_channels_is_exact_to_a_five_hundredth(spread):
    moments = random_moments(4, 1, 640, spread=spread)
    mean, std = moments.mean[:, 0].double().numpy(), moments.std[:, 0].double().numpy()
    found = pairwise(moments, "jensen_shannon")[0]
    for one, other in ((0, 1), (1, 3), (2, 3)):
        gap = np.abs(mean[one] - mean[other]) / np.sqrt(std[one] * std[other])
        exact = jensen_shannon_of(gap, np.abs(np.log(std[one] / std[other]))).mean()
        assert float(found[one, other]) == pytest.approx(exact, rel=2e-3)


@given(offsets, widths, offsets, widths)
def test_jensen_shannon_is_bounded_by_ln_two(mean1, std1, mean2, std2):
    assert 0 <= one_channel(mean1, std1, mean2, std2, "jensen_shannon") <= math.log(2) + 1e-7


@given(offsets, widths, offsets, widths)
def test_bhattacharyya_is_the_closed_form(mean1, std1, mean2, std2):
    width = (std1**2 + std2**2) / 2
    exact = (mean1 - mean2) ** 2 / (8 * width) + 0.5 * math.log(width / (std1 * std2))
    assert one_channel(mean1, std1, mean2, std2, "bhattacharyya") == pytest.approx(exact, rel=1e-4, abs=1e-6)


def test_bhattacharyya_is_what_the_authors_code_computes():
    """Half the sum of two KL divergences to N(mean of means, mean of variances), as a mean over channels."""
    moments = random_moments(2, 1, 64)
    (mean1, mean2), (std1, std2) = moments.mean[:, 0].double(), moments.std[:, 0].double()
    middle = torch.distributions.Normal((mean1 + mean2) / 2, ((std1**2 + std2**2) / 2).sqrt())
    sides = [torch.distributions.Normal(mean, std) for mean, std in ((mean1, std1), (mean2, std2))]
    published = sum(torch.distributions.kl_divergence(side, middle) for side in sides).mean() / 2
    assert float(pairwise(moments, "bhattacharyya")[0, 0, 1]) == pytest.approx(float(published), rel=1e-5)


def test_bhattacharyya_holds_where_all_widths_are_as_far_apart_as_float16_features_allow():
    narrow, wide = math.sqrt(VARIANCE_FLOOR), 65504 * math.sqrt(2)  # two tokens at float16's ends
    std = torch.tensor([[[narrow] * 7], [[wide] * 7]])
    exact = 0.5 * math.log((narrow**2 + wide**2) / (2 * narrow * wide))
    found = pairwise(Moments(torch.zeros_like(std), std), "bhattacharyya")
    assert float(found[0, 0, 1]) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("images", [2, 3, 4, 7, 50])
def test_every_pair_is_found_once_whatever_the_number_of_images(distance, images):
    moments = random_moments(images, 2, 5)
    found = pairwise(moments, distance)
    assert found.shape == (2, images, images) and found.dtype == torch.float64
    assert torch.equal(found, found.mT) and not found.diagonal(dim1=-2, dim2=-1).any()
    for one, other in ((0, images - 1), (images // 2, 0), (images - 1, images - 2)):
        if one != other:
            pair = pairwise(Moments(moments.mean[[one, other]], moments.std[[one, other]]), distance)
            torch.testing.assert_close(found[:, one, other], pair[:, 0, 1])


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("tile", [1, 300, 1000])
def test_work_in_tiles_changes_nothing(distance, tile, monkeypatch):
    moments = random_moments(6, 5, 7)
    whole = pairwise(moments, distance)
    monkeypatch.setattr(divergence, "TILE", tile)
    torch.testing.assert_close(pairwise(moments, distance), whole)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_moments_themselves_are_not_written_to(distance):
    moments = random_moments(4, 2, 5)
    before = Moments(*(part.clone() for part in moments))
    pairwise(moments, distance)
    assert torch.equal(moments.mean, before.mean) and torch.equal(moments.std, before.std)


@pytest.mark.parametrize("distance", DISTANCES)
def test_scale_and_offset_of_a_channel_do_not_matter(distance):
    moments = random_moments(3, 1, 16)
    moved = Moments(moments.mean * 3 + 2, moments.std * 3)
    torch.testing.assert_close(pairwise(moved, distance), pairwise(moments, distance), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(bad):
    moments = random_moments(3, 1, 4)
    moments.mean[1, 0, 2] = bad
    with pytest.raises(FeaturesNotFinite, match="finite"):
        pairwise(moments, "jensen_shannon")


def test_one_image_has_no_distance_to_anything():
    assert pairwise(random_moments(1, 2, 4), "bhattacharyya").tolist() == [[[0.0]], [[0.0]]]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("threads", [1, 3])
def test_many_sets_at_once_are_each_of_them_alone_bit_for_bit(distance, threads, monkeypatch):
    monkeypatch.setattr(divergence, "TILE", 500)  # several tiles a set
    sets = [[random_moments(images, groups, channels, seed)] for seed, (images, groups, channels) in enumerate(SHAPES)]
    sets += [[random_moments(3, 2, 33, 8), random_moments(images, 2, 33, 9)] for images in (1, 6)]
    with torch_threads(threads):
        found = among(iter(sets), distance)
    for one, sides in zip(found, sets, strict=True):
        assert torch.equal(one, between(*sides, distance) if len(sides) == 2 else pairwise(*sides, distance))
        joined = Moments(*(torch.cat(parts) for parts in zip(*sides, strict=True)))
        whole = pairwise(joined, distance)[:, : one.shape[1], -one.shape[2] :]
        torch.testing.assert_close(one, whole, rtol=1e-6, atol=1e-9)


SHAPES = [(7, 2, 64), (1, 2, 5), (12, 1, 40), (2, 3, 700), (9, 2, 64)]


@pytest.mark.parametrize("place", [0, 2, 4])
def test_the_set_that_is_not_finite_is_named(place):
    sets = [[random_moments(6, 2, 40, seed)] for seed in range(5)]
    sets[place][0].std[3, 1, 7] = math.inf
    with torch_threads(3), pytest.raises(FeaturesNotFinite) as raised:
        among(sets, "bhattacharyya")
    assert raised.value.place == place


@pytest.mark.parametrize("threads", [1, 3])
def test_what_making_a_set_raises_ends_the_work(threads):
    made = []

    def sets() -> Iterator[list[Moments]]:
        for seed in range(20):
            made.append(seed)
            if seed == 5:
                raise KeyError("stop")
            yield [random_moments(6, 2, 40, seed)]

    with torch_threads(threads), pytest.raises(KeyError, match="stop"):
        among(sets(), "bhattacharyya")
    assert made == list(range(6))


@pytest.mark.parametrize("threads", [1, 3])
def test_torch_has_as_many_threads_after_as_before(threads):
    with torch_threads(threads):
        alone = pairwise(random_moments(6, 2, 64), "jensen_shannon")
        with pytest.raises(FeaturesNotFinite):
            pairwise(Moments(torch.full((2, 1, 1), math.nan), torch.ones(2, 1, 1)), "jensen_shannon")
        assert torch.get_num_threads() == threads
    assert torch.equal(alone, pairwise(random_moments(6, 2, 64), "jensen_shannon"))
