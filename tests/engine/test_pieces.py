"""A phrase is found among the pieces of SentencePiece and byte-level vocabularies."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine.pieces import pieces_of, positions_in, words_in

T5 = ["\u2581a", "\u2581red", "\u2581", "fox", ",", "\u2581fire", "\u2581na", "\u00ef", "ve"]
QWEN = ["a", "\u0120red", "\u0120fox", ",", "\u0120fire", "fox", "\u0120na\u00c3\u00af", "ve", "\u010a", "<s>"]


def read(words: list[str], *sentence: str, before: int = 0, template: tuple[str, ...] = ()) -> Any:
    def chunk(texts: Any) -> Any:
        return [[(0, 1.0, 0)] * before + [(words.index(text), 1.0, 1) for text in texts] + [(0, 1.0, 0)] * 3]

    front, back = template[: len(template) // 2], template[len(template) // 2 :]
    return pieces_of(chunk((*front, *sentence, *back)), chunk(template), words.__getitem__)


def test_words_of_several_pieces_are_found_whole_with_the_blank_before_them() -> None:
    prompt = read(T5, "\u2581a", "\u2581red", "\u2581", "fox", ",", "\u2581fire", "fox", before=2)
    assert positions_in("red fox", prompt) == (3, 4, 5)
    assert positions_in("Fox", prompt) == (5,)  # not the end of firefox
    assert positions_in("firefox", prompt) == (7, 8)
    assert positions_in("wolf", prompt) == positions_in("", prompt) == ()
    assert words_in(prompt) == "a, red, fox, firefox"


def test_bytes_are_read_as_letters() -> None:
    assert positions_in("na\u00efve", read(QWEN, "a", "\u0120na\u00c3\u00af", "ve")) == (1, 2)


def test_a_template_round_the_prompt_does_not_count() -> None:
    prompt = read(QWEN, "a", "\u0120red", "\u0120fox", template=("<s>", "\u0120red", "\u010a", "\u010a", "<s>", "a"))
    assert positions_in("red", prompt) == (4,) and words_in(prompt) == "a, red, fox"


@pytest.mark.parametrize("words", [T5, QWEN])
@given(data=st.data())
def test_every_place_holds_letters_of_the_phrase(words: list[str], data: Any) -> None:
    sentence = data.draw(st.lists(st.sampled_from(words[:6]), max_size=12))
    prompt = read(words, *sentence)
    for place in positions_in("fox", prompt):
        assert "fox" in prompt[place].text
