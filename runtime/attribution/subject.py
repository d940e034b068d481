"""Reads a prompt with ComfyUI's tokenizer and finds its subjects' tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.sd import CLIP

from ...engine.subject import Phrase, Token, phrases_in, positions_of, spelled, words_of
from ...engine.texts import bounded, quoted

Conditioning = list[list[Any]]

LONGEST_PROMPT = 100_000
LONGEST = 2_000
"""Characters that the names of the subjects may hold."""


@dataclass(frozen=True)
class Subject:
    """Phrases of one prompt with their token positions, and the prompt as it was encoded.

    `surroundings` are phrases that name what the subject is not; every map is then set against theirs.
    """

    conditioning: Conditioning
    phrases: tuple[Phrase, ...]
    surroundings: tuple[Phrase, ...] = ()

    @property
    def text(self) -> torch.Tensor:
        """The encoded prompt [1, tokens, width]."""
        return self.conditioning[0][0]


def read_subject(clip: CLIP, prompt: str, phrases: str, surroundings: str = "") -> Subject:
    """Encode a prompt and find every phrase in it (one a line, or separated by commas).

    Raises ValueError when no phrase is given, one is not in the prompt, or a text is too long.
    """
    bounded(prompt, "prompt", LONGEST_PROMPT)
    for field, text in (("phrase", phrases), ("surroundings", surroundings)):
        bounded(text, field, LONGEST)
    names = phrases_in(phrases)
    if not names:
        raise ValueError("'phrase' is empty: write the words of the prompt that name the subject, such as 'red fox'.")
    readers = _readers(clip)
    tokens = clip.tokenize(prompt, return_word_ids=True)
    read = {key: words_of(tokens[key], spelling) for key, spelling in readers.items()}
    found, around = (
        tuple(Phrase(name, _positions(clip, name, readers, read, field)) for name in given)
        for field, given in (("phrase", names), ("surroundings", phrases_in(surroundings)))
    )
    return Subject(clip.encode_from_tokens_scheduled(clip.tokenize(prompt)), found, around)


def _readers(clip: CLIP) -> dict[str, Callable[[int], str]]:
    """How each text encoder (SDXL has two) spells its tokens."""
    encoders = {key: getattr(clip.tokenizer, f"clip_{key}", None) for key in ("l", "g", "h")}
    readers = {key: encoder.inv_vocab.__getitem__ for key, encoder in encoders.items() if encoder is not None}
    if not readers:
        raise ValueError("'clip' is not a CLIP text encoder: connect the CLIP of an SD1.5, SD2 or SDXL checkpoint.")
    return readers


def _positions(
    clip: CLIP,
    name: str,
    readers: dict[str, Callable[[int], str]],
    prompt: dict[str, list[Token]],
    field: str = "phrase",
) -> tuple[int, ...]:
    """Places of a phrase in the encoded prompt: all encoders' share one row of tokens."""
    phrase = clip.tokenize(name, return_word_ids=True)
    found = {key: positions_of(words_of(phrase[key], spelling), prompt[key]) for key, spelling in readers.items()}
    if not any(found.values()):
        words = spelled(next(iter(prompt.values()))) or "none"
        raise ValueError(f"'{field}': {quoted(name)} is not in the prompt, whose words are: {words}.")
    return tuple(sorted({position for places in found.values() for position in places}))


def described(subject: Subject) -> str:
    """The subjects and their tokens, for the node's face."""
    lines = [f"{phrase.text}: {_tokens(phrase.positions)}" for phrase in subject.phrases]
    lines += [f"against {phrase.text}: {_tokens(phrase.positions)}" for phrase in subject.surroundings]
    return "\n".join(lines) + f"\nof {subject.text.shape[1]}, counted from 0, the start token"


def _tokens(positions: Sequence[int]) -> str:
    return ("token " if len(positions) == 1 else "tokens ") + ", ".join(map(str, positions))
