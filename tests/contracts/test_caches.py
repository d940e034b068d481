"""Beside caches, which hand out what an earlier call made: ComfyUI's own, and stand-ins for those that packs bring."""

from __future__ import annotations

import functools
import logging
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from gradsam_case import HALF
from style_case import assert_close, assert_same_traces, differ, gate, model, styled, traces
from style_case import hidden as hidden_of_unet
from test_transformer_style import hidden as hidden_of_transformer
from tiny_transformers import cond as transformer_cond
from tiny_transformers import latent as transformer_latent
from tiny_transformers import tiny_transformer
from torch import nn

import tiny
from conditional_balance.engine.gates import windowed
from conditional_balance.engine.subject import Phrase
from conditional_balance.engine.trajectory import Trajectory
from conditional_balance.engine.windows import parse_windows
from conditional_balance.nodes.contrast import CBLayerContrast
from conditional_balance.nodes.trajectory import CBRecordTrajectory
from conditional_balance.runtime.attribution.find import ProbeSettings, find_subject
from conditional_balance.runtime.attribution.settings import AttributionSettings
from conditional_balance.runtime.attribution.subject import Subject
from conditional_balance.runtime.inject.blend import Blend, blend_reference
from conditional_balance.runtime.inject.inversion import Inversion, invert_latent
from conditional_balance.runtime.inject.noise_blend import NoiseBlend, blend_prompts
from conditional_balance.runtime.inject.reference import StyleReference
from conditional_balance.runtime.runs.caches import caches_in, without_caches

STEPS = 8
KINDS = ("sd15", "flux")
ModelOf = Callable[[Any], Any]


def network_of(kind: str) -> Any:
    return model(kind) if kind == "sd15" else tiny_transformer(kind)


def conditioning(of: Any, kind: str, seed: int) -> Any:
    return tiny.cond(of, seed) if kind == "sd15" else transformer_cond(kind, seed)


def latent(kind: str, seed: int | None = None) -> dict[str, Any]:
    if kind != "sd15":
        return transformer_latent(kind, seed)
    return tiny.latent(seed) if seed is not None else {"samples": torch.zeros(1, 4, 16, 16)}


def hidden(of: Any, kind: str) -> Any:
    return hidden_of_unet(of) if kind == "sd15" else hidden_of_transformer(kind)


def run(of: Any, kind: str, cfg: float = 3.0) -> torch.Tensor:
    prompts = {"positive": conditioning(of, kind, 1), "negative": conditioning(of, kind, 2)}
    return tiny.sample(of, **prompts, latent=latent(kind), steps=STEPS, cfg=cfg)


def easy(of: Any) -> Any:
    """Runs every other step or fewer."""
    return EasyCacheNode.execute(of, 5.0, 0.05, 0.95, False).args[0]


def lazy(of: Any) -> Any:
    """Leaves out whole steps, ours with them."""
    threshold = 0.05 if "context_dim" in of.model.model_config.unet_config else 0.5  # of the UNet: it moves faster
    return LazyCacheNode.execute(of, threshold, 0.05, 0.95, False).args[0]


def _style(kind: str, start: float, end: float) -> ModelOf:
    return lambda of: styled(of, windowed(gate("all"), start, end), hidden(of, kind))


