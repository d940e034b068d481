"""Every node has its help page and its words in every language, and they say what the schema says."""

from __future__ import annotations

import re
from typing import Any

import pytest
from PIL import Image

from devtools import face, figures, translations

SCHEMAS = face.schemas()
CURE = "run `python devtools/run.py devtools/face.py`"
LANGUAGES = ("en", *face.WRITTEN_BY_HAND)
LARGEST, ALL_FIGURES = 60_000, 900_000  # bytes: help pages open at once
SCRIPTS = sorted((face.ROOT / "js").rglob("*.js"))


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.node_id)
def test_the_help_page_says_what_the_schema_says(schema: Any) -> None:
    written = face.PROSE / f"{schema.node_id}.md"
    assert written.exists(), f"write {written.relative_to(face.ROOT)}: a paragraph, then '## When not to use it'"
    assert "\n## When not to use it\n" in written.read_text(encoding="utf-8")
    shown = face.PAGES / f"{schema.node_id}.md"
    assert shown.exists() and shown.read_text(encoding="utf-8") == face.page(schema), CURE
    assert all(f"| {each.id}" in face.page(schema) for each in schema.inputs)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.node_id)
def test_every_page_shows_its_figure_and_says_what_it_shows(schema: Any) -> None:
    file, shown = face.figure_of(schema.node_id), face.page(schema)
    assert file.exists(), "run `python dev.py pictures`"
    caption, source = re.search(r"^!\[(.+)\]\((.+)\)$", shown, re.MULTILINE).groups()
    assert face.PAGES / source == file
    assert 20 < len(caption) < 300 and "*" not in caption, f"write '## Figure' in docs/nodes/{schema.node_id}.md"
    assert f"\n*{caption}*\n" in shown
    with Image.open(file) as picture:
        picture.load()
        assert picture.width >= 300 and file.stat().st_size < LARGEST


def test_the_figures_together_stay_small() -> None:
    assert sum(file.stat().st_size for file in face.FIGURES.iterdir()) < ALL_FIGURES


def test_no_figure_is_left_of_a_node_that_is_gone() -> None:
    assert {file.name for file in face.FIGURES.iterdir()} == {face.figure_of(each.node_id).name for each in SCHEMAS}


def test_every_node_has_its_way_to_a_figure() -> None:
    assert set(figures.FIGURES) == {schema.node_id for schema in SCHEMAS}


