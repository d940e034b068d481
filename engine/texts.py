"""Texts that come from outside: bounded before they are read, and quoted in short."""

from __future__ import annotations

LONGEST = 10_000
"""Characters that a text input may hold: a selection that names every layer of a large model one by one has 3,000."""
LONGEST_NAME = 200
"""Characters of a name that is kept in profiles and listed in reports."""
COMMAS = ",\uff0c\u3001"
"""What separates names in a list: a comma, and those that Chinese and Japanese keyboards write."""
QUOTED = 60
"""Characters of a foreign text that a message repeats."""


def bounded(text: str, name: str, longest: int = LONGEST) -> str:
    """`text` as it is. Raises ValueError that names the input when it is longer than `longest` characters."""
    if len(text) > longest:
        raise ValueError(
            f"'{name}' is too long ({len(text):,} characters, and {longest:,} are the most): shorten the text."
        )
    return text


def storable(text: str, name: str) -> str:
    """A name that files can keep, without blanks around it. Raises ValueError that names the input otherwise."""
    text = bounded(text, name, LONGEST_NAME).strip()
    if text.encode("utf-8", "replace").decode() != text:
        raise ValueError(f"'{name}' holds half a character, which no file can keep: type {quoted(text)} again.")
    return text


def counted(number: int, noun: str) -> str:
    """A number and what is counted: "1 picture", "3 pictures"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def quoted(text: object) -> str:
    """A foreign text in quotes for a message, `shortened`."""
    return f"'{shortened(text)}'"


def shortened(text: object) -> str:
    """A foreign text or number for a message: on one line, printable, its end left out where it is long."""
    shown = str(text)
    shown = shown if len(shown) <= QUOTED else shown[: QUOTED - 3] + "..."
    return "".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in shown)
