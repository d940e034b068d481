"""The shipped demo model: it loads as ComfyUI's own types, samples through the core sampler, and its judge can see."""

from __future__ import annotations

import comfy.controlnet
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.sd1_clip import SDTokenizer
from nodes import ControlNetApplyAdvanced
from safetensors.torch import load_file

from conditional_balance.runtime.arch.unet import attention_layers
from demo import models, world
from demo.judge import load_judge, style_distance
from demo.training.diffusion import encoded_prompts, signal_shares


@pytest.fixture(scope="module")
def vae():
    return models.load_vae()


@pytest.fixture(scope="module")
def pictures() -> tuple[world.Specs, torch.Tensor]:
    specs = world.random_specs(64, torch.Generator().manual_seed(1))
    return specs, world.render(specs)[0]


def restored(vae, drawn: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return vae.decode(vae.encode(drawn.movedim(1, -1))).movedim(-1, 1)


def test_layers_span_three_resolutions() -> None:
    layers = attention_layers(models.load_unet())
    assert len(layers) >= 15
    assert {layer.block for layer in layers} == {"input", "middle", "output"}
    assert {block.attn2.to_k.in_features for block in layers.values()} == {models.TEXT_WIDTH}


def test_core_samples_the_very_model_that_was_trained() -> None:
    """Heads, pooled text, size numbers and levels: all that a loader can get wrong while pictures still look right."""
    model, clip = models.load_unet(dtype=torch.float32), models.load_clip()
    text = "a fish by the sea, comic style"
    clean, noise = torch.randn(2, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    index = 600
    sigma = model.get_model_object("model_sampling").sigmas[index]
    seen = denoised(model, clip.encode_from_tokens_scheduled(clip.tokenize(text)), clean + sigma * noise, sigma)

    unet = models.new_unet("cpu")
    unet.load_state_dict(load_file(models.WEIGHTS / "unet.safetensors"))
    encoder = models.new_text_model("cpu")
    weights = models.unpack_text_weights(load_file(models.WEIGHTS / "text_encoder.safetensors"))
    encoder.load_state_dict({name: weight.float() for name, weight in weights.items()})
    tokens = torch.tensor([[token for token, _ in SDTokenizer().tokenize_with_weights(text)[0]]])
    alpha = signal_shares()[index]
    scaled = alpha * (clean + sigma * noise)
    with torch.inference_mode():
        context, y = encoded_prompts(encoder, tokens, torch.float32)
        v = unet(scaled, torch.tensor([index]), context, y=y)
    trained = alpha * scaled - (1 - alpha**2).sqrt() * v
    assert torch.allclose(seen, trained, atol=2e-3), float((seen - trained).abs().max())


def denoised(model, cond, noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """What core's sampling predicts the clean latents to be, from one look."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(cond, cond)
    guider.set_cfg(1.0)
    look = comfy.samplers.KSAMPLER(lambda predict, x, sigmas, extra_args, **_: predict(noisy, sigmas[:1], **extra_args))
    with torch.inference_mode():
        return guider.sample(noisy, noisy, look, torch.stack([sigma, 0 * sigma]), disable_pbar=True)


def test_core_sampler_makes_a_picture(vae) -> None:
    model, clip = models.load_unet(), models.load_clip()
    conds = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a fish by the sea, comic style", "")]
    empty = torch.zeros(1, 4, 16, 16)  # as EmptyLatentImage makes it: four channels
    latent = comfy.sample.fix_empty_latent_channels(model, empty)
    noise = comfy.sample.prepare_noise(latent, 0)
    with torch.inference_mode():
        sampled = comfy.sample.sample(
            model, noise, 2, 4.0, "euler", "normal", *conds, latent, disable_pbar=True, seed=0
        )
        picture = vae.decode(sampled)
    assert picture.shape == (1, 128, 128, 3) and bool(torch.isfinite(picture).all())


def test_autoencoder_keeps_the_picture(vae, pictures) -> None:
    _, drawn = pictures
    error = (restored(vae, drawn) - drawn).square().mean()
    assert float(-10 * error.log10()) > 24  # dB; the benchmark states the figure


def test_judge_names_what_is_drawn_and_orders_styles(vae, pictures) -> None:
    specs, drawn = pictures
    judge = load_judge()
    again = world.random_specs(64, torch.Generator().manual_seed(2)).in_style_of(specs)
    first, second = judge(restored(vae, drawn)), judge(restored(vae, world.render(again)[0]))
    assert float((first.subject == specs.subject).float().mean()) > 0.9
    assert float((first.background == specs.background).float().mean()) > 0.9
    assert float((first.family == specs.family[:, 0]).float().mean()) > 0.9
    distance = style_distance(first.style[:, None], second.style[None])
    same, other = distance.diagonal(), distance[~torch.eye(64, dtype=torch.bool)]
    assert float((same[:, None] < other[None]).float().mean()) > 0.95


def test_a_new_controlnet_begins_as_the_unets_encoder_and_changes_nothing(vae) -> None:
    """On the core apply node; half a minute of training is tested beside the other parts."""
    model, clip = models.load_unet(), models.load_clip()
    net = models.new_control_net("cpu", unet=model.model.diffusion_model)
    own = model.model.diffusion_model.state_dict()
    assert torch.equal(net.input_blocks[1][0].in_layers[2].weight, own["input_blocks.1.0.in_layers.2.weight"])
    conds = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a fish by the sea", "")]
    edges = world.contours(world.draw_scene(world.random_specs(1, torch.Generator().manual_seed(0)), 128))
    assert torch.equal(sampled(model, conds), sampled(model, applied(conds, net, edges)))
    for module in net.zero_convs:
        torch.nn.init.eye_(module[0].weight[:, :, 0, 0])
    assert not torch.equal(sampled(model, conds), sampled(model, applied(conds, net, edges)))


def applied(conds, net, edges: torch.Tensor):
    control = comfy.controlnet.ControlNet(net.requires_grad_(False), load_device=torch.device("cpu"))
    hint = edges[..., None].repeat(1, 1, 1, 3)
    return ControlNetApplyAdvanced().apply_controlnet(*conds, control, hint, 1.0, 0.0, 1.0)


def sampled(model, conds) -> torch.Tensor:
    latent = torch.zeros(1, 8, 16, 16)
    noise = comfy.sample.prepare_noise(latent, 0)
    with torch.inference_mode():
        return comfy.sample.sample(model, noise, 2, 4.0, "euler", "normal", *conds, latent, disable_pbar=True, seed=0)


def test_a_controlnet_that_is_not_there_says_how_to_make_it(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"run `python dev.py train controlnet` first"):
        models.load_control_net(tmp_path / "controlnet.safetensors")


def test_words_outside_the_captions_stay_out_of_the_file() -> None:
    words = torch.tensor([5, 77, 49406, 49407])
    text = models.with_vocabulary(models.new_text_model("cpu"), words)
    packed = models.pack_text_weights(text.state_dict(), words)
    assert models.WORD_TABLE not in packed and len(packed["word_embeddings"]) == 4
    table = models.unpack_text_weights(packed)[models.WORD_TABLE]
    assert table.abs().sum(1).nonzero()[:, 0].tolist() == words.tolist()


def test_a_small_vocabulary_reads_as_the_whole_one() -> None:
    tokens = torch.tensor([[49406, 5, 77, 49407, 49407]]).repeat(1, 16)[:, :77]
    words = tokens.unique()
    small = models.with_vocabulary(models.new_text_model("cpu"), words)
    whole = models.new_text_model("cpu")
    whole.load_state_dict(models.unpack_text_weights(models.pack_text_weights(small.state_dict(), words)))
    for ours, full in zip(small(torch.searchsorted(words, tokens)), whole(tokens), strict=True):
        torch.testing.assert_close(ours, full)
