"""The gate grammar: layers by hand, such as `o1.4-9, i5, -m0` on a UNet or `j0-11, s6, -x` on a transformer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, NoReturn

import torch

from .layers import KINDS, LayerId, in_forward_order, spans, spelled
from .profile import FEATURES
from .texts import LONGEST

EXCERPT = 120  # characters of a text that a message repeats
_EXAMPLE = "write for instance o1.4-9, i5, -m0"


class GrammarError(ValueError):
    """A text outside its grammar; the message quotes it and points at the character."""

    def __init__(self, text: str, at: int, problem: str, example: str = _EXAMPLE) -> None:
        line = "".join(mark if mark.isprintable() else " " for mark in text).rstrip()
        start = at - EXCERPT // 2 if len(line) > EXCERPT and at > EXCERPT // 2 else 0
        shown = line[start : start + EXCERPT]
        super().__init__(f"{problem} at character {at + 1}; {example}.\n{shown}\n{' ' * (at - start)}^")
        self.at = at


class Span(NamedTuple):
    """A closed range of numbers."""

    first: int
    last: int

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self.first <= number <= self.last


class Term(NamedTuple):
    """One entry of the grammar: `[-][features:]layers[:weight]`. A missing part or span means all of them."""

    at: int
    removes: bool
    features: tuple[str, ...]
    block: str | None
    numbers: Span | None
    transformers: Span | None
    weight: float

    def matches(self, layer: LayerId) -> bool:
        return (
            self.block in (None, layer.block)
            and (self.numbers is None or layer.number in self.numbers)
            and (self.transformers is None or layer.transformer in self.transformers)
        )


class Selection(NamedTuple):
    """Terms read left to right, each adding or removing layers; a leading removal starts from all layers."""

    text: str
    terms: tuple[Term, ...]

    def weights(self, layers: Sequence[LayerId]) -> torch.Tensor:
        """Weights [3, L] in [0, 1] along FEATURES and `layers`.

        Raises GrammarError when a term names a layer that is not among `layers`.
        """
        return _weights(self, tuple(layers)).clone()


@lru_cache(maxsize=64)
def _weights(selection: Selection, layers: tuple[LayerId, ...]) -> torch.Tensor:
    """Weights [3, L] of a selection; kept, as a map reads the same ones at every noise level."""
    starts_full = bool(selection.terms) and selection.terms[0].removes
    weights = torch.full((len(FEATURES), len(layers)), float(starts_full), dtype=torch.float64)
    for term in selection.terms:
        chosen = _places(selection.text, term, layers)
        for feature in term.features:
            weights[FEATURES.index(feature), chosen] = 0.0 if term.removes else term.weight
    return weights


def _places(text: str, term: Term, layers: Sequence[LayerId]) -> list[int]:
    """Where a term's layers stand. Both ends of every range must exist: a selection for another model is not obeyed."""
    places = [place for place, layer in enumerate(layers) if term.matches(layer)]
    ends = set(term.numbers or ()) - {layers[place].number for place in places}
    ends |= set(term.transformers or ()) - {layers[place].transformer for place in places}
    if ends or not places:
        raise GrammarError(text, term.at, f"This model has no layer like the one named{_near(term, layers)}")
    return places


def _near(term: Term, layers: Sequence[LayerId]) -> str:
    numbers = sorted({layer.number for layer in layers if layer.block == term.block})
    if not numbers:
        return f" (its layers are {spelled(in_forward_order(layers))})"
    return f" (its {term.block} blocks with attention are {spans(numbers)})"


def parse(text: str) -> Selection:
    """Read a selection; blanks do not matter, commas or line ends part the terms, an empty text selects nothing.

    `o1.4-9` transformers 4 to 9 of output block 1; `i5` a whole block; `o3-5` blocks 3 to 5; `m` a whole part; `all`;
    `j0-11`, `s6`, `x`, `r`, `b7` blocks of transformers (`engine.layers.LETTERS`);
    `-m0` takes layers away; `q:o1` the query only (`qk:` both); `o1:0.5` half the weight.
    Raises GrammarError where the text leaves the grammar or goes on for too long.
    """
    if len(text) > LONGEST:
        raise GrammarError(text, LONGEST, f"A selection ends after {LONGEST:,} characters; this one goes on")
    scanner = _Scanner(text)
    terms = []
    while not scanner.at_end():
        terms.append(_term(scanner))
        if scanner.take(r"[,\n]") is None and not scanner.at_end():
            scanner.fail("Expected a comma")
    return Selection(text, tuple(terms))


