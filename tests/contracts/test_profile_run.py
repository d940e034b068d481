"""Contracts of a profiling run, on real tiny models: what it measures, and that it leaves nothing behind."""

from __future__ import annotations

import comfy.hooks
import comfy.model_management
import comfy.utils
import pytest
import torch

import tiny
from conditional_balance.engine.divergence import pairwise
from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.moments import Moments
from conditional_balance.runtime.arch.fingerprint import fingerprint_of
from conditional_balance.runtime.arch.unet import attention_layers
from conditional_balance.runtime.profile import capture
from conditional_balance.runtime.profile.capture import distances_of, measure, recording
from conditional_balance.runtime.profile.clusters import with_cluster
from conditional_balance.runtime.profile.profiling import Settings, noise_levels, profile_model

SIGMAS = torch.tensor([8.0, 1.0])
SETTINGS = Settings("style", 2, ("q", "k"), "jensen_shannon", 0, "1:1", 64)


@pytest.fixture(params=["sd15", "sdxl"])
def model(request, sd15_model, sdxl_model):
    return {"sd15": sd15_model, "sdxl": sdxl_model}[request.param]


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    """[count, 64, 64, 3]"""
    return torch.rand(count, 64, 64, 3, generator=torch.Generator().manual_seed(seed))


def two_clusters():
    return with_cluster(with_cluster((), "ink", list(pictures(3, 0) * 0.5)), "oil", list(pictures(2, 1)))


def distances(model, positive, negative=None, images: int = 5, features=("q", "k"), distance="bhattacharyya"):
    """[features, levels, layers, images, images], and how many image passes it took."""
    levels = []
    latents = tiny.latent(seed=3, batch=images)["samples"]
    with torch.inference_mode():
        passes = measure(
            model, latents, positive, negative, SIGMAS, features, distance, 0, lambda count: None,
            lambda level, found, *places: levels.append(found),
        )  # fmt: skip
    return torch.stack(levels, 1), passes


def state(model) -> dict:
    """All that a run could leave behind: weights, hooks, options, wrappers, forwards."""
    modules = list(model.model.modules())
    return {
        "weights": {name: weight.clone() for name, weight in model.model.state_dict().items()},
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules],
        "forwards": [m.forward.__func__ if hasattr(m.forward, "__func__") else m.forward for m in modules],
        "options": str(model.model_options),
        "patches": (dict(model.patches), dict(model.object_patches), str(model.wrappers), str(model.callbacks)),
    }


def assert_same(one: dict, other: dict) -> None:
    weights, before = one.pop("weights"), other.pop("weights")
    assert one == other
    assert all(torch.equal(weights[name], before[name]) for name in before)


def test_layers_have_comfyuis_patch_keys_in_forward_order(model):
    """A replace patch under every key is called, and in this order."""
    layers = list(attention_layers(model))
    called = []
    patched = model.clone()
    for layer in layers:

        def plain(q, k, v, extra_options, layer=layer):
            called.append(layer)
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)

        patched.set_model_attn1_replace(plain, *layer)
    tiny.sample(patched, tiny.cond(model, 1), tiny.cond(model, 2), tiny.latent(), steps=1)
    assert called == layers and len(layers) == (16 if layers[0] == LayerId("input", 1, 0) else 17)


def test_nothing_stays_after_a_run(model, vae):
    before = state(model)
    with torch.inference_mode():
        profile = profile_model(model, two_clusters(), vae, tiny.cond(model, 1), tiny.cond(model, 2), SETTINGS)
    assert_same(state(model), before)
    assert profile.scores.shape == (2, 2, len(attention_layers(model)))
    assert bool(torch.isfinite(profile.scores).all() & (profile.scores > 0).all())


@pytest.mark.parametrize("stop", [RuntimeError("a pack failed"), comfy.model_management.InterruptProcessingException()])
def test_nothing_stays_after_an_exception_inside_the_unet(model, stop):
    before = state(model)
    calls = []

    def fail(*args):
        calls.append(args)
        if len(calls) == 3:
            raise stop

    handle = list(attention_layers(model).values())[4].attn2.register_forward_hook(fail)
    try:
        with pytest.raises(type(stop)):
            distances(model, tiny.cond(model, 1), tiny.cond(model, 2))
    finally:
        handle.remove()
    assert_same(state(model), before)


def test_cancel_stops_before_the_next_model_call(sd15_model, monkeypatch):
    before = state(sd15_model)
    calls = []
    handle = sd15_model.model.diffusion_model.register_forward_hook(lambda *args: calls.append(1))

    def cancel(done, total, preview, node_id=None):
        comfy.model_management.interrupt_current_processing(True)

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", cancel)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException), torch.inference_mode():
            clusters, vae = two_clusters(), tiny.tiny_vae()
            profile_model(sd15_model, clusters, vae, tiny.cond(sd15_model, 1), None, SETTINGS)
    finally:
        comfy.model_management.interrupt_current_processing(False)
        handle.remove()
    assert len(calls) == 1
    assert_same(state(sd15_model), before)


