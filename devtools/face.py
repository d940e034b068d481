"""Writes what people read about the nodes from their schemas: python devtools/run.py devtools/face.py

Help pages js/docs/<NodeId>.md join the hand-written docs/nodes/<NodeId>.md to tables of inputs and outputs and to the
node's figure, js/docs/figures/<NodeId>.webp, which `python dev.py pictures` makes; js/docs/<NodeId>/<language>.md join
docs/nodes/<language>/<NodeId>.md to the same. locales/en/nodeDefs.json holds the schemas' own words. Other languages
are written by hand; what they lack is listed.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from devtools.comfyui import ROOT
from devtools.translations import PAGE_WORDS, PageWords, late, short, split

PROSE, PAGES, LOCALES = ROOT / "docs" / "nodes", ROOT / "js" / "docs", ROOT / "locales"
FIGURES = PAGES / "figures"
WRITTEN_BY_HAND = ("zh", "ja")
UNBOUNDED = 2**32  # the range of a seed tells nobody anything


def schemas() -> list[Any]:
    """The schemas of all nodes of the pack."""
    from conditional_balance.nodes.extension import ConditionalBalance

    return [node.GET_SCHEMA() for node in asyncio.run(ConditionalBalance().get_node_list())]


def figure_of(node_id: str) -> Path:
    """The file of a node's figure."""
    return FIGURES / f"{node_id}.webp"


def prose_of(node_id: str, language: str = "en") -> Path:
    """The file of a node's hand-written page."""
    return PROSE / ("" if language == "en" else language) / f"{node_id}.md"


def page_of(node_id: str, language: str = "en") -> Path:
    """The file of a node's help page, where ComfyUI's front end looks for it."""
    return PAGES / f"{node_id}.md" if language == "en" else PAGES / node_id / f"{language}.md"


def page(schema: Any, language: str = "en") -> str:
    """The help page of a node. Raises FileNotFoundError when nobody has written its prose in this language.

    The front end resolves a picture's path from js/docs/, whatever the language.
    """
    words, names = PAGE_WORDS[language], _names(schema, language)
    about, *sections = split(prose_of(schema.node_id, language).read_text(encoding="utf-8"))[0].strip().split("\n## ")
    caption, more, rest = _caption(sections, words)
    figure = figure_of(schema.node_id).relative_to(PAGES).as_posix()
    parts = [f"# {names['display_name']}", about.strip(), f"![{caption}]({figure})", f"*{caption}*", *more]
    parts += [f"## {words.inputs}", _inputs(schema, words, names["inputs"])]
    if schema.outputs:
        parts += [f"## {words.outputs}", _outputs(schema, words, names["outputs"])]
    return "\n\n".join([*parts, *(f"## {section.strip()}" for section in rest)]) + "\n"


def _names(schema: Any, language: str) -> dict[str, Any]:
    """A node's words as its help page shows them: English inputs by their ids, and by what the node shows instead."""
    if language != "en":
        return read_words(language)[schema.node_id]
    words = node_words(schema)
    inputs = {name: {**each, "name": _known_as(name, each)} for name, each in words["inputs"].items()}
    return {**words, "inputs": inputs}


def _known_as(name: str, words: Mapping[str, str]) -> str:
    return name if words["name"] == name else f"{name} ({words['name']})"


def _caption(sections: Sequence[str], words: PageWords) -> tuple[str, list[str], list[str]]:
    """What the section 'Figure' says of the figure, in one line, its further paragraphs, and the other sections."""
    head = f"{words.figure}\n"
    said = "".join(section.removeprefix(head) for section in sections if section.startswith(head)).strip()
    caption, *more = said.split("\n\n")
    return _cell(caption), more, [section for section in sections if not section.startswith(head)]


def _inputs(schema: Any, words: PageWords, names: Mapping[str, Any]) -> str:
    head = [words.input_head, "| --- | --- | --- | --- | --- |"]
    rows = [
        f"| {names[each.id]['name']}{words.optional if each.optional else ''} | {_type(each)} "
        f"| {_default(each, words)} | {_span(each, words)} | {_cell(names[each.id]['tooltip'])} |"
        for each in schema.inputs
    ]
    return "\n".join(head + rows)


def _outputs(schema: Any, words: PageWords, names: Mapping[str, Any]) -> str:
    head = [words.output_head, "| --- | --- | --- |"]
    said = [names[str(slot)] for slot in range(len(schema.outputs))]
    rows = [
        f"| {told['name']} | {_type(each)} | {_cell(told['tooltip'])} |"
        for each, told in zip(schema.outputs, said, strict=True)
    ]
    return "\n".join(head + rows)


def _type(each: Any) -> str:
    return str(each.get_io_type())


def _default(each: Any, words: PageWords) -> str:
    default = getattr(each, "default", None)
    return "" if default is None else f"`{_cell(default)}`" if str(default) else words.empty


