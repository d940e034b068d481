"""Every family of transformers: its layers are found, recorded and replaced, and nothing of that stays."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from tiny_transformers import KINDS, cond, latent, tiny_transformer

import tiny
from conditional_balance.engine.layers import in_forward_order
from conditional_balance.runtime.arch.base import Projected
from conditional_balance.runtime.arch.registry import FAMILIES, architecture_of
from conditional_balance.runtime.arch.transformer import Transformer
from conditional_balance.runtime.profile.capture import recording
from conditional_balance.runtime.runs.model_call import ModelCall, with_wrapper

EVERY = list(KINDS)
FLIPPED = "flipped_img_txt"  # HunyuanVideo's picture stands before its text where this is known
ROTARY = [kind for kind in EVERY if kind not in ("sd3", "sd35-medium", "aura")]


def run(model: Any, kind: str, batch: int = 3, tokens: int | None = None, **options: Any) -> torch.Tensor:
    """A short run with the same prompts and noise each time; most families run cond and uncond in one call then."""
    positive, negative = cond(kind, 1, tokens), cond(kind, 2, tokens)
    options = {"positive": positive, "negative": negative, "latent": latent(kind, batch=batch), "steps": 2, **options}
    return tiny.sample(model, scheduler="simple", **options)


def intercepting(model: Any, operators: Any) -> Any:
    """A clone whose layers run under `operators`, made by a function of the architecture or given by layer."""
    from comfy.patcher_extension import WrappersMP

    architecture = architecture_of(model)

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        call = ModelCall.of(*args, **kwargs)
        with architecture.on(executor.class_obj.diffusion_model).intercepted(call.options, operators) as options:
            return executor(*args[:5], options, *args[6:], **kwargs)

    clone = model.clone()
    clone.model_options = with_wrapper(clone.model_options, WrappersMP.APPLY_MODEL, wrapper)
    return clone


def hooks_of(model: Any) -> int:
    modules = model.model.modules()
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


@pytest.mark.parametrize("kind", EVERY)
def test_layers_are_named_in_the_order_in_which_they_run(kind: str) -> None:
    model = tiny_transformer(kind)
    layers, called = architecture_of(model).layers, []

    def seen(projected: Projected, layer: Any) -> torch.Tensor:
        called.append(layer)
        return projected.plain()

    operators = {layer: lambda projected, layer=layer: seen(projected, layer) for layer in layers}
    out = run(intercepting(model, operators), kind, steps=1, cfg=1.0)
    assert " ".join(map(str, layers)) == KINDS[kind].layers
    assert called == list(layers) and layers == in_forward_order(layers)
    assert torch.equal(out, run(model, kind, steps=1, cfg=1.0)) and hooks_of(model) == 0


@pytest.mark.parametrize("kind", EVERY)
def test_recording_and_no_operators_change_no_bit(kind: str) -> None:
    model = tiny_transformer(kind)
    plain = run(model, kind)
    with recording(model, ("q", "k", "v")) as recorder:
        assert torch.equal(run(model, kind), plain)
        found = dict(recorder._found)
    layers = architecture_of(model).layers
    assert found.keys() == {(layer, feature) for layer in layers for feature in "qkv"}
    assert all(len(rows) == 2 for rows in found.values())  # cond and uncond, by their own names
    assert torch.equal(run(intercepting(model, {}), kind), plain) and hooks_of(model) == 0


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("batch", [1, 3])
def test_only_the_picture_is_recorded_after_the_norm_and_before_rotation(kind: str, batch: int) -> None:
    """k of the picture = the block's own norm of its own projection, by hand; its tokens are the latent's patches."""
    model = tiny_transformer(kind)
    architecture, recorded, projections = architecture_of(model), {}, {}
    handles = []
    for layer in architecture.layers:
        module = model.model.diffusion_model.get_submodule(architecture.projection(layer, "k").removesuffix(".weight"))
        keep = lambda module, args, out, layer=layer: projections.__setitem__(layer, out)  # noqa: E731
        handles.append(module.register_forward_hook(keep))

    def receive(layer: Any, feature: str, tokens: torch.Tensor) -> None:
        recorded[layer] = tokens

    try:
        with architecture.recording(("k",), receive):
            run(model, kind, batch=batch, steps=1, cfg=1.0)
    finally:
        for handle in handles:
            handle.remove()
    _, rows, columns = architecture.grid(latent(kind)["samples"].shape)
    for layer in architecture.layers:
        assert recorded[layer].shape[:2] == (batch, rows * columns)
        expected = normed_keys(model.model.diffusion_model, architecture, layer, projections[layer])
        picture = expected[:, _first(kind, layer, expected.shape[1], rows * columns) :][:, : rows * columns]
        torch.testing.assert_close(recorded[layer], picture, rtol=1e-4, atol=1e-5)


def normed_keys(network: Any, architecture: Any, layer: Any, projected: torch.Tensor) -> torch.Tensor:
    """k [rows, tokens, channels] from the output of the projection of q, k and v, as each family's norm makes it."""
    block = network.get_submodule(architecture._blocks_of(layer).path)[layer.number]
    name, width = type(architecture).__name__, architecture.width(layer)
    heads = {"NextDiT": getattr(getattr(block, "attention", None), "n_local_heads", 1)}.get(name, 2)
    if name == "SD3":
        attention = block.x_block.attn2 if layer.block == "second" else block.x_block.attn
        return attention.ln_k(projected[..., width : 2 * width].unflatten(-1, (heads, -1))).flatten(2)
    if name in ("Flux", "HunyuanVideo"):
        norm = block.img_attn.norm if layer.block == "joint" else block.norm
        return norm.key_norm(projected[..., width : 2 * width].unflatten(-1, (heads, -1))).flatten(2)
    if name in ("QwenImage", "QwenImage21"):
        return block.attn.norm_k(projected.unflatten(-1, (heads, -1))).flatten(2)
    if name == "NextDiT":
        attention = block.attention
        _, k, _ = projected.split(
            [attention.n_local_heads * attention.head_dim] + [attention.n_local_kv_heads * attention.head_dim] * 2, -1
        )
        k = attention.k_norm(k.unflatten(-1, (attention.n_local_kv_heads, -1)))
        return k.repeat_interleave(attention.n_rep, 2).flatten(2)
    if name == "AuraFlow":
        norm = block.attn.k_norm2 if layer.block == "joint" else block.attn.k_norm1
        return norm(projected.unflatten(-1, (heads, -1))).flatten(2)
    if name == "Krea2":
        return block.attn.qknorm.knorm(projected.unflatten(-1, (1, -1))).repeat_interleave(2, 2).flatten(2)
    if name == "Wan":
        return block.self_attn.norm_k(projected)
    return block.self_attn.k_norm(projected.unflatten(-1, (heads, -1))).flatten(2)


