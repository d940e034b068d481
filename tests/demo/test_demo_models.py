"""The shipped demo models: they load as ComfyUI's own types and sample through the core sampler."""

from __future__ import annotations

import comfy.controlnet
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.sd1_clip import SDTokenizer
from nodes import ControlNetApplyAdvanced
from safetensors.torch import load_file, save_file

from conditional_balance.nodes import jobs
from conditional_balance.runtime.arch.unet import attention_layers
from conditional_balance.runtime.inject.metadata import Change, Metadata, schedule_metadata
from demo import models, nets, painting
from demo.nodes import CBDemoPictures
from demo.training.diffusion import encoded_prompts, signal_shares
from demo.world import places, scenes


@pytest.fixture(scope="module")
def vae():
    return models.load_vae()


def test_layers_span_three_resolutions() -> None:
    layers = attention_layers(models.load_unet())
    assert len(layers) >= 15
    assert {layer.block for layer in layers} == {"input", "middle", "output"}
    assert {block.attn2.to_k.in_features for block in layers.values()} == {nets.TEXT_WIDTH}


def test_core_samples_the_very_model_that_was_trained() -> None:
    """Heads, pooled text, size numbers and levels: all that a loader can get wrong while pictures still look right."""
    model, clip = models.load_unet(dtype=torch.float32), models.load_clip()
    text = "a fish by the sea, ink drawing, comic style"
    clean, noise = torch.randn(2, 1, 8, 24, 24, generator=torch.Generator().manual_seed(0))
    index = 600
    sigma = model.get_model_object("model_sampling").sigmas[index]
    seen = denoised(model, clip.encode_from_tokens_scheduled(clip.tokenize(text)), clean + sigma * noise, sigma)

    unet = nets.new_unet("cpu")
    unet.load_state_dict(load_file(models.WEIGHTS / "unet.safetensors"))
    encoder = nets.new_text_model("cpu")
    weights = nets.unpack_text_weights(load_file(models.WEIGHTS / "text_encoder.safetensors"))
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


def test_sizes_by_noise_level_change_nothing_in_a_model_that_was_shown_one_size() -> None:
    """Its pooled text is narrower than SDXL's own, and stands before the sizes all the same."""
    model, clip = models.load_unet(dtype=torch.float32), models.load_clip()
    prompt = clip.encode_from_tokens_scheduled(clip.tokenize("a fish by the sea"))

    def painted(of):
        noise = torch.randn(1, 8, 24, 24, generator=torch.Generator().manual_seed(0))
        latent = torch.zeros_like(noise)
        with torch.inference_mode():
            return comfy.sample.sample(
                of, noise, 1, 1.0, "euler", "normal", prompt, prompt, latent, disable_pbar=True, seed=0
            )

    plain = painted(model)
    assert torch.equal(
        painted(schedule_metadata(model, Metadata(original=Change(2.0, 0.0), top=Change(64, 0.0)))), plain
    )
    assert not torch.equal(painted(schedule_metadata(model, Metadata(pooled=Change(0.0, 0.0)))), plain)


def test_core_samples_the_very_transformer_that_was_trained(tmp_path) -> None:
    """Patches, positions, pooled text and levels, on weights drawn by chance."""
    torch.manual_seed(0)
    trained = nets.new_transformer("cpu")
    for weight in trained.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    save_file(trained.state_dict(), tmp_path / "transformer.safetensors")
    model = models.load_transformer(tmp_path / "transformer.safetensors", torch.float32)
    clip = models.load_clip()
    text, level = "a fish by the sea, ink drawing", torch.tensor(0.6)
    clean, noise = torch.randn(2, 1, 8, 24, 24)
    noisy = (1 - level) * clean + level * noise
    cond = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    seen = denoised(model, cond, noisy, level)
    context, pooled = cond[0][0], cond[0][1]["pooled_output"]
    with torch.inference_mode():
        velocity = trained(noisy, level[None], context, pooled)
    assert context.shape == (1, 77, nets.TEXT_WIDTH) and float(velocity.std()) > 0.01
    assert torch.allclose(seen, noisy - level * velocity, atol=2e-3)


@pytest.mark.parametrize(
    ("load", "profile"), [("load_unet", "demo.style"), ("load_transformer", "demo.transformer.style")]
)
def test_a_shipped_model_finds_the_ranking_that_was_measured_on_it(load: str, profile: str) -> None:
    assert jobs._chosen(getattr(models, load)()).words == f"Layers by {profile}, measured on this checkpoint."


@pytest.mark.parametrize(("load", "part"), [("load_transformer", "transformer"), ("load_control_net", "controlnet")])
def test_weights_that_are_not_there_are_refused_in_one_sentence(load: str, part: str, tmp_path) -> None:
    with pytest.raises(ValueError, match=rf"no {part}.safetensors .*run `python dev.py train {part}` first"):
        getattr(models, load)(tmp_path / f"{part}.safetensors")