def _span(each: Any, words: PageWords) -> str:
    options = getattr(each, "options", None)
    if options is not None:
        files = each.default is None or all(str(option).endswith(".safetensors") for option in options)
        return words.files if files else ", ".join(_cell(option) for option in options)
    low, high = getattr(each, "min", None), getattr(each, "max", None)
    if low is None or high is None:
        return ""
    return words.span.format(low=low, high=high) if high < UNBOUNDED else words.least.format(low=low)


def _name(output: Any) -> str:
    return output.display_name or str(output.get_io_type())


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def node_words(schema: Any) -> dict[str, Any]:
    """A node's entry of nodeDefs.json, as ComfyUI's front end reads it."""
    outputs = {str(slot): {"name": _name(each), "tooltip": each.tooltip} for slot, each in enumerate(schema.outputs)}
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {each.id: {"name": each.display_name or each.id, "tooltip": each.tooltip} for each in schema.inputs},
        **({"outputs": outputs} if outputs else {}),
    }


@functools.cache
def all_words() -> dict[str, Any]:
    """locales/en/nodeDefs.json."""
    return {schema.node_id: node_words(schema) for schema in schemas()}


def missing(words: Mapping[str, Any], wanted: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Paths of the texts that `wanted` has and `words` lacks or leaves empty."""
    for key, value in wanted.items():
        here = words.get(key)
        if isinstance(value, Mapping):
            yield from missing(here if isinstance(here, Mapping) else {}, value, f"{at}{key}.")
        elif not isinstance(here, str) or not here.strip():
            yield f"{at}{key}"


@functools.cache
def read_words(language: str, name: str = "nodeDefs") -> dict[str, Any]:
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def names_shown(schema: Any, language: str) -> dict[str, set[str]]:
    """What a user of this language sees for each name that a node's English page may put in italics.

    The node's own inputs and options come before those of others; a word that is an option somewhere may stay English.
    """
    english, theirs = all_words(), read_words(language)
    own = {schema.node_id: english[schema.node_id]}
    shown = _parts_shown(english, theirs) | _merged(_parts_shown(own, theirs), _options((schema,)))
    shown = _merged(shown, _titles_shown(english, theirs))
    return _merged(shown, {option: as_is for option, as_is in _options(schemas()).items() if option in shown})


def _merged(one: Mapping[str, set[str]], other: Mapping[str, set[str]]) -> dict[str, set[str]]:
    return {name: one.get(name, set()) | other.get(name, set()) for name in {*one, *other}}


def _titles_shown(english: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, set[str]]:
    """What is shown for node titles; 'Keep Subject, New Background (Grad-SAM Blend)' goes by both names."""
    return {
        name.strip(): {short(theirs[node_id]["display_name"])}
        for node_id, words in english.items()
        for name in re.findall(r"[A-Z][^()]*", words["display_name"])
    }


def _parts_shown(english: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, set[str]]:
    """What is shown for the ids and English names of the inputs and outputs of nodes."""
    shown = collections.defaultdict(set)
    for node_id, words in english.items():
        for part in ("inputs", "outputs"):
            for key, each in words.get(part, {}).items():
                for name in {key, each["name"]}:
                    shown[name].add(theirs[node_id][part][key]["name"])
    return shown


def _options(several: Iterable[Any]) -> dict[str, set[str]]:
    """The options of all choices, which no language translates."""
    inputs = (each for schema in several for each in schema.inputs)
    return {str(option): {str(option)} for each in inputs for option in getattr(each, "options", None) or ()}


def main() -> int:
    """Write pages and English words; 1 when prose or a translation is missing or late."""
    lacking = []
    for schema in schemas():
        for language in ("en", *WRITTEN_BY_HAND):
            lacking += _write(schema, language)
    english = all_words()
    (LOCALES / "en" / "nodeDefs.json").write_text(
        json.dumps(english, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    for language in WRITTEN_BY_HAND:
        lacking += [f"locales/{language}/nodeDefs.json: {path}" for path in missing(read_words(language), english)]
    print("\n".join(f"missing: {what}" for what in lacking) or "Every node has its page and its words.")
    return 1 if lacking else 0


def _write(schema: Any, language: str) -> Iterator[str]:
    """Write one help page; what it lacks."""
    prose, shown = prose_of(schema.node_id, language), page_of(schema.node_id, language)
    if not prose.exists():
        yield prose.relative_to(ROOT).as_posix()
        return
    shown.parent.mkdir(parents=True, exist_ok=True)
    shown.write_text(page(schema, language), encoding="utf-8")
    english = prose_of(schema.node_id).read_text(encoding="utf-8")
    if language != "en" and (cure := late(english, prose.read_text(encoding="utf-8"))):
        yield f"{prose.relative_to(ROOT).as_posix()} is of an older page: {cure}"


if __name__ == "__main__":
    sys.exit(main())