def _first(kind: str, layer: Any, tokens: int, picture: int) -> int:
    """Where the picture begins in what one projection makes: nothing else, or text before (or behind) it."""
    if tokens == picture:
        return 0
    if kind == "hunyuan-video" and hasattr(tiny_transformer(kind).model.diffusion_model.double_blocks[0], FLIPPED):
        return 0
    if kind == "z-image":
        return 0 if layer.block == "refiner" else 32  # text and picture, each padded to a multiple of 32
    return tokens - picture


@pytest.mark.parametrize("kind", EVERY)
def test_nothing_stays_after_an_exception_inside_a_block(kind: str) -> None:
    model = tiny_transformer(kind)
    plain, layers = run(model, kind), architecture_of(model).layers

    def fail(projected: Projected) -> torch.Tensor:
        raise RuntimeError("a pack failed")

    for broken in (intercepting(model, {layers[-1]: fail}), intercepting(model, {layers[0]: fail})):
        with pytest.raises(RuntimeError, match="a pack failed"):
            run(broken, kind)
        assert hooks_of(model) == 0
    assert torch.equal(run(model, kind), plain)


@pytest.mark.parametrize("kind", EVERY)
def test_an_earlier_attention_override_still_acts_once_a_call(kind: str) -> None:
    model = tiny_transformer(kind)
    calls: list[int] = []

    def override(func: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        return func(*args, **kwargs)

    other = model.clone()
    other.model_options["transformer_options"]["optimized_attention_override"] = override
    plain = run(other, kind)
    alone, calls[:] = len(calls), []
    operators = dict.fromkeys(architecture_of(model).layers, Projected.plain)
    assert torch.equal(run(intercepting(other, operators), kind), plain) and len(calls) == alone


@pytest.mark.parametrize("kind", [kind for kind in ("flux", "qwen", "krea2", "mage-flow") if kind in KINDS])
def test_a_picture_to_edit_stands_behind_the_one_that_is_painted(kind: str) -> None:
    model, shapes = tiny_transformer(kind), []
    references = [latent(kind, 5, height=6, width=6)["samples"]]
    positive = cond(kind, 1, reference_latents=references, reference_latents_method="index")

    def seen(projected: Projected) -> torch.Tensor:
        shapes.append((projected.q.shape[2], projected.image.start, projected.image.stop))
        return projected.plain()

    operators = dict.fromkeys(architecture_of(model).layers, seen)
    run(intercepting(model, operators), kind, positive=positive, steps=1, cfg=1.0)
    painted, to_edit = (70, 36) if kind == "mage-flow" else (20, 9)
    assert set(shapes) == {(13 + painted + to_edit, 13, 13 + painted)}


@pytest.mark.parametrize(("newer", "before"), [({}, 0), ({"use_cond_type_embedding": True}, 6)])
def test_letters_to_be_drawn_stand_beside_the_prompt_in_hunyuan_video(newer: dict[str, bool], before: int) -> None:
    """Before it in 1.5, behind it in HunyuanImage: a subject's words are found among the prompt's own tokens."""
    from comfy.patcher_extension import WrappersMP

    model, places = tiny_transformer("hunyuan-video", byt5=True, **newer).clone(), set()

    def with_letters(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return executor(x, *args, txt_byt5=torch.randn(len(x), 6, 1472), **kwargs)

    def seen(projected: Projected) -> torch.Tensor:
        places.add((projected.image.start, projected.text.start, projected.text.stop))
        return projected.plain()

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "letters", with_letters)
    operators = dict.fromkeys(architecture_of(model).layers, seen)
    run(intercepting(model, operators), "hunyuan-video", steps=1, cfg=1.0)
    ((image, start, stop),) = places
    assert (start, stop) == ((20 + before, 20 + 19) if image == 0 else (before, 19))


def test_pictures_to_edit_stand_before_the_one_that_is_painted_in_z_image() -> None:
    """Each with a text; all are padded to 32 tokens. A subject's words cannot be told from theirs."""
    model, places = tiny_transformer("z-image"), []
    if "ref_latents" not in inspect.signature(model.model.diffusion_model._forward).parameters:
        pytest.skip("This version of ComfyUI takes no pictures to edit for Z-Image.")
    references = [latent("z-image", 5, height=6, width=6)["samples"]]
    positive = cond("z-image", 1, reference_latents=references)

    def seen(projected: Projected) -> torch.Tensor:
        places.append((projected.q.shape[2], projected.image.start, projected.image.stop))
        return projected.plain()

    operators = dict.fromkeys(architecture_of(model).layers, seen)
    run(intercepting(model, operators), "z-image", positive=positive, steps=1, cfg=1.0)
    assert set(places) == {(64, 32, 52), (128, 96, 116)}
    with architecture_of(model).seen(operators, of_text=True):
        places.clear()
        run(model, "z-image", positive=positive, steps=1, cfg=1.0)
    assert not places


QWEN21 = pytest.mark.skipif("qwen21" not in KINDS, reason="This version of ComfyUI does not know Qwen-Image 2.1.")


@QWEN21
@pytest.mark.parametrize("cache", ["auto", "off"])
@pytest.mark.parametrize("to_edit", [0, 2])
def test_qwen_image_21_is_met_where_the_painted_picture_attends(cache: str, to_edit: int) -> None:
    """Behind the text and the pictures to edit, whether ComfyUI keeps those from the first step on or not."""
    kind, found = "qwen21", []
    model = tiny_transformer(kind).clone()
    model.model_options["transformer_options"]["qwen_image21_cache"] = {"device": cache}
    references = [latent(kind, seed, height=6, width=5)["samples"] for seed in range(to_edit)]
    extra = {"reference_latents": references, "image_slots": [4, 9][:to_edit]} if to_edit else {}
    positive = cond(kind, 1, **extra)
    before = 13 + 30 * to_edit

    def seen(projected: Projected) -> torch.Tensor:
        found.append((projected.q.shape[2], projected.k.shape[2], projected.image.start, projected.image.stop))
        assert projected.rotation is not None and projected.rotation.matrices.shape[2] == before + 70
        assert not projected.q[:, :, :before].any() and projected.of_picture("q").abs().sum(-1).all()
        return projected.plain()

    operators = dict.fromkeys(architecture_of(model).layers, seen)
    options = {"positive": positive, "cfg": 1.0, "steps": 3}
    assert torch.equal(run(intercepting(model, operators), kind, **options), run(model, kind, **options))
    assert found == [(before + 70, before + 70, before, before + 70)] * 9
    network = model.model.diffusion_model
    assert network.prefix_cache is None  # as after every run
    found.clear()
    with architecture_of(model).seen(operators, of_text=True):
        run(model, kind, **options)
    assert len(found) == (0 if to_edit else 9)  # a subject's words cannot be told from what stands among them


def in_steps(*args: Any, **kwargs: Any) -> torch.Tensor:
    """Attention that rounds queries and keys, as kernels in eight bits do."""
    from comfy.ldm.modules.attention import attention_pytorch

    q, k, *others = args
    return attention_pytorch((8 * q).round() / 8, (8 * k).round() / 8, *others, **kwargs)


@QWEN21
def test_layers_that_are_left_alone_keep_the_attention_that_a_checkpoint_brings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Newer ComfyUI forgets it where an override stands; a difference that it would swallow is taken without it."""
    from test_transformer_attribution import find

    kind = "qwen21"
    model, layers = tiny_transformer(kind), architecture_of(tiny_transformer(kind)).layers
    plain, exact = run(model, kind), find(kind, "jvp").maps
    for block in model.model.diffusion_model.transformer_blocks:
        monkeypatch.setattr(block.attn.comfy_attention, "function", in_steps)
    rounded = run(model, kind)
    assert not torch.equal(rounded, plain)
    for some in ({}, {layers[1]: Projected.plain}, dict.fromkeys(layers, Projected.plain)):
        assert torch.equal(run(intercepting(model, some), kind), rounded)
    torch.testing.assert_close(find(kind, "jvp").maps, exact, rtol=1e-3, atol=1e-3 * float(exact.max()))


def test_a_difference_is_taken_without_an_attention_that_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as SageAttention, or ComfyUI's own in eight bits."""
    from comfy.ldm.modules import attention
    from test_transformer_attribution import find

    exact = find("wan", "jvp").maps
    kernel = attention.wrap_attn(in_steps)
    kernel.__name__ = "attention_sage"
    monkeypatch.setattr(attention, "optimized_attention", kernel)
    monkeypatch.setattr("comfy.ldm.wan.model.optimized_attention", kernel)
    torch.testing.assert_close(find("wan", "jvp").maps, exact, rtol=1e-3, atol=1e-3 * float(exact.max()))


@QWEN21
def test_what_qwen_image_21_keeps_from_step_to_step_changes_no_style() -> None:
    """Text keeps its keys and values where a reference and a mask act, and with two nodes at the same layers."""
    from test_transformer_style import hidden, styled

    kind, results = "qwen21", []
    for cache in ("auto", "off"):
        model = tiny_transformer(kind).clone()
        model.model_options["transformer_options"]["qwen_image21_cache"] = {"device": cache}
        twice = styled(styled(model, reference=hidden(kind), share=0.5), reference=hidden(kind, 19), remember=False)
        results.append(run(twice, kind, steps=4))
    torch.testing.assert_close(*results, rtol=0, atol=1e-4 * float(results[0].std()))
    plain = run(model, kind, steps=4)
    assert (results[0] - plain).abs().amax() > 0.02 * plain.std()


def test_tokens_that_another_pack_puts_before_the_text_move_the_picture() -> None:
    model, starts = tiny_transformer("flux").clone(), []

    def lengthen(args: dict[str, Any]) -> dict[str, Any]:
        more = lambda x: torch.cat((x[:, :4], x), 1)  # noqa: E731
        return {**args, "txt": more(args["txt"]), "txt_ids": more(args["txt_ids"])}

    def seen(projected: Projected) -> torch.Tensor:
        starts.append(projected.image.start)
        return projected.plain()

    model.model_options["transformer_options"]["patches"] = {"post_input": [lengthen]}
    operators = dict.fromkeys(architecture_of(model).layers, seen)
    run(intercepting(model, operators), "flux", steps=1, cfg=1.0)
    assert set(starts) == {17}


@pytest.mark.parametrize("kind", ["sd3", "flux", "chroma", "qwen", "aura"])
def test_text_padding_that_is_named_is_never_seen(kind: str) -> None:
    """A prompt with zeros at its end that are named as padding is the shorter prompt, at every layer."""
    from conditional_balance.runtime.arch.transformer import TEXT_PADS

    model = tiny_transformer(kind)
    (text, options), *_ = cond(kind, 1, 9)
    padded = [[torch.cat((text, torch.zeros(1, 5, text.shape[2])), 1), options]]
    clone = model.clone()
    clone.model_options["transformer_options"][TEXT_PADS] = (5, 5)
    expected = run(model, kind, batch=2, cfg=1.0, positive=[[text, options]])
    found = run(intercepting(clone, {}), kind, batch=2, cfg=1.0, positive=padded)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.std()))
    assert not torch.allclose(run(model, kind, batch=2, cfg=1.0, positive=padded), expected, rtol=0, atol=1e-3)


def test_models_that_cannot_be_served_are_named_with_the_reason() -> None:
    cpu = torch.device("cpu")
    for name, reason in (("PixArtMS", "PixArt calls attention"), ("HunYuanDiT", "HunyuanDiT calls attention")):
        model = torch.nn.Module()
        model.diffusion_model = type(name, (torch.nn.Module,), {})()
        with pytest.raises(ValueError, match=f"'model' cannot be used here: {reason}"):
            architecture_of(ModelPatcher(model, cpu, cpu))
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    assert all(family.classes for family in FAMILIES if issubclass(family, Transformer))
