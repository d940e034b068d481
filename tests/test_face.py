"""Every node has its help page and its words in every language, and they say what the schema says."""

from __future__ import annotations

import re
from typing import Any

import pytest

from devtools import face

SCHEMAS = face.schemas()
CURE = "run `python devtools/run.py devtools/face.py`"
LANGUAGES = ("en", *face.WRITTEN_BY_HAND)
SCRIPTS = sorted((face.ROOT / "js").rglob("*.js"))


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.node_id)
def test_the_help_page_says_what_the_schema_says(schema: Any) -> None:
    written = face.PROSE / f"{schema.node_id}.md"
    assert written.exists(), f"write {written.relative_to(face.ROOT)}: a paragraph, then '## When not to use it'"
    assert "\n## When not to use it\n" in written.read_text(encoding="utf-8")
    shown = face.PAGES / f"{schema.node_id}.md"
    assert shown.exists() and shown.read_text(encoding="utf-8") == face.page(schema), CURE
    assert all(f"| {each.id}" in face.page(schema) for each in schema.inputs)


def test_no_page_is_left_of_a_node_that_is_gone() -> None:
    ids = {schema.node_id for schema in SCHEMAS}
    assert {path.stem for folder in (face.PROSE, face.PAGES) for path in folder.glob("*.md")} <= ids


def test_the_english_words_are_the_schemas() -> None:
    assert face.read_words("en") == face.all_words(), CURE


@pytest.mark.parametrize("language", face.WRITTEN_BY_HAND)
def test_every_node_input_and_output_is_translated(language: str) -> None:
    assert list(face.missing(face.read_words(language), face.all_words())) == []
    assert list(face.missing(face.all_words(), face.read_words(language))) == [], "of nodes or inputs that are gone"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_category_and_socket_type_of_ours_has_a_name(language: str) -> None:
    words = face.read_words(language, "main")
    parts = {part for schema in SCHEMAS for part in schema.category.split("/")}
    sockets = {str(each.get_io_type()) for schema in SCHEMAS for each in (*schema.inputs, *schema.outputs)}
    ours = {"IMAGE_CLUSTERS", "SENSITIVITY_PROFILE", "LAYER_GATE", "STYLE_REFERENCE", "SUBJECT", "ATTRIBUTION"}
    assert parts <= set(words["nodeCategories"]) and sockets & ours <= set(words["dataTypes"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_word_that_the_widgets_ask_for_exists(language: str) -> None:
    words = face.read_words(language, "main")["conditionalBalance"]
    asked = {key for path in SCRIPTS for key in re.findall(r"words\('(\w+)'", path.read_text(encoding="utf-8"))}
    assert {"rank", "score"} <= asked <= set(words)
    assert set(words) == set(face.read_words("en", "main")["conditionalBalance"])
    for key, english in face.read_words("en", "main")["conditionalBalance"].items():
        assert set(re.findall(r"\{\w+\}", words[key])) == set(re.findall(r"\{\w+\}", english)), key


def test_words_that_are_missing_are_named() -> None:
    wanted = {"A": {"display_name": "a", "inputs": {"x": {"name": "x"}}}}
    assert list(face.missing({"A": {"display_name": " "}}, wanted)) == ["A.display_name", "A.inputs.x.name"]
    assert list(face.missing(wanted, wanted)) == []
