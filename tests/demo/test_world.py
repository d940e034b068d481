"""The demo world: captions say what is shown, masks are exact, what is held out stays out, a seed fixes everything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from demo.world import atlas, media, places, scenes, sets, subjects
from demo.world.words import LENGTH, Vocabulary, new_vocabulary


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def drawn() -> tuple[atlas.Atlas, atlas.Atlas]:
    """Discs in colours of their own instead of drawings."""
    axis = (torch.arange(atlas.SIDE) + 0.5) / atlas.SIDE * 2 - 1
    disc = torch.hypot(axis, axis[:, None]) < 0.9
    colours = torch.randint(40, 216, (len(sets.HANDS), len(subjects.SUBJECTS), 3, 1, 1), generator=dice())
    alpha = (255 * disc).expand(*colours.shape[:2], 1, -1, -1)
    whole = atlas.Atlas(torch.cat([colours * disc, alpha], 2).byte(), tuple(sets.HANDS), subjects.SUBJECTS)
    return whole, whole.half()


def test_subjects_are_plain_and_named_once() -> None:
    assert len(subjects.SUBJECTS) == len(set(subjects.SUBJECTS)) == len(set(subjects.WORDS)) == 72
    assert set(subjects.CALLED) <= set(subjects.SUBJECTS)
    assert {name for pair in subjects.LOOK_ALIKES for name in pair} <= set(subjects.SUBJECTS)


def test_what_is_held_out_stays_out_of_training() -> None:
    specs = scenes.random_specs(4000, dice())
    assert len(subjects.HELD_OUT_SUBJECTS) == 8 and len(sets.HELD_OUT_HANDS) == 2
    shown = {subjects.SUBJECTS[index] for index in specs.subject.unique().tolist() if index != scenes.NOTHING}
    assert shown == set(subjects.KNOWN_SUBJECTS)
    assert {list(sets.HANDS)[index] for index in specs.hand.unique().tolist()} == set(sets.KNOWN_HANDS)
    assert {list(media.MEDIA)[index] for index in specs.medium.unique().tolist()} == set(media.KNOWN_MEDIA)


def test_two_subjects_always_differ() -> None:
    specs = scenes.random_specs(4000, dice(), subjects=("dog", "wolf", "key"), alone=0.0)
    assert bool((specs.subject[:, 0] != specs.subject[:, 1]).all())
    assert len(specs.subject.unique(dim=0)) == 6


def test_a_seed_fixes_the_picture(drawn) -> None:
    first, again, other = (scenes.render(scenes.random_specs(4, dice(s)), *drawn, size=64)[0] for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_captions_say_what_is_shown() -> None:
    specs = scenes.random_specs(300, dice(), alone=0.5)
    for row, text in enumerate(scenes.captions(specs)):
        first, second = specs.subject[row].tolist()
        assert subjects.WORDS[first] in text and f"{list(sets.HANDS.values())[specs.hand[row]]} drawing" in text
        assert (scenes.RELATIONS[specs.relation[row]] in text) == (second != scenes.NOTHING)
        assert (list(media.MEDIA)[specs.medium[row]] + " style" in text) == (specs.medium[row] != 0)
    assert scenes.captions(specs, scenes.Named(*3 * [torch.zeros(300, dtype=torch.bool)])) == [""] * 300
    assert scenes.diptych_captions(specs[:1], torch.tensor([False])) == ["two pictures"]


def test_colour_words_belong_to_one_colour_hands() -> None:
    specs = scenes.random_specs(500, dice())
    one_colour = torch.isin(specs.hand, torch.tensor([list(sets.HANDS).index(name) for name in sets.ONE_COLOUR]))
    assert torch.equal(one_colour, specs.colour != scenes.NOTHING)
    coloured = [name for name in scenes.COLOUR_NAMES if name != "white"]
    for text, has in zip(scenes.captions(specs), one_colour.tolist(), strict=True):
        assert has or not set(coloured) & set(text.split())


def test_the_first_subject_is_where_the_caption_says(drawn) -> None:
    specs = scenes.random_specs(60, dice(), alone=0.0)
    masks = scenes.render(specs, *drawn, size=64)[1]
    axis = torch.arange(64.0)
    x, y = ((masks.sum(dim) * axis).sum(-1) / masks.sum((2, 3)) for dim in (2, 3))  # [B, 2] centres
    apart = {"left of": x[:, 0] - x[:, 1], "right of": x[:, 1] - x[:, 0]}
    apart |= {"above": y[:, 0] - y[:, 1], "below": y[:, 1] - y[:, 0]}
    for row, relation in enumerate(specs.relation.tolist()):
        assert float(apart[scenes.RELATIONS[relation]][row]) < -20


def test_masks_are_exact(drawn) -> None:
    """Where a mask is 1 the drawing's own colour stands, where both are 0 the place."""
    specs = scenes.random_specs(40, dice(), hands=("twemoji", "noto"), plain=1.0, alone=0.5)
    scene = scenes.composed(specs, *drawn, size=96)
    place = scenes.grounds(specs, 96)
    for row in range(40):
        bare = scene.masks[row].sum(0) == 0
        assert torch.allclose(scene.picture[row][:, bare], place[row][:, bare])
        for which, subject in enumerate(specs.subject[row].tolist()):
            if subject != scenes.NOTHING:
                colour = drawn[0].drawings[specs.hand[row], subject, :3, 96, 96].float() / 255
                inside = scene.picture[row][:, scene.masks[row, which] > 0.999]
                assert inside.shape[1] > 100 and float((inside - colour[:, None]).abs().max()) < 0.01
    assert float(scene.masks.sum(1).max()) <= 1 + 1e-5


