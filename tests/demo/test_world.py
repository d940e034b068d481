"""The demo world's generator: what it says it draws is what it draws, and the same seed draws the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from demo import world
from demo.hands import HANDS, PLAIN


def specs(count: int, seed: int = 0, families: tuple[str, ...] = world.FAMILY_NAMES) -> world.Specs:
    return world.random_specs(count, torch.Generator().manual_seed(seed), families)


@given(seed=st.integers(0, 2**31))
def test_coverage_is_a_partition_and_pictures_are_pictures(seed: int) -> None:
    drawn = specs(4, seed)
    scene = world.draw_scene(drawn, 32)
    torch.testing.assert_close(scene.coverage.sum(1), torch.ones(4, 32, 32), atol=1e-4, rtol=0)
    assert bool((scene.edge >= 0).all())
    picture = world.paint(scene, drawn)
    assert picture.shape == (4, 3, 32, 32) and bool(torch.isfinite(picture).all())
    assert float(picture.min()) >= -1e-3 and float(picture.max()) <= 1 + 1e-3


def test_the_mask_is_where_the_subject_is_drawn() -> None:
    scene = world.draw_scene(specs(16), 64)
    subject = scene.coverage[:, [world.SLOTS.index("body"), world.SLOTS.index("detail")]].sum(1)
    torch.testing.assert_close(scene.mask, subject, atol=0.51, rtol=0)  # anti-aliased seams between body and detail
    assert float((scene.mask - subject).abs().mean()) < 0.01
    assert bool((scene.mask.mean((1, 2)) > 0.03).all())


def test_a_picture_does_not_depend_on_its_batch() -> None:
    drawn = specs(12)
    together, _ = world.render(drawn, 32)
    torch.testing.assert_close(together[5:6], world.render(drawn[5:6], 32)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", world.FAMILY_NAMES)
def test_style_repaints_the_same_scene(family: str) -> None:
    scenes, painter = specs(2), specs(1, 9, (family,))
    repainted = scenes.in_style_of(painter[torch.zeros(2, dtype=torch.long)])
    masks = [world.draw_scene(drawn, 32).mask.mean() for drawn in (repainted, scenes)]
    torch.testing.assert_close(*masks, atol=0.03, rtol=0)
    assert world.captions(repainted) == [f"{text}, {family} style" for text in world.captions(scenes, False)]


@pytest.mark.parametrize("name", HANDS)
def test_a_hand_changes_the_drawing_and_nothing_else(name: str) -> None:
    """Roles still cover the picture and the subject is still about as large; contours move in every hand but plain."""
    drawn = specs(6)
    plain, scene = world.draw_scene(drawn, 64), world.draw_scene(drawn, 64, HANDS[name])
    torch.testing.assert_close(scene.coverage.sum(1), torch.ones(6, 64, 64), atol=1e-4, rtol=0)
    assert bool((scene.edge >= 0).all())
    assert 0.6 < float(scene.mask.mean() / plain.mask.mean()) < 1.3
    moved = (world.contours(scene) - world.contours(plain)).abs().mean((1, 2))
    assert bool((moved == 0).all()) if name == "plain" else bool((moved > 0.01).all())


@pytest.mark.parametrize("name", HANDS)
def test_a_hand_draws_alike_alone_and_in_a_batch(name: str) -> None:
    drawn = specs(5)
    together, _ = world.render(drawn, 32, HANDS[name])
    torch.testing.assert_close(together[3:4], world.render(drawn[3:4], 32, HANDS[name])[0], atol=1e-5, rtol=0)


def test_the_plain_hand_is_the_world_as_it_was() -> None:
    drawn = specs(3)
    for one, other in zip(world.draw_scene(drawn, 32), world.draw_scene(drawn, 32, PLAIN), strict=True):
        assert torch.equal(one, other)


def test_edge_maps_are_white_on_the_contours_and_black_away_from_them() -> None:
    scene = world.draw_scene(specs(4), 128)
    lines = world.contours(scene)
    assert bool((lines[scene.edge < 0.004] > 0.85).all()) and bool((lines[scene.edge > 0.04] == 0).all())
    assert 0.02 < float(lines.mean()) < 0.25


def test_held_out_styles_are_never_among_the_known() -> None:
    held_out = {world.FAMILY_NAMES.index(name) for name in world.HELD_OUT}
    drawn = world.random_specs(500, torch.Generator().manual_seed(0))
    assert not held_out & set(drawn.family.flatten().tolist())
    assert len(world.SUBJECT_NAMES) >= 8 and len(world.FAMILY_NAMES) >= 10 and len(world.BACKGROUND_NAMES) >= 6


def test_remixed_styles_take_their_parts_from_several_families() -> None:
    drawn = world.random_specs(50, torch.Generator().manual_seed(0), remixed=True)
    assert bool((drawn.family[:, 0] != drawn.family[:, 2]).any())


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (("fish", "sea", "comic"), "a fish by the sea, comic style"),
        (("house", None, None), "a house"),
        ((None, "room", "neon"), "a picture in a room, neon style"),
        ((None, None, None), ""),
    ],
)
def test_captions_name_what_they_are_given(parts: tuple[str | None, ...], text: str) -> None:
    assert world.caption(*parts) == text
