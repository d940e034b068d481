"""The gate grammar: what it selects, and where its errors point."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine.grammar import EXCERPT, GrammarError, edited, parse
from conditional_balance.engine.layers import LayerId, in_forward_order, spelled

SDXL = (
    *(LayerId("input", number, t) for number, depth in ((4, 2), (5, 2), (7, 10), (8, 10)) for t in range(depth)),
    *(LayerId("middle", 0, t) for t in range(10)),
    *(LayerId("output", number, t) for number in range(6) for t in range(10 if number < 3 else 2)),
)

SD35_MEDIUM = tuple(
    LayerId(block, number) for number in range(24) for block in ("joint", "second") if block == "joint" or number < 13
)
FLUX = tuple(LayerId(block, number) for block, count in (("joint", 19), ("single", 38)) for number in range(count))


def chosen(text: str, feature: int = 0) -> set[str]:
    weights = parse(text).weights(SDXL)[feature]
    return {str(layer) for layer, weight in zip(SDXL, weights.tolist(), strict=True) if weight}


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("o1.8", {"o1.8"}),
        ("O1.8", {"o1.8"}),
        ("u1.8, d4.0", {"o1.8", "i4.0"}),
        ("o1.4-6", {"o1.4", "o1.5", "o1.6"}),
        ("i5", {"i5.0", "i5.1"}),
        ("o3-4", {"o3.0", "o3.1", "o4.0", "o4.1"}),
        ("o3-5.1", {"o3.1", "o4.1", "o5.1"}),
        ("m", {f"m0.{t}" for t in range(10)}),
        ("m0", {f"m0.{t}" for t in range(10)}),
        ("all", {str(layer) for layer in SDXL}),
        ("i5, -i5.1", {"i5.0"}),
        ("-i5.1, i5", {str(layer) for layer in SDXL}),
        ("-i, -m, -o0-2", {"o3.0", "o3.1", "o4.0", "o4.1", "o5.0", "o5.1"}),
        (" o3 . 0 ,\n o3.1 , ", {"o3.0", "o3.1"}),
        ("i4.0\ni4.1", {"i4.0", "i4.1"}),
        ("", set()),
        ("  \n ", set()),
    ],
)
def test_selects(text: str, layers: set[str]) -> None:
    assert chosen(text) == layers


def test_every_printed_layer_selects_itself() -> None:
    assert all(chosen(str(layer)) == {str(layer)} for layer in SDXL)


@pytest.mark.parametrize(("text", "weight"), [("0.", 0.0), ("1.", 1.0), (".5", 0.5), ("0.50", 0.5), ("1", 1.0)])
def test_a_weight_is_any_decimal_number(text: str, weight: float) -> None:
    assert [term.weight for term in parse(f"o1:{text}, o2 : {text}").terms] == [weight, weight]


def test_features_and_weights() -> None:
    weights = parse("q:o1.8, kv:o1.9:0.5, o2.0 : .25").weights(SDXL)
    column = {str(layer): weights[:, index].tolist() for index, layer in enumerate(SDXL)}
    assert column["o1.8"] == [1, 0, 0]
    assert column["o1.9"] == [0, 0.5, 0.5]
    assert column["o2.0"] == [0.25] * 3
    assert weights.sum() == 1 + 1 + 0.75


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("y5", 0),
        ("o1.4-9, i5, 7", 12),
        ("o1.", 3),
        ("o1 i5", 3),
        ("o1, , i5", 4),
        ("o9-3", 1),
        ("o1:", 3),
        ("o1:1.5", 2),
        ("-o1:0.5", 3),
        ("o1.4-9, -", 9),
        ("o1.4_9", 4),
        ("k\n:all", 0),
        ("o99999", 1),
        ("o1-99999", 2),
        ("\u0130" + "1", 0),
        ("\u0131" + "1", 0),
        ("o\u0661", 1),
    ],
)
def test_errors_point_at_the_character(text: str, at: int) -> None:
    with pytest.raises(GrammarError) as caught:
        parse(text)
    message, line, caret = str(caught.value).split("\n")
    assert caught.value.at == at
    assert f"at character {at + 1};" in message
    assert line == text.rstrip().replace("\n", " ")
    assert caret == " " * at + "^"


@pytest.mark.parametrize(
    ("text", "at"), [("o1.4-12", 0), ("i5, i3", 4), ("o0-7", 0), ("m3", 0), ("all, -o4.5", 5), ("o1,\no1.10", 4)]
)
def test_layers_the_model_lacks_are_errors(text: str, at: int) -> None:
    with pytest.raises(GrammarError, match="no layer") as caught:
        parse(text).weights(SDXL)
    assert caught.value.at == at


@pytest.mark.parametrize(
    ("text", "names"),
    [("j0-11, s6, -j3", [*(f"j{n}" for n in range(12) if n != 3), "s6"]), ("S36-37", ["s36", "s37"]), ("q:j0", ["j0"])],
)
def test_selects_layers_of_transformers(text: str, names: list[str]) -> None:
    weights = parse(text).weights(FLUX)[0]
    assert [str(layer) for layer, weight in zip(FLUX, weights.tolist(), strict=True) if weight] == names


@pytest.mark.parametrize(
    ("text", "layers", "words"),
    [
        ("j38", SD35_MEDIUM, "its joint blocks with attention are 0-23"),
        ("x13", SD35_MEDIUM, "its second blocks with attention are 0-12"),
        ("o1.8", FLUX, "its layers are j0-18, s0-37"),
        ("j3", SDXL, "its layers are i4.0-1, i5.0-1, i7.0-9, i8.0-9, m0.0-9, o0.0-9, o1.0-9"),
    ],
)
def test_errors_name_what_the_model_has_in_spans(text: str, layers: tuple[LayerId, ...], words: str) -> None:
    with pytest.raises(GrammarError) as caught:
        parse(text).weights(layers)
    assert words in str(caught.value)


@given(st.sets(st.sampled_from(SDXL + SD35_MEDIUM + FLUX)))
def test_spelled_layers_are_read_back(layers: set[LayerId]) -> None:
    every = tuple(dict.fromkeys(SDXL + SD35_MEDIUM + FLUX))
    if layers:
        weights = parse(spelled(layers)).weights(every)[0]
        assert {layer for layer, weight in zip(every, weights.tolist(), strict=True) if weight} == layers


@pytest.mark.parametrize("layers", [SDXL, SD35_MEDIUM, FLUX])
def test_forward_order_is_that_of_the_model(layers: tuple[LayerId, ...]) -> None:
    assert in_forward_order(sorted(layers, key=str)) == layers
    assert all(LayerId.parse(str(layer)) == layer for layer in layers)


@given(st.sets(st.sampled_from(SDXL)))
def test_a_written_set_is_read_back(layers: set[LayerId]) -> None:
    written = ", ".join(map(str, in_forward_order(layers)))
    assert chosen(written) == {str(layer) for layer in layers}
    assert chosen(f"all, {', '.join(f'-{layer}' for layer in layers)}") == {str(layer) for layer in set(SDXL) - layers}


@given(st.text(alphabet="imodujsxrbkqv0123456789.-:, \nal", max_size=12))
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    try:
        weights = parse(text).weights(SDXL)
    except GrammarError as error:
        assert 0 <= error.at <= len(text)
    else:
        assert torch.all((weights >= 0) & (weights <= 1))


@pytest.mark.parametrize(("text", "at"), [("o1," * 4000, 10_000), ("o1, " * 2000 + "z", 8000), ("9" * 9000, 0)])
def test_long_texts_are_refused_with_an_excerpt(text: str, at: int) -> None:
    with pytest.raises(GrammarError) as caught:
        parse(text)
    message, line, caret = str(caught.value).split("\n")
    assert caught.value.at == at and len(message) < 200 and len(line) <= EXCERPT
    assert len(caret) <= EXCERPT + 1 and text[at : at + 1].strip() == line[len(caret) - 1 : len(caret)]


def test_weights_are_ones_own_to_change() -> None:
    parse("o1").weights(SDXL).zero_()
    assert parse("o1").weights(SDXL).sum() == 30


@given(st.text(alphabet="imokqv01.-:, \n\tal", max_size=14), st.sampled_from(SDXL), st.booleans())
def test_every_text_that_reads_can_be_edited(text: str, layer: LayerId, to: bool) -> None:
    try:
        before = parse(text).weights(SDXL)
    except GrammarError:
        return
    after = parse(edited(text, layer, SDXL, to)).weights(SDXL)
    before[:, SDXL.index(layer)] = float(to)
    assert torch.equal(after, before)
