"""The tiny models are fit to test on: real layouts, lively weights, every sampler."""

from __future__ import annotations

import pytest
import torch

import tiny

KINDS = ("sd15", "sdxl")
LAYERS = {
    "sd15": {("input", n): 1 for n in (1, 2, 4, 5, 7, 8)}
    | {("middle", 0): 1}
    | {("output", n): 1 for n in range(3, 12)},
    "sdxl": {("input", 4): 1, ("input", 5): 1, ("input", 7): 2, ("input", 8): 2, ("middle", 0): 2}
    | {("output", n): 2 for n in (0, 1, 2)}
    | {("output", n): 1 for n in (3, 4, 5)},
}


def run(model, sampler: str = "euler", positive_seed: int = 1, **options) -> torch.Tensor:
    return tiny.sample(
        model, tiny.cond(model, positive_seed), tiny.cond(model, 2), tiny.latent(), sampler=sampler, **options
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m_sde", "uni_pc", "ddim"])
def test_samples(kind: str, sampler: str, request: pytest.FixtureRequest) -> None:
    samples = run(request.getfixturevalue(f"{kind}_model"), sampler)
    assert samples.shape == (1, 4, 16, 16)
    assert samples.isfinite().all()
    assert 0.05 < samples.std() < 200


@pytest.mark.parametrize("kind", KINDS)
def test_attention_layers_stand_where_the_real_models_have_them(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(f"{kind}_model").clone()
    seen: dict[tuple[str, int], int] = {}

    def note(n, context, value, extra_options):
        seen[extra_options["block"]] = extra_options["block_index"] + 1
        return n, context, value

    model.set_model_attn1_patch(note)
    run(model, steps=1)
    assert seen == LAYERS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_text_and_self_attention_change_the_picture(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(f"{kind}_model")
    plain = run(model)
    silent = model.clone()
    silent.set_model_attn1_output_patch(lambda n, extra_options: torch.zeros_like(n))
    scale = plain.std()
    assert (run(model, positive_seed=3) - plain).std() > 0.05 * scale
    assert (run(silent) - plain).std() > 0.05 * scale


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": torch.float16, "manual_cast": torch.float32},
        {"dtype": torch.bfloat16},
        {"v_pred": True},
    ],
    ids=["half-with-cast", "bfloat16", "v-prediction"],
)
def test_other_types_sample_too(options: dict) -> None:
    assert run(tiny.tiny_model("sd15", **options)).isfinite().all()


def test_weights_are_inference_tensors_as_in_the_server(sd15_model) -> None:
    assert all(p.is_inference() for p in sd15_model.model.diffusion_model.parameters())


def test_same_seed_same_picture() -> None:
    assert torch.equal(run(tiny.tiny_model(seed=4)), run(tiny.tiny_model(seed=4)))


def test_clip_fits_the_model(sd15_model, clip) -> None:
    with torch.inference_mode():
        text = clip.encode_from_tokens_scheduled(clip.tokenize("a red fox in the snow"))
    assert tiny.sample(sd15_model, text, tiny.cond(sd15_model, 2), tiny.latent()).isfinite().all()
    assert text[0][0].std() > 0.1


def test_vae_goes_both_ways(vae) -> None:
    with torch.inference_mode():
        samples = vae.encode(torch.rand(1, 64, 64, 3))
        picture = vae.decode(samples)
    assert samples.shape == (1, 4, 8, 8)
    assert picture.shape == (1, 64, 64, 3)
    assert picture.std() > 0.01
