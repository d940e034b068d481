"""Reads a prompt with ComfyUI's tokenizer and finds its subjects' tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from comfy.sd import CLIP

from ...engine.subject import Phrase, phrases_in
from ...engine.texts import bounded, quoted
from ..runs.probe import Conditioning
from .reading import PromptReading, read_prompt

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


def read_subject(clip: CLIP, prompt: str, phrases: str, surroundings: str = "", called: str = "phrase") -> Subject:
    """Encode a prompt and find every phrase in it (one a line, or separated by commas).

    `called` is the input of the phrases as the node shows it, for errors.
    Raises ValueError when no phrase is given, one is not in the prompt, or a text is too long.
    """
    bounded(prompt, "prompt", LONGEST_PROMPT)
    for field, text in ((called, phrases), ("surroundings", surroundings)):
        bounded(text, field, LONGEST)
    names = phrases_in(phrases)
    if not names:
        raise ValueError(
            f"'{called}' is empty: write the words of the prompt that name the subject, such as 'red fox'."
        )
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    reading = read_prompt(clip, prompt, conditioning[0][0].shape[1])
    found, around = (
        tuple(Phrase(name, _positions(reading, name, field)) for name in given)
        for field, given in ((called, names), ("surroundings", phrases_in(surroundings)))
    )
    return Subject(conditioning, found, around)


def _positions(reading: PromptReading, name: str, field: str) -> tuple[int, ...]:
    found = reading.positions(name)
    if not found:
        words = reading.words or "none"
        raise ValueError(f"'{field}': {quoted(name)} is not in the prompt, whose words are: {words}.")
    return found


def described(subject: Subject) -> str:
    """The subjects and their tokens, for the node's face."""
    found = [f"{phrase.text} ({_tokens(phrase.positions)})" for phrase in subject.phrases]
    around = [f"{phrase.text} ({_tokens(phrase.positions)})" for phrase in subject.surroundings]
    words = f"Found in the prompt: {', '.join(found)}"
    return f"{words}; told apart from {', '.join(around)}." if around else f"{words}."


def _tokens(positions: Sequence[int]) -> str:
    return ("token " if len(positions) == 1 else "tokens ") + ", ".join(map(str, positions))