@functools.cache
def painted(kind: str) -> Trajectory:
    """The way of a picture, of the levels in the first half of a run only."""
    of = network_of(kind)
    recording, ways = CBRecordTrajectory.execute(of).args
    way = ways.of(run(recording, kind))
    return Trajectory(way.sigmas[: STEPS // 2 + 1], way.states[: STEPS // 2 + 1])


def own_noise(of: Any, kind: str, start: float = 0.0, end: float = 0.4) -> StyleReference:
    return StyleReference(None, conditioning(of, kind, 31), painted(kind), start=start, end=end)


def _own_noise(kind: str) -> ModelOf:
    return lambda of: styled(of, "all", own_noise(of, kind))


def _in_turn(kind: str) -> ModelOf:
    """Two references, of which never both act."""

    def applied(of: Any) -> Any:
        first = replace(hidden(of, kind), start=0.0, end=0.2)
        return styled(of, "all", replace(own_noise(of, kind, 0.25, 0.45), previous=first))

    return applied


def _blend(kind: str, method: str) -> ModelOf:
    def applied(of: Any) -> Any:
        subject = Subject(conditioning(of, kind, 1), (Phrase("fox", (2, 3)),))
        settings = {"mask": HALF, "attribution": AttributionSettings(method=method)}
        return blend_reference(
            of, Blend(latent(kind, 5)["samples"], subject, parse_windows("0.2-0.6, 0.6-0.9"), **settings)
        )[0]

    return applied


def _contrast(kind: str) -> ModelOf:
    return lambda of: CBLayerContrast.execute(of, gate("all"), 2.0, 0.0, 1.0, hidden(of, kind)).args[0]


def _two_prompts(kind: str) -> ModelOf:
    return lambda of: blend_prompts(of, NoiseBlend(conditioning(of, kind, 9), strength=1.0, start=0.3, end=0.8))


CONDITIONS: dict[str, Callable[[str], ModelOf]] = {
    "style": lambda kind: _style(kind, 0.0, 1.0),
    "style that ends": lambda kind: _style(kind, 0.0, 0.5),
    "style that begins": lambda kind: _style(kind, 0.1, 1.0),
    "style of its own noise that ends": _own_noise,
    "style of two in turn": _in_turn,
    "contrast": _contrast,
    "blend by attention": lambda kind: _blend(kind, "attention"),
    "blend by gradients": lambda kind: _blend(kind, "grad_sam"),
    "two prompts": _two_prompts,
}


@pytest.mark.parametrize("cache", [easy, lazy])
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_condition_beside_comfyuis_caches(kind: str, condition: str, cache: ModelOf) -> None:
    of, ours = network_of(kind), CONDITIONS[condition](kind)
    plain, before = run(of, kind), traces(of)
    cached, both = run(cache(of), kind), run(ours(cache(of)), kind)
    assert differ(cached, plain) and bool(both.isfinite().all())
    assert differ(both, cached) and differ(both, run(ours(of), kind))
    assert torch.equal(run(cache(ours(of)), kind), both)
    assert torch.equal(run(of, kind), plain)
    assert_same_traces(before, traces(of))


def test_how_often_a_cache_stood_in_is_said(caplog: pytest.LogCaptureFixture) -> None:
    of = model("sd15")
    with caplog.at_level(logging.WARNING):
        run(styled(of, "all", hidden_of_unet(of)), "sd15")
    assert "did not run" not in caplog.text
    with caplog.at_level(logging.WARNING):
        run(styled(easy(of), "all", hidden_of_unet(of)), "sd15")
    (sentence,) = [each.getMessage() for each in caplog.records if "did not run" in each.getMessage()]
    assert f"of {STEPS} calls, because a cache of ComfyUI's nodes_easycache repeated there" in sentence


@pytest.mark.parametrize("cache", [easy, lazy])
@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_way_holds_steps_that_a_cache_answered(kind: str, cache: ModelOf) -> None:
    of, states = network_of(kind), list[torch.Tensor]()

    def keep(executor: Any, x: torch.Tensor, *args: Any) -> torch.Tensor:
        states.append(x[0].clone())
        return executor(x, *args)

    inner, first = CBRecordTrajectory.execute(of).args
    inner.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "of a test", keep)  # before the cache
    both, second = CBRecordTrajectory.execute(cache(inner)).args
    out = run(both, kind)
    assert torch.equal(out, run(cache(of), kind)) and differ(out, run(of, kind)) and len(states) == STEPS
    for ways in (first, second):
        way = ways.of(out)
        assert len(way.states) == STEPS + 1 and all(map(torch.equal, way.states, states))


@pytest.mark.parametrize("cache", [easy, lazy])
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_inverted_past_a_cache(kind: str, cache: ModelOf) -> None:
    of, how = network_of(kind), Inversion(STEPS, "normal")
    asked = latent(kind, 4)["samples"], conditioning(of, kind, 1), how
    with torch.inference_mode():
        expected = invert_latent(of, *asked).trajectory
        found = invert_latent(cache(of), *asked).trajectory
    assert torch.equal(found.states, expected.states)


def test_a_subject_is_looked_for_past_a_cache() -> None:
    of = model("sd15")
    asked = (
        latent("sd15", 4)["samples"],
        Subject(tiny.cond(of, 1), (Phrase("fox", (2, 3)),)),
        ProbeSettings((0.4, 0.5, 0.6)),
        AttributionSettings("jvp"),
    )
    with torch.inference_mode():
        assert torch.equal(find_subject(easy(of), *asked).maps, find_subject(of, *asked).maps)


# Caches that packs put into the network -------------------------------------------------------------------------------


def of_pack(function: Any, pack: str = "Some-Cache") -> Any:
    """A function as if a custom node had brought it."""
    module = f"/comfy/custom_nodes/{pack}.nodes"
    made = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, function.__closure__)
    made.__module__, made.__qualname__ = module, function.__name__
    return made


