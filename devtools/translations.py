"""Help pages in other languages: the words that all pages share, and where a translation differs from its English page.

docs/nodes/<language>/<NodeId>.md is written by hand. Its last line holds the digest of the English page that it was
made from, so that a page whose English has changed since is named.
"""
# ruff: noqa: RUF001 - Chinese and Japanese write their brackets full width.

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

STAMP = re.compile(r"\s*<!-- english: (\w+) -->\s*\Z")
BRACKETS = re.compile("[（(]")
ITALIC = re.compile(r"(?<![*\w])\*([^*\n]+)\*(?!\*)")


@dataclass(frozen=True)
class PageWords:
    """The headings and the table words of help pages in one language."""

    inputs: str
    outputs: str
    figure: str
    not_for: str
    input_head: str
    output_head: str
    optional: str
    empty: str
    files: str
    span: str
    least: str


PAGE_WORDS = {
    "en": PageWords(
        inputs="Inputs",
        outputs="Outputs",
        figure="Figure",
        not_for="When not to use it",
        input_head="| input | type | default | range | what it does |",
        output_head="| output | type | what it is |",
        optional=" (optional)",
        empty="empty",
        files="files found",
        span="{low:g} to {high:g}",
        least="{low:g} or more",
    ),
    "zh": PageWords(
        inputs="输入",
        outputs="输出",
        figure="图",
        not_for="不适用的情况",
        input_head="| 输入 | 类型 | 默认值 | 范围 | 作用 |",
        output_head="| 输出 | 类型 | 内容 |",
        optional="（可选）",
        empty="空",
        files="找到的文件",
        span="{low:g} 到 {high:g}",
        least="不小于 {low:g}",
    ),
    "ja": PageWords(
        inputs="入力",
        outputs="出力",
        figure="図",
        not_for="向いていない場合",
        input_head="| 入力 | 型 | 既定値 | 範囲 | 働き |",
        output_head="| 出力 | 型 | 内容 |",
        optional="（省略可）",
        empty="空",
        files="見つかったファイル",
        span="{low:g}〜{high:g}",
        least="{low:g} 以上",
    ),
}


def short(name: str) -> str:
    """A node's name as pages call it: without what its title adds in brackets."""
    return BRACKETS.split(name)[0].strip()


def digest(english: str) -> str:
    """What a translation of this page ends with."""
    return hashlib.sha256(english.encode()).hexdigest()[:12]


def split(translation: str) -> tuple[str, str]:
    """A translation's text, and the digest of the English page that it was made from ('' where it gives none)."""
    stamp = STAMP.search(translation)
    return (translation[: stamp.start()], stamp[1]) if stamp else (translation.rstrip(), "")


def late(english: str, translation: str) -> str:
    """What to do about a translation of an older English page; '' for one of this page."""
    if split(translation)[1] == digest(english):
        return ""
    return f"compare it with its English page, then end it with <!-- english: {digest(english)} -->"


PARTS: dict[str, Callable[[str], Any]] = {
    "headings": lambda text: len(re.findall(r"^## ", text, re.MULTILINE)),
    "paragraphs": lambda text: len(re.split(r"\n\s*\n", text.strip())),
    "list items": lambda text: len(re.findall(r"^(?:\d+\.|-) ", text, re.MULTILINE)),
    "table rows": lambda text: len(re.findall(r"^\|", text, re.MULTILINE)),
    "bold words": lambda text: text.count("**"),
    "code": lambda text: sorted(set(re.findall(r"`[^`]+`", text))),
}


def differences(english: str, translation: str, language: str) -> Iterator[str]:
    """Parts that an English page and its translation do not share."""
    theirs = split(translation)[0]
    for name, part in PARTS.items():
        if part(english) != part(theirs):
            yield f"{name}: {part(english)} in English, {part(theirs)} here"
    if lacking := set(re.findall(r"\d+(?:[.,]\d+)*", english)) - set(re.findall(r"\d+(?:[.,]\d+)*", theirs)):
        yield f"numbers: {sorted(lacking)} are missing"
    yield from (f"italics: {italic} do not end" for italic in _endless(theirs))
    for heading in ("figure", "not_for"):
        if f"\n## {getattr(PAGE_WORDS[language], heading)}\n" not in theirs:
            yield f"heading: '## {getattr(PAGE_WORDS[language], heading)}' is missing"


def _endless(text: str) -> Iterator[str]:
    """Italics that Markdown does not see end: their last sign is no letter, and a letter follows without a space."""
    for italic in ITALIC.finditer(text):
        if not italic[1][-1].isalnum() and text[italic.end() : italic.end() + 1].isalnum():
            yield italic[0]


def names_missing(english: str, translation: str, shown: dict[str, set[str]]) -> Iterator[str]:
    """Names in the English page's italics that the translation's lack; `shown` gives what a user sees for each."""
    theirs = set(ITALIC.findall(split(translation)[0]))
    for name in dict.fromkeys(ITALIC.findall(english)):
        if name in shown and not shown[name] & theirs:
            yield f"*{name}* is {' or '.join(f'*{each}*' for each in sorted(shown[name]))}"