def test_no_page_is_left_of_a_node_that_is_gone() -> None:
    ids = {schema.node_id for schema in SCHEMAS}
    assert {path.stem for folder in (face.PROSE, face.PAGES) for path in folder.glob("*.md")} <= ids
    assert {path.stem for path in face.PROSE.glob("*/*.md")} | {
        path.parent.name for path in face.PAGES.glob("*/*.md")
    } <= ids


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.node_id)
@pytest.mark.parametrize("language", face.WRITTEN_BY_HAND)
def test_the_help_page_is_translated(language: str, schema: Any) -> None:
    """Whole, from the English page as it is now, and with the names that the user finds on the nodes."""
    written, shown = face.prose_of(schema.node_id, language), face.page_of(schema.node_id, language)
    assert written.exists(), f"translate docs/nodes/{schema.node_id}.md into {written.relative_to(face.ROOT)}"
    english, theirs = face.prose_of(schema.node_id).read_text(encoding="utf-8"), written.read_text(encoding="utf-8")
    assert translations.late(english, theirs) == "", written.relative_to(face.ROOT)
    assert list(translations.differences(english, theirs, language)) == []
    assert list(translations.names_missing(english, theirs, face.names_shown(schema, language))) == []
    assert shown.exists() and shown.read_text(encoding="utf-8") == face.page(schema, language), CURE
    assert f"](figures/{schema.node_id}.webp)" in face.page(schema, language)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_takes_a_cell_of_the_latent_for_8_pixels_in_every_model(language: str) -> None:
    """Flux.2's are of 16."""
    words = (face.LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8").splitlines()
    pages = (face.prose_of(schema.node_id, language).read_text(encoding="utf-8") for schema in SCHEMAS)
    lines = [line for text in (*words, *pages) for line in text.splitlines()]
    found = [line for line in lines if re.search(r"(?<!\d)8 ?(pixels|像素|ピクセル)", line)]
    assert found and all("Flux.2" in line for line in found)


ENGLISH = "Paints at 0.5.\n\n## Figure\n\nA picture.\n\n## When not to use it\n\n- With *model* or `x`."
CHINESE = "以 0.5 绘制。\n\n## 图\n\n一张图片。\n\n## 不适用的情况\n\n- 使用 *模型* 或 `x`。"
STAMP = f"\n\n<!-- english: {translations.digest(ENGLISH)} -->\n"


def test_a_translation_of_an_older_page_is_late() -> None:
    assert translations.late(ENGLISH, CHINESE + STAMP) == ""
    assert translations.digest(ENGLISH + "More.") in translations.late(ENGLISH + "More.", CHINESE + STAMP)
    assert translations.late(ENGLISH, CHINESE) != ""
    assert translations.split(CHINESE + STAMP)[0] == CHINESE


@pytest.mark.parametrize(
    "part, left, instead",
    [
        ("numbers", "0.5", ""),
        ("heading", "## 图", "## 插图"),
        ("headings", "## 图", "图"),
        ("list items", "- 使用", "使用"),
        ("paragraphs", "\n\n一张图片。", ""),
        ("code", "`x`", "x"),
        ("italics", "*模型* 或", "*模型!*或"),
    ],
)
def test_a_part_that_a_translation_lacks_is_named(part: str, left: str, instead: str) -> None:
    assert list(translations.differences(ENGLISH, CHINESE + STAMP, "zh")) == []
    found = list(translations.differences(ENGLISH, CHINESE.replace(left, instead) + STAMP, "zh"))
    assert any(each.startswith(f"{part}:") for each in found)


def test_a_name_that_the_user_would_not_find_is_named() -> None:
    shown = {"model": {"模型"}}
    assert list(translations.names_missing(ENGLISH, CHINESE, shown)) == []
    assert list(translations.names_missing(ENGLISH, CHINESE.replace("*模型*", "*model*"), shown)) == [
        "*model* is *模型*"
    ]


def test_the_english_words_are_the_schemas() -> None:
    assert face.read_words("en") == face.all_words(), CURE


@pytest.mark.parametrize("language", face.WRITTEN_BY_HAND)
def test_every_node_input_and_output_is_translated(language: str) -> None:
    assert list(face.missing(face.read_words(language), face.all_words())) == []
    assert list(face.missing(face.all_words(), face.read_words(language))) == [], "of nodes or inputs that are gone"


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.node_id)
@pytest.mark.parametrize("language", face.WRITTEN_BY_HAND)
def test_a_translation_names_the_same_numbers_and_choices(language: str, schema: Any) -> None:
    """Good values and the words of a list stay as they are: a translation without them is of an older schema."""
    words = face.read_words(language)[schema.node_id]
    assert figures_in(schema.description) <= figures_in(words["description"])
    for each in schema.inputs:
        theirs = words["inputs"][each.id]["tooltip"]
        assert figures_in(each.tooltip) <= figures_in(theirs), each.id
        choices = {option for option in getattr(each, "options", None) or () if f"{option}:" in each.tooltip}
        assert {choice for choice in choices if choice not in theirs} == set(), each.id


def figures_in(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:\.\d+)?", text))


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


def test_scripts_that_visits_and_benchmarks_import_are_there() -> None:
    """Our JavaScript moves; a browser would tell the benchmarks, which no test runs, only when they are run."""
    asked = {
        name
        for folder in ("benchmarks", "devtools", "tests/browser")
        for script in (face.ROOT / folder).glob("*.mjs")
        for name in re.findall(r"/extensions/conditional_balance/([\w/]+\.js)", script.read_text(encoding="utf-8"))
    }
    assert {"server.js", "layer_map/draw.js"} <= asked
    assert [name for name in sorted(asked) if not (face.ROOT / "js" / name).exists()] == []