def around_the_network(of: Any, patched: Callable[[Any], Any], pack: str = "Some-Cache") -> Any:
    """A clone that runs under `patched`(network), a context, in every call: as TeaCache and its kin take hold of it."""
    network, clone = of.model.diffusion_model, of.clone()

    def wrapper(apply_model: Callable[..., torch.Tensor], call: dict[str, Any]) -> torch.Tensor:
        with patched(network):
            return apply_model(call["input"], call["timestep"], **call["c"])

    clone.set_model_unet_function_wrapper(of_pack(wrapper, pack))
    return clone


class Bare(nn.Module):
    """A block that is called without options, as by copies of Flux's forward that were made before it had any."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any, transformer_options: Any = None, **kwargs: Any) -> Any:
        return self.block(*args, **kwargs)


class All(nn.Module):
    """All of SD3's blocks as one, as WaveSpeed puts it in their place."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, context: torch.Tensor, x: torch.Tensor, **kwargs: Any) -> Any:
        for block in self.blocks:
            context, x = block(context, x, **kwargs)
        return context, x


def _bare(network: Any) -> Any:
    bare = {name: nn.ModuleList(map(Bare, getattr(network, name))) for name in ("double_blocks", "single_blocks")}
    return patch.multiple(network, **bare)


def _as_one(network: Any) -> Any:
    return patch.object(network, "joint_blocks", nn.ModuleList([All(network.joint_blocks)]))


@pytest.mark.parametrize(("kind", "patched"), [("flux", _bare), ("sd3", _as_one)])
def test_blocks_that_are_wrapped_for_a_call_take_style_all_the_same(kind: str, patched: Callable[[Any], Any]) -> None:
    of = tiny_transformer(kind)
    for ours in (_style(kind, 0.0, 1.0), _blend(kind, "attention")):
        alone = run(ours(of), kind)
        assert torch.equal(run(around_the_network(of, patched), kind), run(of, kind))
        assert_close(run(ours(around_the_network(of, patched)), kind), alone)
        assert_close(run(around_the_network(ours(of), patched), kind), alone)


class Repeating:
    """A stand-in for TeaCache: every second call of the network adds what the call before it did, whoever it is for."""

    def __init__(self) -> None:
        self.calls, self.did = 0, torch.zeros(())

    def on(self, network: Any) -> Any:
        name = "forward_orig" if hasattr(network, "forward_orig") else "_forward"
        return patch.object(network, name, functools.partial(self.forward, getattr(network, name)))

    def forward(self, own: Callable[..., torch.Tensor], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.calls += 1
        if self.calls % 2 == 0:
            x += self.did[..., : x.shape[-1]]  # in place: with other rows than it has kept it fails
            return x
        out = own(x.clone(), *args, **kwargs)
        self.did = out - x
        return out


def on_the_network(of: Any, pack: str = "Some-Cache") -> Any:
    """A clone that puts another forward on the network for a whole run, as CacheDiT."""

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        network, cache = executor.class_obj.model_patcher.model.diffusion_model, Repeating()
        own = network.forward

        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            return cache.forward(own, x, *args, **kwargs)

        with patch.object(network, "forward", of_pack(forward, pack)):
            return executor(*args, **kwargs)

    clone = of.clone()
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "speed", wrapper)
    return clone


def around_the_model(of: Any, pack: str = "Some-Cache") -> Any:
    """A clone whose every second call of the model repeats what the one before it returned, as Spectrum's node."""
    clone, kept = of.clone(), list[torch.Tensor]()

    def wrapper(apply_model: Callable[..., torch.Tensor], call: dict[str, Any]) -> torch.Tensor:
        if kept:
            return kept.pop()
        kept.append(apply_model(call["input"], call["timestep"], **call["c"]))
        return kept[0].clone()

    clone.set_model_unet_function_wrapper(of_pack(wrapper, pack))
    return clone