def test_tokens_are_never_kept(sd15_model):
    with recording(sd15_model, ("q",)) as recorder:
        tiny.sample(sd15_model, tiny.cond(sd15_model, 1), tiny.cond(sd15_model, 2), tiny.latent(), steps=1)
        kept = [part for parts in recorder._found.values() for moments in parts.values() for part in moments]
    assert kept and all(part.shape[0] == 1 and part.ndim == 2 for part in kept)


@pytest.mark.parametrize("tokens", [77, 154, 80])
def test_cond_and_uncond_count_alike_batched_or_split(model, tokens):
    """77 and 77 (or 154) tokens share a call, 77 and 80 cannot. A mean over both's channels is the mean of both."""
    positive, negative = tiny.cond(model, 1), tiny.cond(model, 2, tokens=tokens)
    (one, passes), (other, _) = distances(model, positive), distances(model, negative)
    both, both_passes = distances(model, positive, negative)
    assert (passes, both_passes) == (10, 20)
    torch.testing.assert_close(both, (one + other) / 2, rtol=1e-3, atol=1e-6)


def test_short_memory_gives_the_same(sd15_model, monkeypatch):
    positive, negative = tiny.cond(sd15_model, 1), tiny.cond(sd15_model, 2)
    whole, _ = distances(sd15_model, positive, negative)
    rows = []
    handle = sd15_model.model.diffusion_model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    monkeypatch.setattr(sd15_model.model, "memory_required", lambda *args, **kwargs: 1e18)
    split, _ = distances(sd15_model, positive, negative)
    handle.remove()
    assert set(rows) == {1}
    torch.testing.assert_close(split, whole, rtol=1e-3, atol=1e-6)


def test_several_conditionings_and_areas_are_all_measured(sd15_model):
    """Two positives count as two; one that covers an area is a smaller picture of its own."""
    one, other = tiny.cond(sd15_model, 1), tiny.cond(sd15_model, 2)
    alone = [distances(sd15_model, cond)[0] for cond in (one, other)]
    together, passes = distances(sd15_model, one + other)
    assert passes == 20
    torch.testing.assert_close(together, (alone[0] + alone[1]) / 2, rtol=1e-3, atol=1e-6)
    area = [[other[0][0], other[0][1] | {"area": (8, 16, 0, 0), "strength": 1.0, "set_area_to_bounds": False}]]
    with_area, _ = distances(sd15_model, one + area)
    assert bool(torch.isfinite(with_area).all()) and not torch.allclose(with_area, together, rtol=1e-2)


def test_a_conditioning_that_is_never_active_is_an_error(sd15_model):
    cond = tiny.cond(sd15_model, 1)
    cond[0][1].update(start_percent=0.9, end_percent=0.95)
    with pytest.raises(ValueError, match="'positive'"):
        distances(sd15_model, cond)


def test_a_lora_and_conditioning_hooks_act_on_what_is_measured(sd15_model):
    cond = tiny.cond(sd15_model, 1)
    plain, _ = distances(sd15_model, cond)
    key = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"
    change = {key: ("diff", (torch.randn(32, 32, generator=torch.Generator().manual_seed(0)),))}
    patched = sd15_model.clone()
    patched.add_patches(change, 1.0)
    with_lora, _ = distances(patched, cond)
    sd15_model.unpatch_model()
    comfy.model_management.unload_all_models()
    layer = list(attention_layers(sd15_model)).index(LayerId("input", 4, 0))
    assert not torch.allclose(with_lora[0, :, layer], plain[0, :, layer], rtol=1e-2)
    torch.testing.assert_close(with_lora[1, :, layer], plain[1, :, layer])

    hook = comfy.hooks.WeightHook(strength_model=1.0, strength_clip=0.0)
    hook.weights, hook.need_weight_init = change, False
    group = comfy.hooks.HookGroup()
    group.add(hook)
    hooked, _ = distances(sd15_model, comfy.hooks.set_hooks_for_conditioning(cond, group))
    torch.testing.assert_close(hooked, with_lora)
    again, _ = distances(sd15_model, cond)
    assert torch.equal(again, plain)


def test_all_images_share_one_noise_so_twins_do_not_differ(sd15_model):
    levels = []
    one = tiny.latent(seed=1)["samples"]
    with torch.inference_mode():
        measure(
            sd15_model, torch.cat([one, one]), tiny.cond(sd15_model, 1), None, SIGMAS, ("q",), "jensen_shannon", 0,
            lambda count: None, lambda level, found, *places: levels.append(found),
        )  # fmt: skip
    assert float(torch.stack(levels).max()) < 1e-6