def test_edges_lie_at_the_subjects_border(drawn) -> None:
    specs = scenes.random_specs(8, dice(), hands=("twemoji",), alone=1.0)
    specs.place.fill_(scenes.NOTHING)
    scene = scenes.composed(specs, *drawn, size=128)
    edges = scenes.contours(scene)
    near = torch.nn.functional.max_pool2d(scene.masks[:, :1], 7, 1, 3) - -torch.nn.functional.max_pool2d(
        -scene.masks[:, :1], 7, 1, 3
    )
    assert float(edges[near[:, 0] < 0.5].max()) == 0 and float(edges.amax((1, 2)).min()) == 1


def test_edges_of_a_painted_picture_are_those_of_its_colours(drawn) -> None:
    specs = scenes.random_specs(2, dice(), plain=1.0)
    scene = scenes.composed(specs, *drawn, size=64)
    assert torch.equal(scenes.edges(scene.picture), scenes.contours(scene))
    assert not scenes.edges(torch.full((1, 3, 8, 8), 0.5)).any()


@pytest.mark.parametrize("name", scenes.PLACE_NAMES)
def test_places_are_pale_and_have_parts(name: str) -> None:
    specs = scenes.random_specs(3, dice())
    specs.place.fill_(scenes.PLACE_NAMES.index(name))
    shown = scenes.grounds(specs, 64)
    assert float(shown.amin((1, 2, 3)).min()) > 0.3 and bool((shown.std((2, 3)).amax(1) > 0.02).all())
    assert places.PHRASES[name] in scenes.captions(specs)[0]


def test_styles_pass_from_scene_to_scene() -> None:
    first, second = scenes.random_specs(5, dice(1)), scenes.random_specs(5, dice(2))
    moved = second.in_style_of(first)
    assert all(
        torch.equal(getattr(moved, part), getattr(first, part)) for part in ("hand", "medium", "colour", "style")
    )
    assert all(torch.equal(getattr(moved, part), getattr(second, part)) for part in ("subject", "place", "pose"))


@pytest.mark.parametrize("name", list(media.MEDIA))
def test_media_change_the_picture_and_keep_it_in_range(name: str) -> None:
    picture, style = torch.rand(2, 3, 64, 64, generator=dice()), torch.rand(2, 10, generator=dice())
    result = media.laid(picture, torch.full((2,), list(media.MEDIA).index(name)), style)
    assert float(result.min()) >= 0 and float(result.max()) <= 1 and torch.isfinite(result).all()
    assert torch.equal(result, picture) == (name == media.PLAIN)


def test_colours_come_back_from_oklab() -> None:
    picture = torch.rand(2, 3, 8, 8, generator=dice())
    assert torch.allclose(media.srgb(media.oklab(picture)), picture, atol=1e-4)


def test_an_atlas_comes_back_as_it_was_packed(tmp_path: Path) -> None:
    drawings = torch.randint(256, (2, 3, 4, 16, 16), generator=dice(), dtype=torch.uint8)
    drawings[1, 2] = 0
    atlas.pack(atlas.Atlas(drawings, ("a", "b"), ("x", "y", "z")), tmp_path / "atlas.bin")
    back = atlas.unpack(tmp_path / "atlas.bin")
    assert torch.equal(back.drawings, drawings) and back.hands == ("a", "b") and back.subjects == ("x", "y", "z")
    assert back.drawn_by("a") == [0, 1, 2] and back.drawn_by("b") == [0, 1]


def test_one_colour_drawings_are_filled_with_paper() -> None:
    ring = torch.zeros(4, 9, 9, dtype=torch.uint8)
    ring[3, 2:7, 2:7] = 255
    ring[3, 3:6, 3:6] = 0
    filled = atlas.filled(ring)
    assert filled[:, 4, 4].tolist() == [255] * 4 and filled[:, 2, 2].tolist() == [0, 0, 0, 255]
    assert not filled[3, 0].any()


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return new_vocabulary()


def test_words_give_the_tokens_that_sds_tokenizer_gives(vocabulary: Vocabulary) -> None:
    from comfy.sd1_clip import SDTokenizer

    specs = scenes.random_specs(60, dice())
    texts = [*scenes.captions(specs), *scenes.diptych_captions(specs, torch.ones(60, dtype=torch.bool)), ""]
    rows = vocabulary.tokens[vocabulary.rows(texts).long()]
    tokenizer = SDTokenizer()
    for text, row in zip(texts, rows.tolist(), strict=True):
        assert row == [token for token, _ in tokenizer.tokenize_with_weights(text)[0]], text
        assert len(row) == LENGTH


def test_a_word_that_no_caption_has_is_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(KeyError):
        vocabulary.rows(["a sphinx"])