@pytest.fixture
def repeating() -> Iterator[ModelOf]:
    yield lambda of: around_the_network(of, Repeating().on)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_of_the_network_hears_of_the_samplers_calls_alone(
    kind: str, condition: str, repeating: ModelOf, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a reference's rows nor a prediction of ours beside them are taken for the sampler's next call."""
    of, ours = network_of(kind), CONDITIONS[condition](kind)
    cached = run(repeating(of), kind)
    with caplog.at_level(logging.WARNING):
        both = run(ours(repeating(of)), kind)
    assert bool(both.isfinite().all()) and differ(both, cached)
    assert torch.equal(run(repeating(ours(of)), kind), both)
    assert ("a cache of Some-Cache repeated there" in caplog.text) == condition.startswith("style")


@pytest.mark.parametrize("pack", ["Some-Cache", "Some-Speed"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_is_told_of_by_what_it_does_where_its_name_tells_nothing(
    kind: str, pack: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing is known of it, a reference rides along with the pictures too, and is not called by itself."""
    of = network_of(kind)
    style, known = _style(kind, 0.0, 1.0), pack == "Some-Cache"
    for cached, what, who in (
        (around_the_network(of, Repeating().on, pack), "Open layers did not run in 4 of 8 calls", "wrapper of"),
        (on_the_network(of, pack), "Open layers did not run in 4 of 8 calls", ""),
        (around_the_model(of, pack), "The model did not run in 4 of 8 predictions in which", "wrapper of"),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            both = run(style(cached), kind)
        assert bool(both.isfinite().all())
        (sentence,) = [each.getMessage() for each in caplog.records if what in each.getMessage()]
        named = "because a cache of Some-Cache" if known else f"{who} {pack}" if who else "another pack's code"
        assert named in sentence and ("lower its threshold" in sentence) == known


@pytest.mark.parametrize("condition", ["contrast", "blend by attention", "two prompts"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_that_no_options_are_without_is_told_of(
    kind: str, condition: str, caplog: pytest.LogCaptureFixture
) -> None:
    of = network_of(kind)
    with caplog.at_level(logging.WARNING):
        run(CONDITIONS[condition](kind)(of), kind)
    assert "is built into the model itself" not in caplog.text
    with caplog.at_level(logging.WARNING), suppress(RuntimeError):  # of a cache that has kept other rows
        run(CONDITIONS[condition](kind)(on_the_network(of)), kind)
    assert "A cache of Some-Cache is built into the model itself" in caplog.text


def test_a_cache_on_the_network_is_told_of_where_it_is_measured(caplog: pytest.LogCaptureFixture) -> None:
    of, how = model("sd15"), Inversion(STEPS, "normal")
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        invert_latent(on_the_network(of), latent("sd15", 4)["samples"], tiny.cond(of, 1), how)
    assert "A cache of Some-Cache is built into the model itself" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_keeps_its_row_in_a_cached_run_and_a_resting_one_changes_nothing_there(kind: str) -> None:
    """What a cache holds against an earlier call is then the same picture's."""
    of, seen, plain = network_of(kind), list[torch.Tensor](), list[torch.Tensor]()

    def cache(into: list[torch.Tensor]) -> ModelOf:
        def wrapper(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            into.append(args[0].unflatten(0, (2, -1)))  # of both prompts
            return executor(*args, **kwargs)

        def applied(to: Any) -> Any:
            clone = to.clone()
            clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "a", of_pack(wrapper))
            return clone

        return applied

    run(cache(plain)(of), kind)
    run(_in_turn(kind)(cache(seen)(of)), kind)
    assert [x.shape[1] for x in seen] == [3] * STEPS == [x.shape[1] * 3 for x in plain]
    acting = [tuple(not torch.equal(x[:, 0], x[:, row]) for row in (1, 2)) for x in seen]
    assert sorted(set(acting)) == [(False, False), (False, True), (True, False)]
    assert acting[0] == (True, False) and acting[-1] == (False, False)


def test_style_at_strength_nothing_leaves_a_caches_result(repeating: ModelOf) -> None:
    """The reference's rows are in every call, or in none."""
    of = model("sd15")
    kept = run(repeating(of), "sd15")
    assert torch.equal(run(_style("sd15", 0.97, 0.98)(repeating(of)), "sd15"), kept)


@pytest.mark.parametrize("pack", ["ComfyUI-TeaCache", "ComfyUI-TaylorSeer", "ComfyUI-Spectrum-sdxl"])
def test_caches_are_known_by_the_names_of_packs_and_methods(pack: str) -> None:
    assert caches_in({"model_function_wrapper": of_pack(easy, pack)}) == (f"a cache of {pack}",)


def test_only_caches_are_set_aside() -> None:
    def wrapper(*args: Any) -> None: ...

    function, cache = of_pack(wrapper), of_pack(wrapper)
    function.__module__ = "/comfy/custom_nodes/Tiles.nodes"
    wrappers = {"apply_model": {"a": [function, cache]}, "outer_sample": {"b": [cache]}}
    options = {"model_function_wrapper": cache, "transformer_options": {"wrappers": wrappers}}
    assert caches_in(options) == ("a cache of Some-Cache",)
    left = without_caches(options)
    assert left["transformer_options"]["wrappers"] == {"apply_model": {"a": [function]}, "outer_sample": {"b": [cache]}}
    assert "model_function_wrapper" not in left and options["model_function_wrapper"] is cache
    others = {"model_function_wrapper": function, "transformer_options": {}}
    assert without_caches(others) is others and caches_in({}) == ()