def test_the_same_seed_measures_the_same_and_another_does_not(sd15_model, vae):
    cond = tiny.cond(sd15_model, 1)

    def run(seed: int):
        settings = Settings("style", 2, ("q",), "jensen_shannon", seed, "1:1", 64)
        with torch.inference_mode():
            return profile_model(sd15_model, two_clusters(), vae, cond, None, settings)

    first, second, third = run(0), run(0), run(1)
    assert torch.equal(first.scores, second.scores) and first.low is second.low is None  # of two clusters
    assert "without interval, which needs three clusters" in first.provenance["estimator"]
    assert not torch.equal(first.scores, third.scores)
    assert first.provenance["separation"] == second.provenance["separation"]


def test_a_layer_with_planted_clusters_is_found(model, vae):
    """Rows of the second cluster are moved inside one layer's q: it scores lowest, layers before it do not notice."""
    clusters = with_cluster(with_cluster((), "ink", list(pictures(2, 0))), "oil", list(pictures(2, 1)))
    layers = attention_layers(model)
    target = list(layers)[7]

    def plant(module, args, tokens):
        offset = torch.tensor([0.0, 0.0, 50.0, 50.0]).repeat(len(tokens) // 4)
        return tokens + offset[:, None, None]

    handle = layers[target].attn1.to_q.register_forward_hook(plant)
    try:
        with torch.inference_mode():
            profile = profile_model(model, clusters, vae, tiny.cond(model, 1), tiny.cond(model, 2), SETTINGS)
    finally:
        handle.remove()
    q, k = profile.scores.mean(1)
    assert profile.layers[int(q.argmin())] == target and float(q[7]) < 0.3
    assert float(q[:7].min()) > 0.7 and float(k[:8].min()) > 0.7


def test_noise_levels_fall_evenly_in_log_sigma_within_the_models_range(model):
    sigmas = noise_levels(model, 12)
    sampling = model.get_model_object("model_sampling")
    assert float(sampling.sigma_min) < float(sigmas[-1]) < float(sigmas[0]) < float(sampling.sigma_max)
    steps = sigmas.log().diff()
    torch.testing.assert_close(steps, steps[:1].expand(11))
    assert float(noise_levels(model, 1)) == pytest.approx(float((sigmas[0] * sigmas[-1]).sqrt()))


def test_a_fingerprint_tells_models_apart_and_ignores_loras_and_precision(sd15_model):
    mine = fingerprint_of(sd15_model)
    assert mine["weights"] != fingerprint_of(tiny.tiny_model("sd15", seed=1))["weights"]
    assert mine["weights"] == fingerprint_of(tiny.tiny_model("sd15"))["weights"]
    keys = ["diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_k.weight"]
    patched = sd15_model.clone()
    patched.add_patches({key: ("diff", (torch.ones(32, 32),)) for key in keys}, 1.0)
    tiny.sample(patched, tiny.cond(patched, 1), tiny.cond(patched, 2), tiny.latent(), steps=1)
    with_lora = fingerprint_of(patched)
    comfy.model_management.unload_all_models()
    assert with_lora["weights"] == mine["weights"] and with_lora["patched_weights"] == 1
    assert mine["widths"] == [block.attn1.to_q.out_features for block in attention_layers(sd15_model).values()]


def test_more_images_than_fit_a_pass_are_measured_like_few(sd15_model, monkeypatch):
    cond = tiny.cond(sd15_model, 1)
    few, _ = distances(sd15_model, cond)
    monkeypatch.setattr(capture, "IMAGES_A_PASS", 2)
    more, _ = distances(sd15_model, cond)
    torch.testing.assert_close(more, few, rtol=1e-3, atol=1e-6)


def test_a_layer_that_is_not_finite_is_named_where_features_differ_in_width_and_else_all_are_measured():
    """As in a model whose keys have fewer heads than its queries: two sets a layer."""
    layers = [LayerId("joint", number) for number in range(3)]
    dice = torch.Generator().manual_seed(0)
    level = {
        (layer, feature): Moments(torch.randn(4, width, generator=dice), torch.ones(4, width))
        for layer in layers
        for feature, width in (("q", 8), ("k", 4))
    }
    found = distances_of([level], layers, ("q", "k"), "bhattacharyya", 1.0)
    assert found.shape == (2, 3, 4, 4)
    for place, layer in enumerate(layers):
        for feature, one in zip(("q", "k"), found, strict=True):
            alone = Moments(*(part[:, None] for part in level[layer, feature]))
            assert torch.equal(one[place], pairwise(alone, "bhattacharyya")[0])
    level[layers[1], "k"].std[2, 3] = float("inf")
    with pytest.raises(ValueError, match="no finite numbers in layer j1 "):
        distances_of([level], layers, ("q", "k"), "bhattacharyya", 1.0)
