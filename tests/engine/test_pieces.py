"""A phrase is found among the pieces of SentencePiece and byte-level vocabularies."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine.pieces import is_bytewise, pieces_of, positions_in, words_in

T5 = ["\u2581a", "\u2581red", "\u2581", "fox", ",", "\u2581fire", "\u2581na", "\u00ef", "ve"]
QWEN = ["a", "\u0120red", "\u0120fox", ",", "\u0120fire", "fox", "\u0120na\u00c3\u00af", "ve", "\u010a", "<s>"]
BEAR, FOX = ["\u0120\u00f0\u0141", "\u0132", "\u00bb"], ["\u0120\u00f0\u0141", "\u00a6", "\u012c"]  # one emoji each


def read(words: list[str], *sentence: str, before: int = 0, template: tuple[str, ...] = ()) -> Any:
    def chunk(texts: Any) -> Any:
        return [[(0, 1.0, 0)] * before + [(words.index(text), 1.0, 1) for text in texts] + [(0, 1.0, 0)] * 3]

    front, back = template[: len(template) // 2], template[len(template) // 2 :]
    return pieces_of(chunk((*front, *sentence, *back)), chunk(template), words.__getitem__, is_bytewise(words))


def find(phrase: list[str], prompt: list[str], words: list[str]) -> tuple[int, ...]:
    return positions_in(read(words, *phrase), read(words, *prompt))


def test_words_of_several_pieces_are_found_whole_with_the_blank_before_them() -> None:
    prompt = read(T5, "\u2581a", "\u2581red", "\u2581", "fox", ",", "\u2581fire", "fox", before=2)
    for phrase, places in (
        (["\u2581red", "\u2581", "fox"], (3, 4, 5)),
        (["\u2581", "fox"], (5,)),  # not the end of firefox
        (["\u2581fire", "fox"], (7, 8)),
        (["\u2581na", "ve"], ()),
        ([], ()),
    ):
        assert positions_in(read(T5, *phrase), prompt) == places
    assert words_in(prompt) == "a, red, fox, firefox"


def test_a_phrase_as_written_comes_before_the_one_without_punctuation_around_it() -> None:
    prompt = ["\u2581", "fox", "\u2581red", "\u2581", "fox", ","]
    assert find(["\u2581", "fox", ","], prompt, T5) == (4, 5)
    assert find(["\u2581", "fox", ","], prompt[:3], T5) == (1,)
    assert find([","], prompt[:3], T5) == ()


def test_capitals_are_read_as_small_letters() -> None:
    words = [*QWEN, "\u0120Fox", "Red"]
    assert find(["\u0120fox"], ["Red", "\u0120Fox", ",", "\u0120fox"], words) == (1, 3)
    assert find(["Red", "\u0120Fox"], ["a", "\u0120red", "\u0120fox"], words) == (1, 2)


def test_line_breaks_and_several_blanks_are_one_blank() -> None:
    words = [*QWEN, "\u0120", "red"]
    assert find(["red", "\u0120fox"], ["a", "\u0120red", "\u010a", "fox"], words) == (1, 2, 3)
    assert find(["red", "\u0120fox"], ["a", "\u0120red", "\u0120", "\u0120fox"], words) == (1, 2, 3)
    assert find(["red", "\u010a", "fox"], ["a", "\u0120red", "\u0120fox"], words) == (1, 2)


def test_what_is_no_letter_or_no_number_is_passed_over() -> None:
    words = [*QWEN, "<\uff5cend\uff5c>"]
    prompt = [[(words.index("a"), 1.0, 1), (object(), 1.0, 1), (len(words) - 1, 1.0, 1), (words.index("fox"), 1.0, 1)]]
    read_prompt = pieces_of(prompt, [], words.__getitem__, is_bytewise(words))
    assert positions_in(read(words, "fox"), read_prompt) == (3,)


def test_bytes_are_read_as_letters() -> None:
    assert find(["\u0120na\u00c3\u00af", "ve"], ["a", "\u0120na\u00c3\u00af", "ve"], QWEN) == (1, 2)


def test_a_letter_of_several_tokens_is_found_and_not_taken_for_another() -> None:
    words = [*QWEN, *FOX, *BEAR[1:]]
    assert find(FOX, ["a", *BEAR, *FOX], words) == (4, 5, 6)
    assert find(FOX, ["a", *BEAR], words) == ()
    assert find(FOX[:1], ["a", *BEAR], words) == ()  # half an emoji is none
    spelled = ["\u2581a", "\u2581", "<0xF0>", "<0x9F>", "<0xA6>", "<0x8A>"]
    assert find(spelled[1:], spelled, spelled) == (2, 3, 4, 5)
    accented = ["\u2581na", "<0xC3>", "<0xAF>", "ve"]
    assert words_in(read(accented, *accented)) == "na\u00efve"


def test_accents_of_sentencepiece_are_letters_not_bytes() -> None:
    assert find(["\u2581na", "\u00ef", "ve"], ["\u2581a", "\u2581na", "\u00ef", "ve"], T5) == (1, 2, 3)


def test_what_a_vocabulary_does_not_know_is_nowhere() -> None:
    words = ["\u2581a", "\u2581", "<unk>", "fox"]
    assert find(["\u2581", "<unk>"], ["\u2581a", "\u2581", "<unk>"], words) == ()
    assert find(["\u2581", "fox"], ["\u2581", "<unk>", "\u2581", "fox"], words) == (3,)


def test_a_template_round_the_prompt_does_not_count() -> None:
    prompt = read(QWEN, "a", "\u0120red", "\u0120fox", template=("<s>", "\u0120red", "\u010a", "\u010a", "<s>", "a"))
    assert positions_in(read(QWEN, "\u0120red"), prompt) == (4,) and words_in(prompt) == "a, red, fox"


@pytest.mark.parametrize("words", [T5, QWEN])
@given(data=st.data())
def test_every_place_holds_letters_of_the_phrase(words: list[str], data: Any) -> None:
    sentence = data.draw(st.lists(st.sampled_from(words[:6]), max_size=12))
    prompt = read(words, *sentence)
    for place in positions_in(read(words, "fox"), prompt):
        assert b"fox" in prompt[place].content
