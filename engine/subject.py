"""Finds a phrase among the tokens of a prompt, as CLIP's tokenizer laid them out in chunks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import torch

from .texts import COMMAS

Chunks = Sequence[Sequence[tuple[Any, float, int]]]
"""What a ComfyUI tokenizer returns with word ids: chunks of (token, weight, id); id 0 is start, end or padding."""

WORD_END = "</w>"


class Token(NamedTuple):
    """One token of the prompt's own words.

    `value` is a number of the vocabulary or an embedding [width], `text` its spelling, and `position` its place in the
    encoded prompt: start tokens count, and a chunk of 75 words' tokens takes 77 places.
    """

    value: int | torch.Tensor
    text: str
    position: int

    @property
    def ends_word(self) -> bool:
        return isinstance(self.value, torch.Tensor) or self.text.endswith(WORD_END)


@dataclass(frozen=True)
class Phrase:
    """A subject and every place of its tokens in the encoded prompt, each time it is named."""

    text: str
    positions: tuple[int, ...]


class Reading(NamedTuple):
    """A text as its tokens spell it, and for each of its letters the places of the tokens; none for a space.

    Spaces stand between words of letters alone: beside punctuation the tokens do not tell whether there was one.
    """

    text: str
    places: tuple[tuple[int, ...], ...]


def words_of(chunks: Chunks, spelling: Callable[[int], str]) -> list[Token]:
    """The tokens that stand for words or embeddings, in reading order across chunks."""
    return [
        Token(value, "embedding" if isinstance(value, torch.Tensor) else spelling(value), position)
        for value, position in tokens_of(chunks)
    ]


def tokens_of(chunks: Chunks) -> Iterator[tuple[Any, int]]:
    """Tokens that are neither start, end nor padding, each with its position in the encoded prompt."""
    start = 0
    for chunk in chunks:
        for place, (value, _, word) in enumerate(chunk):
            if word != 0:
                yield value, start + place
        start += len(chunk)


def positions_of(phrase: Sequence[Token], prompt: Sequence[Token]) -> tuple[int, ...]:
    """Places of the phrase's tokens wherever it stands in the prompt, whole words only; empty when nowhere.

    Letters are compared, not tokens: the tokenizer joins punctuation, so that `(fox)` ends in another token where a
    comma follows. If the phrase as written is nowhere, punctuation around it is left out, and quotation marks that the
    tokenizer took for contractions ('sailor' is read as 's and ailor) are read as quotation marks.
    """
    as_written = read(phrase).text
    wanted = dict.fromkeys((as_written, bare(as_written), bare(read(phrase, quotes=True).text)))
    for quotes, text in product((False, True), wanted):
        found = places_of(text, read(prompt, quotes)) if text else ()
        if found:
            return found
    return ()


def read(tokens: Sequence[Token], quotes: bool = False) -> Reading:
    """Spell tokens out; with `quotes` no space follows what may be a contraction or a quotation mark and a letter."""
    letters: list[tuple[str, tuple[int, ...]]] = []
    joined = True
    for word in _words(tokens):
        spelled_out = list(_letters(word))
        if not joined and letters[-1][0].isalnum() and spelled_out and spelled_out[0][0].isalnum():
            letters.append((" ", ()))
        letters += spelled_out
        joined = not letters or (quotes and "".join(letter for letter, _ in spelled_out) in CONTRACTIONS)
    return Reading("".join(letter for letter, _ in letters), tuple(places for _, places in letters))


def _words(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """Tokens grouped into the tokenizer's words."""
    word: list[Token] = []
    for token in tokens:
        word.append(token)
        if token.ends_word:
            yield word
            word = []
    if word:
        yield word


def _letters(word: Sequence[Token]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The letters of one word with the places of their tokens; an embedding is spelled by a digest of its values."""
    value = word[0].value
    if isinstance(value, torch.Tensor):
        yield from ((letter, (word[0].position,)) for letter in EMBEDDING + _digest(value))
        return
    spelled_out = [(BYTES[mark], token.position) for token in word for mark in _spelling(token) if mark in BYTES]
    at = 0
    for letter, size in decoded(bytes(byte for byte, _ in spelled_out)):
        yield letter, tuple(dict.fromkeys(place for _, place in spelled_out[at : at + size]))
        at += size


def decoded(content: bytes) -> Iterator[tuple[str, int]]:
    """The letters of UTF-8 and how many bytes each takes; UNREADABLE for every byte that belongs to none."""
    for letter in content.decode("utf-8", "surrogateescape"):
        yield (UNREADABLE, 1) if "\udc80" <= letter <= "\udcff" else (letter, len(letter.encode()))


def _spelling(token: Token) -> str:
    return token.text.removesuffix(WORD_END)


def _digest(embedding: torch.Tensor) -> str:
    return hashlib.sha256(embedding.detach().cpu().float().numpy().tobytes()).hexdigest()


def _byte_alphabet() -> dict[str, int]:
    """How byte-level vocabularies (GPT-2's, and CLIP's after it) write bytes: those that print as themselves."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTES = _byte_alphabet()
UNREADABLE = "\ufffd"
"""Stands for what spells no letter."""
CONTRACTIONS = frozenset({"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"})
"""What CLIP's tokenizer cuts off a word, also behind an opening quotation mark."""
EMBEDDING = "\0"
"""Begins the spelling of an embedding; no prompt holds it."""


def bare(text: str) -> str:
    """The text without punctuation around it."""
    inside = [place for place, letter in enumerate(text) if letter.isalnum() or letter == EMBEDDING]
    return text[inside[0] : inside[-1] + 1] if inside else text


def places_of(wanted: str, prompt: Reading) -> tuple[int, ...]:
    """The places of every mention of a text that neither begins nor ends inside a word; none where it is nowhere."""
    found: set[int] = set()
    start, done = prompt.text.find(wanted), 0
    while start >= 0:
        end = start + len(wanted)
        if not _inside_word(prompt.text, start) and not _inside_word(prompt.text, end):
            found.update(place for places in prompt.places[max(start, done) : end] for place in places)
            done = end
        start = prompt.text.find(wanted, start + 1)
    return tuple(sorted(found))


def _inside_word(text: str, cut: int) -> bool:
    beside = text[cut - 1 : cut + 1] if 0 < cut < len(text) else " "
    return all(letter.isalnum() and not _UNSPACED.match(letter) for letter in beside)


_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
"""Letters of scripts that put no blanks between words: Thai, Lao, Burmese, Khmer, Chinese and Japanese."""


def spelled(prompt: Sequence[Token]) -> str:
    """The prompt's words as the tokenizer reads them, `listed`."""
    return listed(
        "embedding" if isinstance(word[0].value, torch.Tensor) else "".join(letter for letter, _ in _letters(word))
        for word in _words(prompt)
    )


def listed(words: Iterable[str]) -> str:
    """Words separated by commas, without those that hold no letter or digit; each named once, and NAMED at most."""
    named = list(dict.fromkeys(word for word in words if any(map(str.isalnum, word))))
    return ", ".join(named[:NAMED]) + (", ..." if len(named) > NAMED else "")


NAMED = 60
"""Words of a prompt that a message repeats."""


def phrases_in(text: str) -> list[str]:
    """Subjects in a text: one a line, or separated by COMMAS, which separate nothing inside brackets: (a, b:1.2)."""
    return [part.strip() for line in text.splitlines() for part in _separated(line) if part.strip()]


def _separated(line: str) -> list[str]:
    """A line cut at its commas; where brackets do not pair, at all of them."""
    cuts, depth, escaped = [-1], 0, False
    for place, letter in enumerate(line):
        if not escaped:
            depth += (letter == "(") - (letter == ")")
        if letter in COMMAS and depth == 0:
            cuts.append(place)
        if depth < 0:
            break
        escaped = letter == "\\" and not escaped
    if depth != 0:
        return re.split(f"[{COMMAS}]", line)
    return [line[start + 1 : end] for start, end in zip(cuts, [*cuts[1:], len(line)], strict=True)]
