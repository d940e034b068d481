"""The subject node on ComfyUI's real tokenizers."""

from __future__ import annotations

from typing import Any

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models_base
import pytest
import torch
from safetensors.torch import save_file

from conditional_balance.nodes.subject import CBSubject
from conditional_balance.runtime.attribution.subject import read_subject
from tiny import _fill

START, RED, FOX = 49406, 736, 3240


@pytest.fixture(scope="module")
def sdxl_clip() -> Any:
    """SDXL's two tokenizers over two small text encoders."""
    target = comfy.supported_models_base.ClipTarget(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel)
    size = {"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
    with torch.inference_mode():
        clip = comfy.sd.CLIP(target, model_options={"clip_l_model_config": size, "clip_g_model_config": size})
        _fill(clip.cond_stage_model, 0)
    return clip


def found(clip: Any, prompt: str, phrase: str) -> list[tuple[int, ...]]:
    with torch.inference_mode():
        return [each.positions for each in read_subject(clip, prompt, phrase).phrases]


def tokens(clip: Any, prompt: str, encoder: str = "l") -> list[int]:
    """The numbers at every place of the encoded prompt."""
    return [token for chunk in clip.tokenize(prompt)[encoder] for token, _ in chunk]


@pytest.mark.parametrize(
    ("prompt", "phrase", "positions"),
    [
        ("fox in the snow", "fox", (1,)),  # the start token is 0: word 0 of the prompt is token 1
        ("a red fox in the snow", "red fox", (2, 3)),
        ("A Red FOX!", "red fox", (2, 3)),
        ("a (red:1.3) (fox:0.7), snow", "red fox", (2, 3)),
        ("a ((fox)), another fox", "fox", (2, 5)),
        ("an axolotl", "axolotl", (2, 3, 4, 5)),
        ("firefox, a fox", "fox", (4,)),
    ],
)
def test_positions_are_the_tokens_of_the_phrase(
    clip: Any, prompt: str, phrase: str, positions: tuple[int, ...]
) -> None:
    assert found(clip, prompt, phrase) == [positions]


@pytest.mark.parametrize(
    ("prompt", "phrase", "words"),
    [
        (r"hatsune miku \(vocaloid\), smile", r"hatsune miku \(vocaloid\)", "hat sune miku ( vocal oid ),"),
        (r"hatsune miku \(vocaloid\)", r"hatsune miku \(vocaloid\)", "hat sune miku ( vocal oid )"),
        (r"(hatsune miku \(vocaloid\):1.2), smile", r"hatsune miku \(vocaloid\)", "hat sune miku ( vocal oid )"),
        (r"a \(red fox\)!!!", "red fox", "red fox"),
        (r"a fox \(red\)\(old\)", r"\(red\)", "( red )("),
        ("snow; red fox...", "red fox.", "red fox ..."),
        ("red fox in snow", "red fox.", "red fox"),
        ("red fox in snow", '"red fox"', "red fox"),
        ("a red-haired fox, snow", "red-haired fox", "red - haired fox"),
        ("a red - haired fox", "red-haired fox", "red - haired fox"),
        ("the fox's tail", "fox's tail", "fox 's tail"),
        ("the fox's tail", "fox", "fox"),
        ("'sailor moon' on a wall", "sailor moon", "'s ail or moon"),
        ("'sailor moon' on a wall", "'sailor moon'", "'s ail or moon '"),
        ("sailor moon on a wall", "'sailor moon'", "sailor moon"),
        ("“red fox”, hat", "“red fox”", "âĢ ľ red fox âĢ Ŀ"),
        ("“red fox”, hat", "red fox", "red fox"),
        ("un CAFÉ, café noir", "café", "cafÃ© cafÃ©"),
        ("狐、猫", "狐", "ç ĭ Ĳ"),
        ("C++ code", "c++", "c ++"),
        ("a fox_hat", "fox_hat", "fox _ hat"),
        ("a fox\nBREAK hat", "fox BREAK hat", "fox break hat"),
        ("1girl, solo", "1girl", "1 girl"),
        ("a (red fox, blue hat:1.2)", "(red fox, blue hat:1.2)", "red fox , blue hat"),
        ("a red fox", "(red fox:1.4)", "red fox"),
        ("RED FOX!", "red fox!", "red fox !"),
        ("ha ha ha", "ha ha", "ha ha ha"),
    ],
)
def test_a_phrase_copied_out_of_the_prompt_is_found_whatever_stands_beside_it(
    clip: Any, prompt: str, phrase: str, words: str
) -> None:
    vocabulary, numbers = clip.tokenizer.clip_l.inv_vocab, tokens(clip, prompt)
    (places,) = found(clip, prompt, phrase)
    assert [vocabulary[numbers[place]].removesuffix("</w>") for place in places] == words.split(" ")


@pytest.mark.parametrize(
    ("prompt", "phrase"),
    [
        ("a firefox", "fox"),
        ("a foxglove", "fox"),
        ("a red, fox", "red fox"),
        ("a redfox", "red fox"),
        ("a red fox", "redfox"),
        ("a café", "caf"),
        ("a fox", "!"),
    ],
)
def test_other_words_are_not_the_phrase(clip: Any, prompt: str, phrase: str) -> None:
    with pytest.raises(ValueError, match="is not in the prompt, whose words are: "):
        found(clip, prompt, phrase)


def test_words_outside_of_english_are_told_as_they_are_written(clip: Any) -> None:
    with pytest.raises(ValueError, match="whose words are: un, café, 狐"):
        found(clip, "un café, 狐!", "fox")


def test_long_texts_are_refused_or_told_in_short(clip: Any) -> None:
    for field in ("phrase", "surroundings"):
        names = {"phrases": "fox", field.replace("phrase", "phrases"): "fox " * 501}
        with pytest.raises(ValueError, match=rf"^'{field}' is too long \(2,004 characters, and 2,000 are the most\)"):
            read_subject(clip, "a fox", **names)
    with pytest.raises(ValueError) as problem:
        found(clip, " ".join("a" * (1 + number % 30) + "b" * (number // 30) for number in range(300)), "fox" * 300)
    assert len(str(problem.value)) < 2_000 and str(problem.value).endswith(", ....")


def test_positions_name_the_right_numbers_of_the_vocabulary(clip: Any) -> None:
    numbers = tokens(clip, "a red fox")
    assert numbers[0] == START
    assert [numbers[place] for place in found(clip, "a red fox", "red fox")[0]] == [RED, FOX]


def test_long_prompts_run_over_several_chunks(clip: Any) -> None:
    prompt = "snow, " * 50 + "a red fox" + ", snow" * 50 + ", one more fox"
    (places,) = found(clip, prompt, "fox")
    numbers = tokens(clip, prompt)
    assert len(numbers) >= 2 * 77 and len(places) == 2 and places[0] > 77
    assert [place for place, number in enumerate(numbers) if number == FOX] == list(places)


def test_surroundings_are_found_beside_the_subject_and_must_be_in_the_prompt(clip: Any) -> None:
    with torch.inference_mode():
        subject = read_subject(clip, "a red fox in the snow", "red fox", "snow")
        assert [each.positions for each in subject.surroundings] == [(6,)]
        assert [each.positions for each in subject.phrases] == [(2, 3)]
        with pytest.raises(
            ValueError, match="'surroundings': 'ice' is not in the prompt, whose words are: a, red, fox"
        ):
            read_subject(clip, "a red fox in the snow", "fox", "ice")


def test_several_subjects_keep_their_order(clip: Any) -> None:
    assert found(clip, "a fox and a red hat", "red hat\nfox") == [(5, 6), (2,)]


def test_two_encoders_share_their_places(sdxl_clip: Any) -> None:
    assert found(sdxl_clip, "a (red fox:1.2) in the snow", "red fox") == [(2, 3)]
    for encoder in ("l", "g"):
        assert tokens(sdxl_clip, "a red fox", encoder)[2:4] == [RED, FOX]


def test_embeddings_take_as_many_places_as_they_have_vectors(clip: Any, tmp_path: Any) -> None:
    save_file({"clip_l": torch.randn(3, 768)}, tmp_path / "mythings.safetensors")
    clip = clip.clone()
    tokenizer = clip.tokenizer.clip_l
    before, tokenizer.embedding_directory = tokenizer.embedding_directory, str(tmp_path)
    try:
        prompt = "a photo of embedding:mythings and a fox"
        assert clip.tokenize(prompt)["l"][0][4][0].shape == (768,)
        entries = read_positions(clip, prompt, "embedding:mythings, fox")
    finally:
        tokenizer.embedding_directory = before
    assert entries == [(4, 5, 6), (9,)]


def read_positions(clip: Any, prompt: str, phrases: str) -> list[tuple[int, ...]]:
    """Positions alone: the small text encoder has no room for embeddings of SD1.5's width."""
    from conditional_balance.engine.subject import phrases_in
    from conditional_balance.runtime.attribution.reading import read_prompt

    reading = read_prompt(clip, prompt, len(clip.tokenize(prompt)["l"][0]))
    return [reading.positions(name) for name in phrases_in(phrases)]


def test_a_phrase_that_is_not_there_shows_the_words(clip: Any) -> None:
    with pytest.raises(ValueError, match="'wolf' is not in the prompt, whose words are: a, red, axolotl, snow"):
        found(clip, "a (red axolotl:1.2), snow, a", "wolf")
    with pytest.raises(ValueError, match="'fox red' is not in the prompt"):
        found(clip, "a red fox", "fox red")
    with pytest.raises(ValueError, match="'phrase' is empty"):
        found(clip, "a red fox", " \n")


def test_the_node_encodes_as_the_core_node_does(clip: Any) -> None:
    from nodes import CLIPTextEncode

    with torch.inference_mode():
        output = CBSubject.execute(clip, "a (red fox:1.3) in the snow", "red fox")
        (expected,) = CLIPTextEncode().encode(clip, "a (red fox:1.3) in the snow")
    conditioning, subject = output.args
    assert torch.equal(conditioning[0][0], expected[0][0])
    assert torch.equal(conditioning[0][1]["pooled_output"], expected[0][1]["pooled_output"])
    assert subject.text is conditioning[0][0]
    assert "red fox (tokens 2, 3)" in output.ui["cb_summary"][0]
