"""Reads a prompt as each text encoder of a model does, and tells where its tokens stand in the encoded prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from comfy.sd import CLIP

from ...engine.pieces import Piece, is_bytewise, pieces_of, positions_in, words_in
from ...engine.subject import Chunks, Token, positions_of, spelled, words_of

CLIPS = ("l", "g", "h")
"""ComfyUI's names of CLIP text encoders; where several encode a prompt, their tokens share one row."""
CUT_AT_BOTH_ENDS = "llama"
"""HunyuanVideo's language model."""


class Encoder(ABC):
    """One text encoder's reading of the prompt."""

    @abstractmethod
    def positions(self, name: str) -> tuple[int, ...]:
        """Places of a phrase's tokens in the encoded prompt; empty when it is not named."""

    @property
    @abstractmethod
    def words(self) -> str:
        """The prompt's words, for a message."""


@dataclass(frozen=True)
class _Clip(Encoder):
    clip: CLIP
    key: str
    spelling: Callable[[int], str]
    prompt: list[Token]

    def positions(self, name: str) -> tuple[int, ...]:
        phrase = self.clip.tokenize(name, return_word_ids=True)[self.key]
        return positions_of(words_of(phrase, self.spelling), self.prompt)

    @property
    def words(self) -> str:
        return spelled(self.prompt)


@dataclass(frozen=True)
class _Language(Encoder):
    """A language model (T5, Qwen, Gemma): its tokens stand `behind` so many others, negative where a front is cut."""

    read: Callable[[str], list[Piece]]
    prompt: list[Piece]
    behind: int

    def positions(self, name: str) -> tuple[int, ...]:
        found = (place + self.behind for place in positions_in(self.read(name), self.prompt))
        return tuple(place for place in found if place >= 0)

    @property
    def words(self) -> str:
        return words_in(self.prompt)


@dataclass(frozen=True)
class PromptReading:
    """All encoders' readings of one prompt."""

    encoders: tuple[Encoder, ...]

    def positions(self, name: str) -> tuple[int, ...]:
        return tuple(sorted({place for encoder in self.encoders for place in encoder.positions(name)}))

    @property
    def words(self) -> str:
        return self.encoders[0].words


def read_prompt(clip: CLIP, prompt: str, encoded: int) -> PromptReading:
    """The readings of a prompt that the text encoders turn into so many `encoded` tokens.

    Raises ValueError for text encoders of whose tokens it is not known where they stand.
    """
    tokens, empty = (clip.tokenize(text, return_word_ids=True) for text in (prompt, ""))
    languages = [key for key in tokens if key not in CLIPS]
    clips = {key: tokens[key] for key in tokens if key in CLIPS}
    if len(languages) > 1:
        raise ValueError(
            f"'clip' holds {len(tokens)} text encoders whose tokens cannot be told apart: connect the text encoder of "
            "SD1.5, SDXL, SD3.5, Flux, Qwen-Image, Z-Image or another model with one language model."
        )
    if CUT_AT_BOTH_ENDS in languages:
        raise ValueError(
            "'clip' is HunyuanVideo's, whose encoded prompt is cut at both ends, so it is not known where the words of "
            "the subject stand: use another model for a subject."
        )
    if not languages:
        return PromptReading(tuple(_clips(clip, clips)))
    (key,) = languages
    vocabulary = _tokenizer(clip, key).inv_vocab
    bytewise = is_bytewise(vocabulary.values())

    def read(text: str) -> list[Piece]:
        own = clip.tokenize(text, return_word_ids=True)[key]
        return pieces_of(own, empty[key], vocabulary.__getitem__, bytewise)

    length = sum(map(len, tokens[key]))
    row = max((sum(map(len, chunks)) for chunks in clips.values()), default=0)
    beside = bool(clips) and encoded == row + length
    if not beside and encoded > length:
        raise ValueError(
            f"'clip' makes {encoded} tokens of the prompt's {length}, so it is not known where the subject's stand: "
            "another node or text encoder adds some."
        )
    behind = row if beside else encoded - length
    language = _Language(read, read(prompt), behind)
    return PromptReading((*(_clips(clip, clips) if beside else ()), language))


def _clips(clip: CLIP, tokens: dict[str, Chunks]) -> Iterator[Encoder]:
    for key, chunks in tokens.items():
        spelling = _tokenizer(clip, key).inv_vocab.__getitem__
        yield _Clip(clip, key, spelling, words_of(chunks, spelling))


def _tokenizer(clip: CLIP, key: str) -> Any:
    """ComfyUI's tokenizer of one text encoder, which keeps it under the key itself or behind clip_."""
    for name in (f"clip_{key}", key):
        found = getattr(clip.tokenizer, name, None)
        if hasattr(found, "inv_vocab"):
            return found
    raise ValueError(f"'clip' has a text encoder '{key}' whose words cannot be read: use another model for a subject.")
