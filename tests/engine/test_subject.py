"""A phrase is found among a prompt's tokens, wherever the tokenizer put them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine.subject import Reading, decoded, phrases_in, places_of, positions_of, spelled, words_of

VOCABULARY = ["<start>", "a</w>", "red</w>", "fox</w>", "foxes</w>", "ax", "olo", "tl</w>", ",</w>", "fo"]
START, END = 0, 99


def spelling(token: int) -> str:
    return VOCABULARY[token]


def chunks(*sentences: str, length: int = 8) -> list[list[tuple[Any, float, int]]]:
    """Each sentence as one chunk between start and end tokens, padded."""
    made = []
    for sentence in sentences:
        words = [(VOCABULARY.index(word), 1.0, 1) for word in sentence.split()]
        made.append([(START, 1.0, 0), *words, *[(END, 1.0, 0)] * (length - 1 - len(words))])
    return made


def find(phrase: str, *prompt: str) -> tuple[int, ...]:
    return positions_of(words_of(chunks(phrase), spelling), words_of(chunks(*prompt), spelling))


def test_the_start_token_counts() -> None:
    assert find("fox</w>", "fox</w>") == (1,)


def test_phrases_of_several_words_stand_together() -> None:
    assert find("red</w> fox</w>", "a</w> red</w> fox</w> red</w> ,</w> fox</w>") == (2, 3)


def test_every_mention_counts() -> None:
    assert find("fox</w>", "fox</w> a</w> fox</w>") == (1, 3)


def test_later_chunks_begin_with_a_start_token_of_their_own() -> None:
    assert find("fox</w>", "a</w> a</w>", "a</w> fox</w>") == (10,)


def test_a_phrase_may_straddle_two_chunks() -> None:
    assert find("red</w> fox</w>", "a</w> red</w>", "fox</w>") == (2, 9)


def test_part_of_a_word_is_not_the_word() -> None:
    assert find("tl</w>", "ax olo tl</w>") == ()
    assert find("fox</w>", "foxes</w>") == ()
    assert find("ax olo tl</w>", "a</w> ax olo tl</w>") == (2, 3, 4)


@pytest.mark.parametrize(
    ("phrase", "text", "found"),
    [
        ("\u72d0\u72f8", "\u4e00\u53ea\u72d0\u72f8\u5728\u96ea\u5730", True),
        ("\u30ad\u30c4\u30cd", "\u96ea\u306e\u4e2d\u306e\u30ad\u30c4\u30cd\u304c\u8d70\u308b", True),
        (
            "\u0e2a\u0e38\u0e19\u0e31\u0e02",
            "\u0e20\u0e32\u0e1e\u0e2a\u0e38\u0e19\u0e31\u0e02\u0e08\u0e34\u0e49\u0e07",
            True,
        ),
        ("fox", "\u4e00\u53eafox\u5728", True),
        ("\ud6a8", "\ud6a8\ub294", False),
        ("\u043b\u0438\u0441", "\u043b\u0438\u0441\u0430", False),
    ],
)
def test_scripts_without_blanks_have_no_ends_of_words(phrase: str, text: str, found: bool) -> None:
    """Chinese, Japanese and Thai run on; Korean and Russian do not."""
    reading = Reading(text, tuple((place,) for place in range(len(text))))
    start = text.index(phrase)
    assert places_of(phrase, reading) == (tuple(range(start, start + len(phrase))) if found else ())


def test_nothing_finds_nothing() -> None:
    assert find("", "fox</w>") == ()
    assert find("fox</w>", "") == ()
    assert find("red</w> fox</w> a</w>", "red</w> fox</w>") == ()


def test_embeddings_are_compared_by_value() -> None:
    mine, other = torch.ones(4), torch.zeros(4)
    prompt = words_of([[(START, 1.0, 0), (other, 1.0, 1), (3, 1.0, 2), (mine.clone(), 1.2, 3)]], spelling)
    assert positions_of(words_of([[(mine, 1.0, 1)]], spelling), prompt) == (3,)
    assert positions_of(words_of([[(3, 1.0, 1)]], spelling), prompt) == (2,)


def test_many_mentions_of_a_long_phrase_are_found_once_each() -> None:
    words = ["a</w>"] * 20_000
    places = positions_of(words_of(chunks(" ".join(words[:900]), length=902), spelling), words_of(
        chunks(" ".join(words), length=20_002), spelling))  # fmt: skip
    assert places == tuple(range(1, 20_001))


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("(red fox, hat:1.2), tree", ["(red fox, hat:1.2)", "tree"]),
        ("((a, b), c), d", ["((a, b), c)", "d"]),
        (r"miku \(vocaloid, blue, \), tree", [r"miku \(vocaloid", "blue", r"\)", "tree"]),
        (":(, fox", [":(", "fox"]),
        (":), fox, (a, b)", [":)", "fox", "(a", "b)"]),
        ("(a, b\nc, d)", ["(a", "b", "c", "d)"]),
    ],
)
def test_commas_inside_brackets_separate_nothing(text: str, phrases: list[str]) -> None:
    assert phrases_in(text) == phrases


@given(st.binary(max_size=24), st.text(max_size=8), st.binary(max_size=4))
def test_every_byte_belongs_to_one_letter(before: bytes, text: str, behind: bytes) -> None:
    content = before + text.encode("utf-8", "ignore") + behind
    letters = list(decoded(content))
    assert sum(size for _, size in letters) == len(content)
    assert all(len(letter) == 1 for letter, _ in letters)
    whole = "".join(letter for letter, _ in decoded(text.encode("utf-8", "ignore")))
    assert whole == text.encode("utf-8", "ignore").decode()


def test_words_are_spelled_for_people() -> None:
    words = words_of(chunks("a</w> red</w> ax olo tl</w> ,</w> red</w>"), spelling)
    assert spelled(words) == "a, red, axolotl"


def test_chinese_and_japanese_commas_separate_too() -> None:
    assert phrases_in("\u72d0\u72f8\uff0c\u718a\u3001(a\uff0cb:1.2)") == ["\u72d0\u72f8", "\u718a", "(a\uff0cb:1.2)"]
    assert phrases_in("a)\uff0cb") == ["a)", "b"]


def test_subjects_stand_on_lines_or_between_commas() -> None:
    assert phrases_in("red fox, axolotl\n\n hat ,") == ["red fox", "axolotl", "hat"]
    assert phrases_in(" \n,") == []


@given(st.lists(st.sampled_from(["a</w>", "red</w>", "fox</w>"]), max_size=12), st.integers(1, 5))
def test_positions_are_those_of_a_plain_search(words: list[str], per_chunk: int) -> None:
    """However the words are cut into chunks, the tokens found are exactly the words searched for."""
    cut = [" ".join(words[i : i + per_chunk]) for i in range(0, len(words), per_chunk)] or [""]
    places = [chunk * 8 + 1 + place for chunk, part in enumerate(cut) for place, _ in enumerate(part.split())]
    expected = [place for place, word in zip(places, words, strict=True) if word == "fox</w>"]
    assert list(find("fox</w>", *cut)) == expected