def test_painting_gives_each_scene_its_noise_and_each_style_the_same() -> None:
    two, captions, lines = CBDemoPictures.execute("flat", "plain", 3, "a fox\n\n  a whale by the sea ").result
    assert captions == "a fox, flat drawing\na whale by the sea, flat drawing"
    assert two.shape == lines.shape == (2, 192, 192, 3) and 0 <= float(two.min()) and float(two.max()) <= 1
    again = painting.painted(["a fox, flat drawing"], 3)
    torch.testing.assert_close(again[0], two[0], atol=1e-3, rtol=0)
    other = painting.painted(["a fox, ink drawing, comic style"], 3)
    assert float((other - again).abs().mean()) > 0.02
    assert painting.caption("", "ink", "comic") == "ink drawing, comic style"


def test_core_sampler_makes_a_picture(vae) -> None:
    model, clip = models.load_unet(), models.load_clip()
    conds = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a fish, ink drawing", "")]
    empty = torch.zeros(1, 4, 24, 24)  # as EmptyLatentImage makes it: four channels
    latent = comfy.sample.fix_empty_latent_channels(model, empty)
    noise = comfy.sample.prepare_noise(latent, 0)
    with torch.inference_mode():
        sampled = comfy.sample.sample(
            model, noise, 2, 4.0, "euler", "normal", *conds, latent, disable_pbar=True, seed=0
        )
        picture = vae.decode(sampled)
    assert picture.shape == (1, 192, 192, 3) and bool(torch.isfinite(picture).all())


def test_autoencoder_keeps_the_picture(vae) -> None:
    """A drawing by no hand: rings in flat colours before a place."""
    specs = scenes.random_specs(4, torch.Generator().manual_seed(1))
    x, y = places.grid(4, scenes.SIZE, torch.device("cpu"))
    ring = ((torch.hypot(x, y) * 5).floor() % 2 * (torch.hypot(x, y) < 0.7))[:, None]
    drawn = scenes.grounds(specs, scenes.SIZE) * (1 - ring) + ring * torch.rand(4, 3, 1, 1)
    with torch.inference_mode():
        restored = vae.decode(vae.encode(drawn.movedim(1, -1))).movedim(-1, 1)
    error = (restored - drawn).square().mean()
    assert float(-10 * error.log10()) > 24  # dB; the benchmark states the figure


def test_a_new_controlnet_begins_as_the_unets_encoder_and_changes_nothing(vae) -> None:
    """On the core apply node; half a minute of training is tested beside the other parts."""
    model, clip = models.load_unet(), models.load_clip()
    net = nets.new_control_net("cpu", unet=model.model.diffusion_model)
    own = model.model.diffusion_model.state_dict()
    assert torch.equal(net.input_blocks[1][0].in_layers[2].weight, own["input_blocks.1.0.in_layers.2.weight"])
    conds = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a fish by the sea", "")]
    edges = scenes.edges(torch.rand(1, 3, scenes.SIZE, scenes.SIZE))
    assert torch.equal(sampled(model, conds), sampled(model, applied(conds, net, edges)))
    for module in net.zero_convs:
        torch.nn.init.eye_(module[0].weight[:, :, 0, 0])
    assert not torch.equal(sampled(model, conds), sampled(model, applied(conds, net, edges)))


def applied(conds, net, edges: torch.Tensor):
    control = comfy.controlnet.ControlNet(net.requires_grad_(False), load_device=torch.device("cpu"))
    hint = edges[..., None].repeat(1, 1, 1, 3)
    return ControlNetApplyAdvanced().apply_controlnet(*conds, control, hint, 1.0, 0.0, 1.0)


def sampled(model, conds) -> torch.Tensor:
    latent = torch.zeros(1, 8, 24, 24)
    noise = comfy.sample.prepare_noise(latent, 0)
    with torch.inference_mode():
        return comfy.sample.sample(model, noise, 2, 4.0, "euler", "normal", *conds, latent, disable_pbar=True, seed=0)


def test_words_outside_the_captions_stay_out_of_the_file() -> None:
    words = torch.tensor([5, 77, 49406, 49407])
    text = nets.with_vocabulary(nets.new_text_model("cpu"), words)
    packed = nets.pack_text_weights(text.state_dict(), words)
    assert nets.WORD_TABLE not in packed and len(packed["word_embeddings"]) == 4
    table = nets.unpack_text_weights(packed)[nets.WORD_TABLE]
    assert table.abs().sum(1).nonzero()[:, 0].tolist() == words.tolist()


def test_a_small_vocabulary_reads_as_the_whole_one() -> None:
    tokens = torch.tensor([[49406, 5, 77, 49407, 49407]]).repeat(1, 16)[:, :77]
    words = tokens.unique()
    small = nets.with_vocabulary(nets.new_text_model("cpu"), words)
    whole = nets.new_text_model("cpu")
    whole.load_state_dict(nets.unpack_text_weights(nets.pack_text_weights(small.state_dict(), words)))
    for ours, full in zip(small(torch.searchsorted(words, tokens)), whole(tokens), strict=True):
        torch.testing.assert_close(ours, full)


@pytest.mark.parametrize(
    "order", [("nobody", "plain", 1, "a fox"), ("flat", "oil", 1, ""), ("flat", "plain", 1, "a zebra")]
)
def test_words_that_the_model_never_saw_are_refused(order: tuple[str, str, int, str]) -> None:
    with pytest.raises(ValueError, match=r"never seen the word '(nobody|oil|zebra)'"):
        CBDemoPictures.execute(*order)
