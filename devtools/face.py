"""Writes what people read about the nodes from their schemas: python devtools/run.py devtools/face.py

Help pages js/docs/<NodeId>.md join the hand-written docs/nodes/<NodeId>.md to tables of inputs and outputs and to the
node's figure, js/docs/figures/<NodeId>.webp, which `python dev.py pictures` makes;
locales/en/nodeDefs.json holds the schemas' own words. Other languages are written by hand; what they lack is listed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
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


def page(schema: Any) -> str:
    """The help page of a node. Raises FileNotFoundError when nobody has written its prose."""
    prose = (PROSE / f"{schema.node_id}.md").read_text(encoding="utf-8").strip()
    about, *sections = prose.split("\n## ")
    caption, rest = _caption(sections)
    figure = figure_of(schema.node_id).relative_to(PAGES).as_posix()
    parts = [f"# {schema.display_name}", about.strip(), f"![{caption}]({figure})", f"*{caption}*"]
    parts += ["## Inputs", _inputs(schema)]
    if schema.outputs:
        parts += ["## Outputs", _outputs(schema)]
    return "\n\n".join([*parts, *(f"## {section.strip()}" for section in rest)]) + "\n"


def _caption(sections: Sequence[str]) -> tuple[str, list[str]]:
    """What the section 'Figure' says, in one line, and the other sections."""
    captions = [section.partition("\n")[2] for section in sections if section.startswith("Figure\n")]
    return _cell("".join(captions)), [section for section in sections if not section.startswith("Figure\n")]


def _inputs(schema: Any) -> str:
    head = ["| input | type | default | range | what it does |", "| --- | --- | --- | --- | --- |"]
    rows = [
        f"| {each.id}{' (optional)' if each.optional else ''} | {_type(each)} | {_default(each)} | {_span(each)} "
        f"| {_cell(each.tooltip)} |"
        for each in schema.inputs
    ]
    return "\n".join(head + rows)


def _outputs(schema: Any) -> str:
    head = ["| output | type | what it is |", "| --- | --- | --- |"]
    rows = [f"| {_name(each)} | {each.get_io_type()} | {_cell(each.tooltip)} |" for each in schema.outputs]
    return "\n".join(head + rows)


def _type(each: Any) -> str:
    return str(each.get_io_type())


def _default(each: Any) -> str:
    default = getattr(each, "default", None)
    return "" if default is None else f"`{_cell(default)}`" if str(default) else "empty"


def _span(each: Any) -> str:
    options = getattr(each, "options", None)
    if options is not None:
        files = each.default is None or all(str(option).endswith(".safetensors") for option in options)
        return "files found" if files else ", ".join(_cell(option) for option in options)
    low, high = getattr(each, "min", None), getattr(each, "max", None)
    if low is None or high is None:
        return ""
    return f"{low:g} to {high:g}" if high < UNBOUNDED else f"{low:g} or more"


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


def read_words(language: str, name: str = "nodeDefs") -> dict[str, Any]:
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def main() -> int:
    """Write pages and English words; 1 when prose or a translation is missing."""
    lacking = []
    PAGES.mkdir(parents=True, exist_ok=True)
    for schema in schemas():
        try:
            (PAGES / f"{schema.node_id}.md").write_text(page(schema), encoding="utf-8")
        except FileNotFoundError:
            lacking.append(f"docs/nodes/{schema.node_id}.md")
    english = all_words()
    (LOCALES / "en" / "nodeDefs.json").write_text(
        json.dumps(english, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    for language in WRITTEN_BY_HAND:
        lacking += [f"locales/{language}/nodeDefs.json: {path}" for path in missing(read_words(language), english)]
    print("\n".join(f"missing: {what}" for what in lacking) or "Every node has its page and its words.")
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
