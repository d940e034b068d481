"""Style injection on every family of transformers: exact where nothing is asked, and nothing left behind."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from style_case import assert_close, assert_same_traces, differ, free_memory, gate, traces
from test_transformers import EVERY, hooks_of, run
from tiny_transformers import KINDS, cond, latent, tiny_transformer

from conditional_balance.engine.style import KEEP, SHIFT, UNTWIST, StyleSettings
from conditional_balance.runtime.arch.registry import architecture_of
from conditional_balance.runtime.arch.rotation import Rotation
from conditional_balance.runtime.inject.reference import FIRST_ROW, StyleReference
from conditional_balance.runtime.inject.style import StyleInjection, inject_style

JOINT = [kind for kind in EVERY if kind not in ("wan", "cosmos", "anima")]
REFINED = ("lumina2", "z-image", "hunyuan-video", "krea2", "qwen21")
ROTARY = [kind for kind in EVERY if kind not in ("sd3", "sd35-medium", "aura")]
SEVERAL = ["sd35-medium", "flux", "qwen", "z-image", "cosmos"]


def styled(
    of: Any, layers: str = "all", reference: StyleReference = FIRST_ROW, remember: bool = True, **settings: Any
) -> Any:
    return inject_style(of, StyleInjection(gate(layers), reference, StyleSettings(**settings), remember=remember))


def hidden(kind: str, tokens: int | None = None) -> StyleReference:
    return StyleReference(latent(kind, 5, height=12, width=12)["samples"], cond(kind, 31, tokens))


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(
    ("layers", "settings"),
    [("all", {}), ("last", {}), ("all", {"share": 0.5, "adain_v": True}), ("all", {"share": 0.0})],
)
def test_the_first_picture_keeps_every_bit_and_the_others_change(kind: str, layers: str, settings: Any) -> None:
    model = tiny_transformer(kind)
    layers = str(architecture_of(model).layers[-1]) if layers == "last" else layers
    plain, out = run(model, kind), run(styled(model, layers, **settings), kind)
    assert torch.equal(out[0], plain[0]) and bool(out.isfinite().all())
    assert differ(out[1], plain[1]) and differ(out[2], plain[2])


@pytest.mark.parametrize("kind", EVERY)
def test_off_is_off_to_the_bit(kind: str) -> None:
    model = tiny_transformer(kind)
    plain = run(model, kind)
    first = str(architecture_of(model).layers[0])
    assert torch.equal(run(styled(model, strength=0.0), kind), plain)
    assert torch.equal(run(styled(model, f"{first}, -{first}", reference=hidden(kind)), kind), plain)


@pytest.mark.parametrize("kind", EVERY)
def test_nothing_stays_after_a_run_or_an_exception_inside_a_block(kind: str) -> None:
    model = tiny_transformer(kind)
    plain, before = run(model, kind), traces(model)  # in this order: core keeps some of a call on Cosmos
    run(styled(model, reference=hidden(kind)), kind)
    last = list(architecture_of(model).owners)[-1]
    handle = last.register_forward_hook(lambda *args: (_ for _ in ()).throw(RuntimeError("a pack failed")))
    try:
        with pytest.raises(RuntimeError, match="a pack failed"):
            run(styled(model), kind)
    finally:
        handle.remove()
    assert_same_traces(before, traces(model))
    assert hooks_of(model) == 0 and torch.equal(run(model, kind), plain)


@pytest.mark.parametrize("kind", EVERY)
def test_split_calls_give_what_batched_ones_give(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_transformer(kind)
    for reference in (FIRST_ROW, hidden(kind)):
        batched = run(styled(model, reference=reference), kind)
        with monkeypatch.context() as patch:
            free_memory(patch, 0)
            assert_close(run(styled(model, reference=reference), kind), batched, 1e-3)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("more", [0, 6, -5])
def test_a_hidden_reference_is_predicted_as_if_it_were_alone(kind: str, more: int) -> None:
    """Whatever the length of its prompt; where two lengths cannot be held at once, its prompt is cut or lengthened."""
    model, calls = tiny_transformer(kind), []
    tokens = KINDS[kind].tokens + more
    reference = hidden(kind, tokens)

    def keep(module: Any, args: Any, kwargs: Any, out: torch.Tensor) -> None:
        calls.append((args, kwargs, out))

    handle = model.model.diffusion_model.register_forward_hook(keep, with_kwargs=True)
    try:
        run(styled(model, reference=reference, remember=False), kind, steps=1, cfg=1.0)
    finally:
        handle.remove()
    args, kwargs, out = calls[-1]
    own = {name: value[-1:] if _is_rows(value, len(out)) else value for name, value in kwargs.items()}
    text = reference.prompt[0][0]
    if kind in REFINED:
        missing = KINDS[kind].tokens - text.shape[1]
        text = torch.cat((text[:, : KINDS[kind].tokens], text[:, -1:].expand(-1, max(missing, 0), -1)), 1)
    if kind == "flux2":
        text = torch.nn.functional.pad(text, (0, 0, 512 - text.shape[1], 0))  # as the model does with every prompt
    with torch.inference_mode():
        own |= {"context": text, "transformer_options": {}}
        alone = model.model.diffusion_model(*(value[-1:] for value in args), **own)
    assert len(out) == 4
    assert_close(out[-1:], alone, 1e-4)


@pytest.mark.parametrize("kind", [kind for kind in ("flux", "qwen", "krea2", "qwen21") if kind in KINDS])
@pytest.mark.parametrize("remember", [True, False])
@pytest.mark.parametrize("own", ["no prompt", "a prompt", "a prompt with a picture"])
def test_a_reference_is_not_given_the_picture_that_the_run_edits(kind: str, remember: bool, own: str) -> None:
    """Kontext and its kin: the run's picture would bring its own style. The reference's row edits the reference itself,
    or what its prompt holds."""
    model, given = tiny_transformer(kind), []
    to_edit, its, itself = (latent(kind, seed)["samples"] for seed in (7, 8, 5))
    more = {"image_slots": [4]} if kind == "qwen21" else {}
    held = {"reference_latents": [its], **more} if own == "a prompt with a picture" else {}
    reference = StyleReference(itself, None if own == "no prompt" else cond(kind, 31, **held))
    network = model.model.diffusion_model
    handle = network.register_forward_pre_hook(lambda _, __, all: given.append(all["ref_latents"][0]), with_kwargs=True)
    try:
        positive = cond(kind, 1, reference_latents=[to_edit], **more)
        out = run(styled(model, reference=reference, remember=remember), kind, steps=1, cfg=1.0, positive=positive)
    finally:
        handle.remove()
    rows = torch.cat(given)
    expected = [model.model.process_latent_in(each) for each in (to_edit, its if held else itself)]
    whose = [[bool(torch.allclose(row, one[0].to(row))) for one in expected] for row in rows]
    assert bool(out.isfinite().all()) and len(rows) == 4
    assert sorted(whose) == [[False, True], [True, False], [True, False], [True, False]]


def _is_rows(value: Any, rows: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == rows


@pytest.mark.parametrize("kind", JOINT)
def test_no_text_is_ever_repeated_in_joint_attention(kind: str) -> None:
    model, lengths = tiny_transformer(kind), set()
    handle = model.model.diffusion_model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.add(kwargs["context"].shape[1]), with_kwargs=True
    )
    tokens = KINDS[kind].tokens
    try:
        run(styled(model, reference=hidden(kind, tokens + 6), remember=False), kind, steps=1)
    finally:
        handle.remove()
    assert lengths == {512 if kind == "flux2" else tokens if kind in REFINED else tokens + 6}


def test_a_prompt_that_had_to_be_cut_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run(styled(tiny_transformer("z-image"), reference=hidden("z-image", 40)), "z-image")
    assert caplog.text.count("Style injection: The reference's prompt was cut from 40 to 13 tokens") == 1


@pytest.mark.parametrize("kind", SEVERAL)
def test_earlier_overrides_and_loras_act_on_styled_pictures(kind: str) -> None:
    model, calls = tiny_transformer(kind), []

    def sharper(func: Any, q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        return func(3 * q, *args, **kwargs)

    plain = run(styled(model), kind)
    other = model.clone()
    other.model_options["transformer_options"]["optimized_attention_override"] = sharper
    assert differ(run(styled(other), kind), plain) and calls
    architecture = architecture_of(model)
    key = f"diffusion_model.{architecture.projection(architecture.layers[0], 'k')}"
    weight = model.model.state_dict()[key]
    other = model.clone()
    other.add_patches({key: ("diff", (torch.ones_like(weight),))}, 1.0)
    out = run(styled(other), kind)
    assert torch.equal(out[0], run(other, kind)[0]) and differ(out, plain)
    model.unpatch_model()
    import comfy.model_management

    comfy.model_management.unload_all_models()
    assert torch.equal(run(styled(model), kind), plain)


def test_a_block_replace_that_calls_on_composes_and_one_that_skips_is_named(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_transformer("flux")
    wrapping = model.clone()
    wrapping.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", "double_block", 1)
    assert torch.equal(run(styled(wrapping), "flux"), run(styled(model), "flux"))
    skipping = model.clone()
    skipping.set_model_patch_replace(
        lambda args, extra: {"img": args["img"], "txt": args["txt"]}, "dit", "double_block", 1
    )
    with caplog.at_level(logging.WARNING):
        out = run(styled(skipping), "flux")
    assert torch.equal(out[0], run(skipping, "flux")[0])
    assert "j1 was selected but never ran, because test_a_block_replace" in caplog.text


@pytest.mark.parametrize("kind", SEVERAL)
def test_two_injections_at_the_same_layers_share_with_both(kind: str) -> None:
    """The same reference twice, each at full weight, is the reference at twice the weight; the first row keeps it."""
    model, sharing = tiny_transformer(kind), {"adain_q": False, "adain_k": False, "sharing": "q or k"}
    reference = hidden(kind, KINDS[kind].tokens + 6)
    twice = styled(styled(model, reference=reference, **sharing), reference=reference, **sharing)
    assert_close(run(twice, kind), run(styled(model, reference=reference, share=2.0, **sharing), kind))
    first_row = run(styled(styled(model), reference=reference), kind, batch=2)
    assert bool(first_row.isfinite().all()) and differ(first_row[1], run(styled(model), kind, batch=2)[1])
    assert torch.equal(run(styled(styled(model)), kind)[0], run(model, kind)[0])


def test_injections_at_layers_of_one_block_act_in_either_order() -> None:
    kind = "sd35-medium"  # a block's second attention is called behind its first
    ours, theirs = hidden(kind), StyleReference(latent(kind, 6)["samples"], cond(kind, 32, 20))
    model = tiny_transformer(kind)
    both = run(styled(styled(model, "j0", ours), "x0", theirs), kind)
    assert_close(run(styled(styled(model, "x0", theirs), "j0", ours), kind), both)
    assert all(differ(both, run(styled(model, *one), kind)) for one in (("j0", ours), ("x0", theirs)))


def test_two_injections_over_an_override_that_leaves_masks_out() -> None:
    """What one of them keeps from the other's rows by a mask stays kept."""

    def maskless(func: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return func(*args, **{**kwargs, "mask": None})

    plain = tiny_transformer("flux")
    other = plain.clone()
    other.model_options["transformer_options"]["optimized_attention_override"] = maskless
    assert_close(run(styled(styled(other)), "flux"), run(styled(styled(plain)), "flux"))


def test_an_override_acts_beside_sageattention_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """SageAttention takes no bias, so ComfyUI's own attention does; what another pack does with q, k and v remains."""
    import comfy.model_management

    def sharper(func: Any, q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return func(3 * q, *args, **kwargs)

    model = tiny_transformer("flux").clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = sharper
    expected = run(styled(model, share=0.5), "flux")
    monkeypatch.setattr(comfy.model_management, "sage_attention_enabled", lambda: True)
    assert_close(run(styled(model, share=0.5), "flux"), expected)


@pytest.mark.parametrize("kind", SEVERAL)
def test_a_recording_sees_what_the_model_projects_under_an_injection(kind: str) -> None:
    """Every row of every call once, before style changes anything in that layer."""
    model, found = tiny_transformer(kind), []
    architecture = architecture_of(model)

    def receive(layer: Any, feature: str, tokens: torch.Tensor) -> None:
        found.append((layer, tokens))

    for of in (model, styled(model)):
        with architecture.recording(("q",), receive):
            run(of, kind, steps=1, cfg=1.0)
    plain, under = found[: len(found) // 2], found[len(found) // 2 :]
    assert [layer for layer, _ in under] == [layer for layer, _ in plain] == list(architecture.layers)
    assert all(tokens.shape[0] == 3 for _, tokens in under)
    assert torch.equal(under[0][1], plain[0][1]) and torch.equal(under[-1][1][0], plain[-1][1][0])


def controlled_by_patches(of: Any) -> Any:
    """Qwen-Image under what Qwen Image DiffSynth ControlNet makes of a picture."""
    from types import SimpleNamespace

    import comfy.ops
    from comfy_extras.nodes_model_patch import DiffSynthCnetPatch, QwenImageBlockWiseControlNet

    from tiny import _fill, _patcher

    with torch.inference_mode():
        net = QwenImageBlockWiseControlNet(num_layers=3, dim=64, device="cpu", operations=comfy.ops.manual_cast)
        _fill(net, 9)
        vae = SimpleNamespace(
            encode=lambda image: latent("qwen", 8)["samples"].clone(), spacial_compression_encode=lambda: 8
        )
        patch = DiffSynthCnetPatch(_patcher(net), vae, torch.zeros(1, 80, 56, 3), 1.0)
    patched = of.clone()
    patched.set_model_double_block_patch(patch)
    return patched


def under_lllite(of: Any) -> Any:
    """Anima under what Apply Anima LLLite makes of a picture, at every place that it can act."""
    import comfy.ldm.anima.lllite as lllite
    import comfy.ops
    from comfy_extras.nodes_model_patch import AnimaLLLiteApply

    from tiny import _fill, _patcher

    first = {"conv1": (8, 3, 4, 4), "conv3": (16, 8, 4, 4), "proj": (16, 16, 1, 1)}
    shapes = {f"lllite_conditioning1.{name}.weight": shape for name, shape in first.items()}
    for block in range(3):
        for target in ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "cross_attn_q_proj", "mlp_layer1"):
            name = f"lllite_dit_blocks_{block}_{target}"
            shapes |= {f"{name}.down.weight": (8, 72), f"{name}.cond_to_film.weight": (16, 16)}
    with torch.inference_mode():
        weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
        net = lllite.AnimaLLLite(weights, {}, device="cpu", operations=comfy.ops.manual_cast)
        _fill(net, 9)
        return AnimaLLLiteApply().apply_patch(of, _patcher(net), torch.rand(1, 80, 64, 3), 1.0, 0.0, 1.0)[0]


PATCHED = {"qwen": controlled_by_patches, "anima": under_lllite}


@pytest.mark.parametrize("kind", [kind for kind in PATCHED if kind in KINDS])
def test_a_controlnet_that_patches_the_model_leaves_references_free(kind: str) -> None:
    """As one that brings residuals does: the first row of the batch, and every hidden row."""
    model = tiny_transformer(kind)
    controlled = PATCHED[kind](model)
    first_row = run(styled(controlled), kind)
    assert_close(first_row[:1], run(model, kind)[:1])
    assert differ(first_row[1:], run(styled(model), kind)[1:]) and differ(run(controlled, kind)[0], first_row[0])
    found: list[torch.Tensor] = []
    handle = model.model.diffusion_model.register_forward_hook(lambda module, args, out: found.append(out.clone()))
    second = str(architecture_of(model).layers[1])
    both = styled(styled(controlled, reference=hidden(kind)), second, hidden(kind, 19), remember=False)
    plain = styled(styled(model, reference=hidden(kind)), second, hidden(kind, 19), remember=False)
    try:
        for of in (both, plain):
            run(of, kind, steps=1)
    finally:
        handle.remove()
    under, free = (out.unflatten(0, (-1, 5)) for out in found)
    assert_close(under[:, 3:], free[:, 3:])
    assert differ(under[:, :3], free[:, :3])


@pytest.mark.parametrize("kind", ["qwen", "sd35-medium"])
def test_a_compiled_model_gives_the_same_and_is_not_compiled_at_every_step(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    compiled_graphs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled_graphs.append(1)
        return graph.forward

    model = tiny_transformer(kind)
    plain = run(styled(model, reference=hidden(kind)), kind)
    compiled = model.clone()
    set_torch_compile_wrapper(compiled, backend=backend)
    run(compiled, kind)
    plainly = len(compiled_graphs)
    closed = styled(compiled, "j0, -j0", reference=hidden(kind))
    run(closed, kind)  # may compile once more, as with any node that adds a wrapper of another kind
    before = len(compiled_graphs)
    run(closed, kind)
    assert len(compiled_graphs) == before <= 2 * plainly > 0 and "compiled" not in caplog.text
    out = run(styled(compiled, reference=hidden(kind)), kind)
    assert_close(out, plain, 1e-4)
    assert len(compiled_graphs) == before and caplog.text.count("this model is compiled") == 1
    torch._dynamo.reset()


def test_every_token_is_turned_back_once_a_site(monkeypatch: pytest.MonkeyPatch) -> None:
    """q and k of the styled rows and of the reference's together; values never, and nothing at closed layers."""
    turned: list[int] = []
    undo = Rotation.undo

    def counted(rotation: Rotation, x: torch.Tensor) -> torch.Tensor:
        turned.append(x.shape[:-3].numel() * x.shape[-2])
        return undo(rotation, x)

    monkeypatch.setattr(Rotation, "undo", counted)
    run(styled(tiny_transformer("flux"), "s1", adain_v=True), "flux", batch=3, steps=1, cfg=1.0)
    assert turned == [3 * 5 * 4] * 2


@pytest.mark.parametrize("kind", ROTARY)
def test_position_cures_act_and_leave_the_first_picture_alone(kind: str) -> None:
    model = tiny_transformer(kind)
    plain = run(model, kind)
    kept, shifted, untwisted = (run(styled(model, position=each), kind) for each in (KEEP, SHIFT, UNTWIST))
    assert all(torch.equal(out[0], plain[0]) for out in (kept, shifted, untwisted))
    assert differ(shifted[1], kept[1]) and differ(untwisted[1], kept[1])
    assert torch.equal(run(styled(model), kind), shifted)  # what `auto` chooses


@pytest.mark.parametrize("kind", ROTARY)
def test_a_shift_by_rotation_is_the_model_at_shifted_positions(kind: str) -> None:
    """Moving by nothing changes nothing; by two columns, the tokens stand where those two columns further stand."""
    architecture = architecture_of(tiny_transformer(kind))
    found = {}

    def seen(projected: Any) -> torch.Tensor:
        found.setdefault("rotation", projected.rotation.at(projected.image))
        found.setdefault("grid", projected.grid)
        return projected.plain()

    from test_transformers import intercepting

    run(intercepting(tiny_transformer(kind), {architecture.layers[-1]: seen}), kind, steps=1, cfg=1.0)
    rotation, (_, rows, columns) = found["rotation"], found["grid"]
    matrices = rotation.matrices.unflatten(2, (rows, columns))
    moved = rotation.then(type(rotation)(architecture.turned_by(2, torch.device("cpu")), rotation.halves))
    torch.testing.assert_close(
        moved.matrices.unflatten(2, (rows, columns))[:, :, :, : columns - 2], matrices[:, :, :, 2:], rtol=0, atol=1e-5
    )
    keys = torch.randn(1, 2, rows * columns, 2 * matrices.shape[-3])
    torch.testing.assert_close(rotation.undo(rotation.redo(keys)), keys, rtol=0, atol=1e-5)
    still = type(rotation)(architecture.turned_by(0, torch.device("cpu")), rotation.halves)
    torch.testing.assert_close(still.redo(keys), keys, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["sd35-medium", "flux"])
def test_an_area_of_the_picture_sees_the_middle_of_the_reference(kind: str) -> None:
    positive = cond(kind, 1) + cond(kind, 3, area=(6, 4, 0, 0), strength=1.0, set_area_to_bounds=False)
    model = tiny_transformer(kind)
    plain = run(model, kind, positive=positive)
    first, led = (run(styled(model, reference=each), kind, positive=positive) for each in (FIRST_ROW, hidden(kind)))
    assert_close(first[0], plain[0])
    assert differ(led[0], plain[0]) and bool(led.isfinite().all())


@pytest.mark.parametrize("kind", SEVERAL)
@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m_sde", "uni_pc"])
def test_samplers_in_half_precision_from_a_picture(kind: str, sampler: str) -> None:
    model = tiny_transformer(kind, torch.bfloat16)
    options = {"sampler": sampler, "cfg": 1.0, "denoise": 0.5, "steps": 4, "latent": latent(kind, 3, batch=2)}
    plain, out = run(model, kind, **options), run(styled(model), kind, **options)
    assert torch.equal(out[0], plain[0]) and bool(out.isfinite().all()) and not torch.equal(out[1], plain[1])


def test_the_sharing_rule_is_the_familys_unless_it_is_set() -> None:
    """SD3.5's published code shares where q and k are both open; with q alone it only moves moments there."""
    model = tiny_transformer("sd3")
    by_family = run(styled(model, "q:j0-2"), "sd3")
    assert torch.equal(by_family, run(styled(model, "q:j0-2", sharing="q and k", share=0.0), "sd3"))
    assert differ(by_family, run(styled(model, "q:j0-2", sharing="q or k"), "sd3"))
    with_v = run(styled(model), "sd3")
    assert torch.equal(with_v, run(styled(model, sharing="q and k", adain_v=True), "sd3"))


def test_several_frames_are_refused_in_one_sentence() -> None:
    frames = {"samples": torch.zeros(1, 16, 3, 10, 8)}
    with pytest.raises(ValueError, match=r"'reference' holds 1 frame.* and the sampler works on 3"):
        run(styled(tiny_transformer("wan"), reference=hidden("wan")), "wan", latent=frames)
    assert hooks_of(tiny_transformer("wan")) == 0
