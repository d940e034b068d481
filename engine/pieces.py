"""Finds a phrase among the pieces of a text model's tokenizer (T5, Qwen, Gemma, Llama), which mark where words begin.

CLIP's tokenizer marks where they end and reads a prompt in lower case; `subject` is about that one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import NamedTuple

from .subject import BYTES, UNREADABLE, Chunks, Reading, bare, decoded, listed, places_of, tokens_of

BLANK = "\u2581"
"""How SentencePiece writes the blank before a word; byte-level vocabularies write each byte as one letter instead."""
UNKNOWN = "<unk>"

_BYTE = re.compile("<0x([0-9A-F]{2})>")  # how SentencePiece spells a byte of a letter that its vocabulary lacks


class Piece(NamedTuple):
    """One token of a text: the bytes that it stands for, perhaps of half a letter, and its place among the tokens."""

    content: bytes
    position: int


def is_bytewise(vocabulary: Iterable[str]) -> bool:
    """Whether a vocabulary writes each byte as one letter."""
    return not any(BLANK in spelled for spelled in vocabulary)


def pieces_of(chunks: Chunks, empty: Chunks, spelling: Callable[[int], str], bytewise: bool) -> list[Piece]:
    """The tokens of a text, without padding and without the template that is put round `empty` as well.

    Tokens that are no numbers (pictures, embeddings) and UNKNOWN ones are UNREADABLE.
    """
    tokens, template = (list(tokens_of(each)) for each in (chunks, empty))
    front = _alike(tokens, template)
    back = _alike(tokens[front:][::-1], template[front:][::-1])
    own = tokens[front : len(tokens) - back]
    return [Piece(_content(spelling(value) if isinstance(value, int) else UNKNOWN, bytewise), at) for value, at in own]


def positions_in(phrase: Sequence[Piece], prompt: Sequence[Piece]) -> tuple[int, ...]:
    """Places of the tokens that hold a phrase wherever the prompt names it as whole words; empty when nowhere.

    Letters are compared, not tokens. If the phrase as written is nowhere, punctuation around it is left out.
    """
    written, whole = letters_of(phrase).text.strip(), letters_of(prompt)
    for text in dict.fromkeys((written, bare(written))):
        found = places_of(text, whole) if text and UNREADABLE not in text else ()
        if found:
            return found
    return ()


def words_in(prompt: Sequence[Piece]) -> str:
    """The prompt's words, `listed`."""
    return listed(word.strip(".,;:!?()\"'") for word in letters_of(prompt).text.split())


def letters_of(pieces: Sequence[Piece]) -> Reading:
    """A text in lower case with one blank between words, and the tokens of each letter; a blank is of what follows."""
    owners = [piece.position for piece in pieces for _ in piece.content]
    text, places, at = "", [], 0
    for letter, size in decoded(b"".join(piece.content for piece in pieces)):
        shown = " " if letter.isspace() else letter.lower()
        if shown != " " or not text.endswith(" "):
            text += shown
            places += [tuple(dict.fromkeys(owners[at : at + size]))] * len(shown)
        at += size
    return Reading(text, tuple(places))


def _alike(tokens: Sequence[tuple[object, int]], template: Sequence[tuple[object, int]]) -> int:
    """How many tokens two texts begin with in common."""
    pairs = zip(tokens, template, strict=False)
    return sum(1 for _ in takewhile(lambda pair: type(pair[0][0]) is int and pair[0][0] == pair[1][0], pairs))


def _content(spelled: str, bytewise: bool) -> bytes:
    """What a piece of a vocabulary stands for."""
    if spelled == UNKNOWN:
        return UNREADABLE.encode()
    if bytewise and all(letter in BYTES for letter in spelled):
        return bytes(BYTES[letter] for letter in spelled)
    byte = _BYTE.fullmatch(spelled)
    return spelled.replace(BLANK, " ").encode("utf-8", "replace") if byte is None else bytes.fromhex(byte[1])
