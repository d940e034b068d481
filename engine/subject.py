"""Finds a phrase among the tokens of a prompt, as CLIP's tokenizer laid them out in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

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

    def same(self, other: Token) -> bool:
        if isinstance(self.value, torch.Tensor) and isinstance(other.value, torch.Tensor):
            return torch.equal(self.value, other.value)
        return type(self.value) is type(other.value) and self.value == other.value


@dataclass(frozen=True)
class Phrase:
    """A subject and every place of its tokens in the encoded prompt, each time it is named."""

    text: str
    positions: tuple[int, ...]


def words_of(chunks: Chunks, spelling: Callable[[int], str]) -> list[Token]:
    """The tokens that stand for words or embeddings, in reading order across chunks."""
    return list(_words(chunks, spelling))


def _words(chunks: Chunks, spelling: Callable[[int], str]) -> Iterator[Token]:
    start = 0
    for chunk in chunks:
        for place, (value, _, word) in enumerate(chunk):
            if word != 0:
                text = "embedding" if isinstance(value, torch.Tensor) else spelling(value)
                yield Token(value, text, start + place)
        start += len(chunk)


def positions_of(phrase: Sequence[Token], prompt: Sequence[Token]) -> tuple[int, ...]:
    """Positions of the phrase's tokens wherever it stands in the prompt, whole words only; empty when nowhere."""
    found: set[int] = set()
    for start in range(len(prompt) - len(phrase) + 1):
        here = prompt[start : start + len(phrase)]
        at_word = start == 0 or prompt[start - 1].ends_word
        if phrase and at_word and all(a.same(b) for a, b in zip(phrase, here, strict=True)):
            found.update(token.position for token in here)
    return tuple(sorted(found))


def spelled(prompt: Sequence[Token]) -> str:
    """The prompt's words as the tokenizer reads them, parted by commas; each named once."""
    text = "".join(token.text if not token.ends_word else token.text.removesuffix(WORD_END) + "\n" for token in prompt)
    words = [word for word in text.split("\n") if any(letter.isalnum() for letter in word)]
    return ", ".join(dict.fromkeys(words))


def phrases_in(text: str) -> list[str]:
    """Subjects in a text: one a line, or parted by commas."""
    return [part.strip() for line in text.splitlines() for part in line.split(",") if part.strip()]
