"""The subject node's reading of prompts by ComfyUI's own tokenizers of transformers, which need no weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from conditional_balance.runtime.attribution.reading import read_prompt


def reading(tokenizer: Any, prompt: str, encoded: Any) -> tuple[Any, dict[str, Any]]:
    """The reading, and the tokens by encoder; `encoded` counts the encoded prompt's tokens from theirs."""
    clip = SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights)
    tokens = tokenizer.tokenize_with_weights(prompt)
    return read_prompt(clip, prompt, encoded(tokens)), tokens


def spelled(tokenizer: Any, key: str, tokens: Any, places: Any) -> str:
    encoder = getattr(tokenizer, f"clip_{key}", None) or getattr(tokenizer, key)
    flat = [token for chunk in tokens[key] for token, _ in chunk]
    return "".join(encoder.inv_vocab[flat[place]] for place in places)


def test_sd3_names_the_words_in_clip_and_behind_it_in_t5() -> None:
    from comfy.text_encoders.sd3_clip import SD3Tokenizer

    tokenizer = SD3Tokenizer()
    found, tokens = reading(tokenizer, "a red fox in the snow", lambda tokens: 77 + len(tokens["t5xxl"][0]))
    places = found.positions("red fox")
    assert [place for place in places if place < 77] == [2, 3]
    behind = [place - 77 for place in places if place >= 77]
    assert spelled(tokenizer, "t5xxl", tokens, behind).replace("\u2581", " ").split() == ["red", "fox"]


def test_sd3_without_t5_or_without_clip() -> None:
    from comfy.text_encoders.sd3_clip import SD3Tokenizer

    found, _ = reading(SD3Tokenizer(), "a red fox in the snow", lambda tokens: len(tokens["t5xxl"][0]))
    assert found.positions("red fox") and found.words.startswith("a, red, fox")


def test_flux_names_them_in_t5_alone() -> None:
    from comfy.text_encoders.flux import FluxTokenizer

    tokenizer = FluxTokenizer()
    found, tokens = reading(tokenizer, "a (red:1.2) fox in the snow", lambda tokens: len(tokens["t5xxl"][0]))
    spelling = spelled(tokenizer, "t5xxl", tokens, found.positions("red fox"))
    assert spelling.replace("\u2581", " ").split() == ["red", "fox"]


PROMPT = "a (red fox:1.2) beside a \\(cat\\) and eine F\u00fcchsin"


@pytest.mark.parametrize(
    ("phrase", "words"),
    [
        ("(red fox:1.2)", ["red", "fox"]),  # as in the prompt, where the weight is no text
        ("\\(cat\\)", ["(", "cat", ")"]),
        ("cat!", ["cat"]),
        ("F\u00fcchsin", ["F\u00fcchsin"]),
        ("Fu\u0308chsin", ["F\u00fcchsin"]),
    ],
)
def test_t5_reads_a_phrase_as_it_reads_the_prompt(phrase: str, words: list[str]) -> None:
    from comfy.text_encoders.flux import FluxTokenizer

    tokenizer = FluxTokenizer()
    found, tokens = reading(tokenizer, PROMPT, lambda tokens: len(tokens["t5xxl"][0]))
    text = spelled(tokenizer, "t5xxl", tokens, found.positions(phrase)).replace("\u2581", " ")
    assert "".join(text.split()) == "".join(words)


def test_sd3_finds_a_weighted_phrase_in_both_encoders() -> None:
    from comfy.text_encoders.sd3_clip import SD3Tokenizer

    found, _ = reading(SD3Tokenizer(), PROMPT, lambda tokens: 77 + len(tokens["t5xxl"][0]))
    assert found.positions("(red fox:1.2)") == found.positions("red fox")
    assert any(place >= 77 for place in found.positions("red fox"))


@pytest.mark.parametrize("phrase", ["\U0001f98a", "\u72d0\u72f8", "\u5f41"])
def test_qwen_finds_emoji_and_chinese_in_the_middle_of_a_line(phrase: str) -> None:
    """An emoji and the last letter take several tokens each."""
    from comfy.text_encoders.qwen_image import QwenImageTokenizer

    tokenizer = QwenImageTokenizer()
    prompt = "\u4e00\u53ea\u72d0\u72f8\u5728\u5f41\u91cc\U0001f98a\u548c\U0001f43c"
    found, tokens = reading(tokenizer, prompt, lambda tokens: len(tokens["qwen25_7b"][0]))
    ids = [token for chunk in tokens["qwen25_7b"] for token, _ in chunk]
    assert tokenizer.qwen25_7b.tokenizer.decode([ids[place] for place in found.positions(phrase)]) == phrase
    assert not found.positions("\U0001f43b")


@pytest.mark.parametrize("cut", [0, 34])
def test_qwen_counts_from_where_its_template_is_cut_off(cut: int) -> None:
    from comfy.text_encoders.qwen_image import QwenImageTokenizer

    tokenizer = QwenImageTokenizer()
    found, tokens = reading(tokenizer, "a red image of a fox", lambda tokens: len(tokens["qwen25_7b"][0]) - cut)
    (image,) = found.positions("image")  # the template says image too
    assert spelled(tokenizer, "qwen25_7b", tokens, [image + cut]) == "\u0120image"
    assert not found.positions("describe") and found.words == "a, red, image, of, fox"


def test_z_image_keeps_its_template() -> None:
    from comfy.text_encoders.z_image import ZImageTokenizer

    tokenizer = ZImageTokenizer()
    found, tokens = reading(tokenizer, "a red fox", lambda tokens: len(tokens["qwen3_4b"][0]))
    assert spelled(tokenizer, "qwen3_4b", tokens, found.positions("red fox")) == "\u0120red\u0120fox"
    assert not found.positions("user")


def test_what_cannot_be_counted_is_refused_in_a_sentence() -> None:
    from comfy.text_encoders.flux import FluxTokenizer
    from comfy.text_encoders.hidream import HiDreamTokenizer
    from comfy.text_encoders.hunyuan_video import HunyuanVideoTokenizer

    with pytest.raises(ValueError, match="'clip' is HunyuanVideo's"):
        reading(HunyuanVideoTokenizer(), "a red fox", lambda tokens: len(tokens["llama"][0]) - 30)
    with pytest.raises(ValueError, match="it is not known where the subject's stand"):
        reading(FluxTokenizer(), "a red fox", lambda tokens: len(tokens["t5xxl"][0]) + 5)
    with pytest.raises(ValueError, match="cannot be told apart"):
        reading(HiDreamTokenizer(), "a red fox", lambda tokens: 128)
