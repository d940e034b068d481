"""Captions as tokens of SD's tokenizer, from a table of words: it splits at spaces, and words keep their tokens.

Training then needs no tokenizer, and embeddings of the words that captions use, only.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

LENGTH = 77
BEGIN, END = 49406, 49407  # of SD's tokenizer, which also pads with the latter


class Vocabulary:
    """Words and their tokens; `tokens` [V] are all that occur, in order, and captions become indices into them."""

    def __init__(self, table: dict[str, list[int]]) -> None:
        self.table = table
        self.tokens = torch.tensor(sorted({BEGIN, END, *(token for part in table.values() for token in part)}))
        places = {token: index for index, token in enumerate(self.tokens.tolist())}
        self.begin, self.end = places[BEGIN], places[END]
        self.places = {word: [places[token] for token in part] for word, part in table.items()}

    def rows(self, captions: list[str]) -> Tensor:
        """Indices into `tokens`, [N, 77]. Raises KeyError for a word that is not in the table."""
        return torch.tensor([self._row(caption) for caption in captions], dtype=torch.int16)

    def _row(self, caption: str) -> list[int]:
        words = caption.replace(",", " ,").split()
        row = [self.begin, *(place for word in words for place in self.places[word]), self.end]
        return row + [self.end] * (LENGTH - len(row))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.table), encoding="utf-8")


def load_vocabulary(path: Path) -> Vocabulary:
    return Vocabulary(json.loads(path.read_text(encoding="utf-8")))


def new_vocabulary() -> Vocabulary:
    """From SD's tokenizer, which needs more of ComfyUI than training does."""
    from comfy.sd1_clip import SDTokenizer

    from .scenes import all_words

    tokenizer = SDTokenizer()

    def tokens(word: str) -> list[int]:
        row = [token for token, _ in tokenizer.tokenize_with_weights(word)[0]]
        return row[1 : row.index(END)]

    return Vocabulary({word: tokens(word) for word in all_words()})