def edited(text: str, layer: LayerId, layers: Sequence[LayerId], chosen: bool) -> str:
    """`text` with one layer of a model's `layers` wholly selected or wholly not, and every other weight as it was.

    An entry that names just this layer goes before a new one comes, so that a layer picked and dropped leaves no trace.
    Raises GrammarError where the text leaves the grammar or names a layer that is not among `layers`.
    """
    wanted = parse(text).weights(layers)
    wanted[:, list(layers).index(layer)] = float(chosen)
    entries = [entry.strip() for entry in re.split(r"[,\n]", text) if entry.strip()]
    others = [entry for entry in entries if entry.lstrip("- ").lower() != str(layer)]
    added = str(layer) if chosen else f"-{layer}"
    candidates = ([*kept, *more] for kept in (others, entries) for more in ([], [added]))
    texts = (", ".join(candidate) for candidate in candidates)
    return next(text for text in texts if torch.equal(parse(text).weights(layers), wanted))


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self._skip(r"[ \t\r]*")

    def take(self, pattern: str) -> re.Match[str] | None:
        """The match of `pattern` here, stepped over together with the blanks behind it."""
        match = re.compile(pattern, re.IGNORECASE | re.ASCII).match(self.text, self.at)
        if match is not None:
            self.at = match.end()
            self._skip(r"[ \t\r]*")
        return match

    def at_end(self) -> bool:
        self._skip(r"\s*")
        return self.at == len(self.text)

    def fail(self, problem: str) -> NoReturn:
        raise GrammarError(self.text, self.at, problem)

    def _skip(self, blanks: str) -> None:
        if match := re.compile(blanks).match(self.text, self.at):
            self.at = match.end()


def _term(scanner: _Scanner) -> Term:
    scanner.at_end()
    at = scanner.at
    removes = scanner.take("-") is not None
    features = _features(scanner)
    block, numbers, transformers = _layers(scanner)
    return Term(at, removes, features, block, numbers, transformers, _weight(scanner, removes))


def _features(scanner: _Scanner) -> tuple[str, ...]:
    match = scanner.take(r"([qkv]+)[ \t\r]*:")
    return FEATURES if match is None else tuple(match[1].lower())


def _layers(scanner: _Scanner) -> tuple[str | None, Span | None, Span | None]:
    if scanner.take(r"all\b"):
        return None, None, None
    part = scanner.take(f"[{''.join(KINDS)}]")
    if part is None:
        scanner.fail("Expected a layer")
    numbers = _span(scanner)
    transformers = None
    if numbers is not None and scanner.take(r"\."):
        transformers = _span(scanner) or scanner.fail("Expected the number of a transformer")
    return KINDS[part[0].lower()], numbers, transformers


def _span(scanner: _Scanner) -> Span | None:
    at = scanner.at
    match = scanner.take(r"(\d{1,4})(?:-(\d{1,4}))?(?!\d)")
    if match is None:
        return None
    span = Span(int(match[1]), int(match[2] or match[1]))
    if span.last < span.first:
        raise GrammarError(scanner.text, at, "A range must run upwards")
    return span


def _weight(scanner: _Scanner, removes: bool) -> float:
    at = scanner.at
    if scanner.take(":") is None:
        return 1.0
    match = scanner.take(r"\d*\.\d+|\d+\.?")
    if match is None:
        scanner.fail("Expected a weight from 0 to 1")
    if removes or float(match[0]) > 1:
        raise GrammarError(scanner.text, at, "A removal has no weight" if removes else "A weight is at most 1")
    return float(match[0])
