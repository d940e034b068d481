"""Finds a phrase among the pieces of a text model's tokenizer (T5, Qwen, Gemma, Llama), which mark where words begin.

CLIP's tokenizer marks where they end and reads a prompt in lower case; `subject` is about that one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import NamedTuple

from .subject import _BYTES, Chunks

BLANK = "\u2581"
"""How SentencePiece writes the blank before a word; byte-level vocabularies write each byte as one letter instead."""
NAMED = 60
"""Words of a prompt that a message repeats."""


class Piece(NamedTuple):
    """One token of a text: what it spells, in lower case, and its place among the tokens."""

    text: str
    position: int


def pieces_of(chunks: Chunks, empty: Chunks, spelling: Callable[[int], str]) -> list[Piece]:
    """The tokens of a prompt, without padding and without the template that is put round `empty` as well.

    Tokens that are no numbers (pictures, embeddings) spell nothing.
    """
    tokens, template = (_words(each) for each in (chunks, empty))
    front = _alike(tokens, template)
    back = _alike(tokens[front:][::-1], template[front:][::-1])
    own = tokens[front : len(tokens) - back]
    return [Piece(_read(spelling(value)) if isinstance(value, int) else "\0", place) for value, place in own]


def positions_in(phrase: str, prompt: Sequence[Piece]) -> tuple[int, ...]:
    """Places of the tokens that hold a phrase wherever the prompt names it as whole words; empty when nowhere."""
    wanted = " ".join(phrase.lower().split())
    letters, places = _letters(prompt)
    found: set[int] = set()
    start = letters.find(wanted) if wanted else -1
    while start >= 0:
        end = start + len(wanted)
        if not _inside_word(letters, start) and not _inside_word(letters, end):
            found.update(places[start:end])
        start = letters.find(wanted, start + 1)
    return tuple(sorted(found))


def words_in(prompt: Sequence[Piece]) -> str:
    """The prompt's words, separated by commas; each named once, and NAMED at most."""
    words = (word.strip(".,;:!?()\"'") for word in "".join(piece.text for piece in prompt).split())
    named = list(dict.fromkeys(word for word in words if any(map(str.isalnum, word))))
    return ", ".join(named[:NAMED]) + (", ..." if len(named) > NAMED else "")


def _words(chunks: Chunks) -> list[tuple[object, int]]:
    """Tokens and places of what is neither start, end nor padding."""
    return [
        (value, start + place)
        for start, chunk in zip(_starts(chunks), chunks, strict=True)
        for place, (value, _, word) in enumerate(chunk)
        if word != 0
    ]


def _starts(chunks: Chunks) -> list[int]:
    return [sum(len(chunk) for chunk in chunks[:number]) for number in range(len(chunks))]


def _alike(tokens: Sequence[tuple[object, int]], template: Sequence[tuple[object, int]]) -> int:
    """How many tokens two texts begin with in common."""
    pairs = zip(tokens, template, strict=False)
    return sum(1 for _ in takewhile(lambda pair: type(pair[0][0]) is int and pair[0][0] == pair[1][0], pairs))


def _read(spelled: str) -> str:
    """What a piece of a vocabulary stands for."""
    if BLANK in spelled or not all(letter in _BYTES for letter in spelled):
        return spelled.replace(BLANK, " ").lower()
    return bytes(_BYTES[letter] for letter in spelled).decode("utf-8", "replace").lower()


def _letters(prompt: Sequence[Piece]) -> tuple[str, list[int]]:
    """The prompt's letters with one blank between words, and the token of each; a blank belongs to what follows."""
    letters, places = "", []
    for piece in prompt:
        for letter in piece.text:
            blank = letter.isspace()
            if not (blank and letters.endswith(" ")):
                letters += " " if blank else letter
                places.append(piece.position)
            elif not blank:
                places[-1] = piece.position
    return letters, places


def _inside_word(text: str, cut: int) -> bool:
    return 0 < cut < len(text) and text[cut - 1].isalnum() and text[cut].isalnum()
