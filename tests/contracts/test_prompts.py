"""Prompt per Picture: each row is its prompt alone, or one sentence says why rows cannot share a batch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from conditional_balance.runtime.inject.prompts import encode_rows

LONG = "a very old oak tree " * 20  # more than one chunk of 75 tokens


def words(chunks: int) -> str:
    return "tree " * (75 * chunks - 5)


class Encoder:
    """What encode_rows uses of a CLIP: an encoder whose texts have as many tokens as characters."""

    def __init__(self, keys: str = "t5xxl", name: str = "Model", **extras) -> None:
        self.keys, self.extras = keys.split(), extras
        self.cond_stage_model = type(name, (), {})()

    def tokenize(self, text: str) -> dict:
        return {key: text for key in self.keys}

    def encode_from_tokens(self, tokens: dict, return_dict: bool) -> dict:
        text = tokens[self.keys[0]]
        made = {name: make(text) for name, make in self.extras.items()}
        return {"cond": torch.full((1, len(text), 8), float(len(text))), "pooled_output": None, **made}


def test_each_row_is_its_prompt_alone_and_a_shorter_one_is_repeated(clip) -> None:
    prompts = ["a fox", LONG, "a cat"]
    [[rows, extras]] = encode_rows(clip, prompts)
    alone = [clip.encode_from_tokens(clip.tokenize(prompt), return_dict=True) for prompt in prompts]
    assert rows.shape[1] == alone[1]["cond"].shape[1] > alone[0]["cond"].shape[1]
    for row, pooled, entry in zip(rows, extras["pooled_output"], alone, strict=True):
        assert torch.equal(row, entry["cond"][0].repeat(len(row) // entry["cond"].shape[1], 1))
        assert torch.equal(pooled, entry["pooled_output"][0])


def test_a_repeated_text_does_not_change_what_a_unet_makes_of_it(clip, sd15_model) -> None:
    [[rows, _]] = encode_rows(clip, ["a fox", LONG])
    alone = clip.encode("a fox")
    assert rows.shape[1] > alone.shape[1]
    x, sigma = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.ones(1)
    with torch.inference_mode():
        made = [sd15_model.model.apply_model(x, sigma, c_crossattn=text) for text in (rows[:1], alone)]
    torch.testing.assert_close(made[0], made[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("chunks", [(2, 5), (1, 5), (2, 3, 5, 7), (1, 2, 3)])
def test_texts_that_would_grow_beyond_comfyuis_limit_are_refused(clip, chunks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^'prompts': line 1 takes \d+ tokens and line . takes \d+, which within"):
        encode_rows(clip, [words(count) for count in chunks])


@pytest.mark.parametrize("chunks", [(1, 4), (2, 3), (3, 4), (1, 2, 4)])
def test_texts_within_the_limit_are_encoded(clip, chunks: tuple[int, ...]) -> None:
    [[rows, _]] = encode_rows(clip, [words(count) for count in chunks])
    assert len(rows) == len(chunks) and rows.shape[1] <= 4 * 77 * min(chunks)


@pytest.mark.parametrize("encoder", [Encoder("l t5xxl"), Encoder("qwen25_7b"), Encoder("g", "StableCascadeClipModel")])
def test_a_text_that_is_joined_with_the_picture_is_never_repeated(encoder) -> None:
    with pytest.raises(ValueError, match="line 1 takes 3 tokens and line 2 takes 6, and models of this text encoder"):
        encode_rows(encoder, ["fox", "foxfox"])
    [[rows, _]] = encode_rows(encoder, ["fox", "cat"])
    assert rows.shape == (2, 3, 8)


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_encoders_of_real_families_are_known_by_their_tokens(family: str) -> None:
    from comfy.text_encoders import flux, sd3_clip

    tokenizer = {"flux": flux.FluxTokenizer, "sd3": sd3_clip.SD3Tokenizer}[family]()
    encoder = Encoder()
    encoder.tokenize = lambda text: tokenizer.tokenize_with_weights(text)
    encoder.encode_from_tokens = lambda tokens, return_dict: {"cond": torch.ones(1, len(tokens["t5xxl"][0]), 8)}
    with pytest.raises(ValueError, match="models of this text encoder need equal counts"):
        encode_rows(encoder, ["fox", "fox " * 600])


def test_extras_of_every_row_are_kept() -> None:
    encoder = Encoder(attention_mask=lambda text: torch.tensor([[mark == "o" for mark in text]]), kind=lambda text: "x")
    [[_, extras]] = encode_rows(encoder, ["fox", "cat"])
    assert extras["attention_mask"].tolist() == [[False, True, False], [False, False, False]] and extras["kind"] == "x"
    assert extras["pooled_output"] is None


@pytest.mark.parametrize(
    "extra",
    [lambda text: torch.ones(1, ord(text[0])), lambda text: text, lambda text: None if text > "d" else torch.ones(1)],
)
def test_extras_that_do_not_go_together_are_refused_by_name(extra) -> None:
    with pytest.raises(ValueError, match="'prompts': the text encoder's 'mask' differs between the lines"):
        encode_rows(Encoder(mask=extra), ["fox", "cat"])


def test_a_prompt_node_of_too_many_letters_is_refused() -> None:
    from conditional_balance.nodes.style import CBPromptBatch

    with pytest.raises(ValueError, match="'prompts' is too long"):
        CBPromptBatch.execute(SimpleNamespace(), "x" * 200_000)
