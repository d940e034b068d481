"""Style injection beside other nodes: what they change in front of it, and what they read behind it."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from einops import rearrange
from style_case import (
    HEIGHT,
    KINDS,
    WIDTH,
    assert_close,
    differ,
    empty,
    free_memory,
    gate,
    hidden,
    model,
    run,
    styled,
    tiny_controlnet,
    with_control,
)

from conditional_balance.engine.gates import windowed
from conditional_balance.runtime.inject.reference import FIRST_ROW, StyleReference
from conditional_balance.runtime.runs.keys import MissingKey
from tiny import cond, latent

REFERENCES = ("first row", "renoised")
LARGE = {"latent": empty(3, 16, 16)}


def reference(name: str, of: Any) -> Any:
    return FIRST_ROW if name == "first row" else hidden(of)


def _controlled(of: Any, kind: str) -> dict[str, Any]:
    positive, negative = with_control(tiny_controlnet(kind), cond(of, 1), cond(of, 2))
    return {"positive": positive, "negative": negative, "steps": 4}


# A gate that opens late, and control on the first row -----------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["euler", "dpm_2", "uni_pc", "heun", "dpmpp_sde"])
def test_the_first_row_is_free_of_control_in_a_run_whose_gate_opens_late(sampler: str) -> None:
    of = model("sd15")
    case = {**_controlled(of, "sd15"), "sampler": sampler}
    late = run(styled(of, windowed(gate("all"), 0.3, 1.0)), **case)
    free = run(of, steps=4, sampler=sampler)
    assert_close(late[:1], free[:1], 3e-2)
    assert differ(late[1:], free[1:])
    assert differ(run(of, **case)[:1], free[:1])


def test_a_gate_that_opens_between_steps_frees_where_the_sampler_goes_there() -> None:
    """Percent 0.52 to 0.6 lies between two steps of four: dpm_2 calls the model there, euler does not."""
    of = model("sd15")
    narrow = windowed(gate("all"), *_between_steps(of))
    case = _controlled(of, "sd15")
    assert torch.equal(run(styled(of, narrow), **case), run(of, **case))
    case["sampler"] = "dpm_2"
    assert_close(run(styled(of, narrow), **case)[:1], run(of, steps=4, sampler="dpm_2")[:1], 3e-2)


def _between_steps(of: Any) -> tuple[float, float]:
    """A window around the geometric mean of the second and third level, which holds no level of the schedule."""
    import comfy.samplers

    from conditional_balance.engine.windows import percent_of

    sampling = of.get_model_object("model_sampling")
    second, third = comfy.samplers.calculate_sigmas(sampling, "normal", 4)[1:3].tolist()
    middle = (second * third) ** 0.5
    start, end = (percent_of(middle * factor, sampling.percent_to_sigma) for factor in (1.05, 0.95))
    return start, end


@pytest.mark.parametrize("window", [(0.0, 0.2), (0.0, 0.0)])
def test_a_gate_that_never_opens_leaves_control_alone(window: tuple[float, float]) -> None:
    of = model("sd15")
    case = {**_controlled(of, "sd15"), "latent": latent(9, 3, HEIGHT, WIDTH), "denoise": 0.5}
    assert torch.equal(run(styled(of, windowed(gate("all"), *window)), **case), run(of, **case))
    assert torch.equal(run(styled(of, ""), **case), run(of, **case))


# Tiles ----------------------------------------------------------------------------------------------------------------


def tiling(of: Any, together: bool, order: str = "tile chunk row", size: int = 8) -> Any:
    """The model called on square tiles, as Tiled Diffusion does: all in one call, or each in its own."""

    def wrapper(apply_model: Callable[..., torch.Tensor], call: dict[str, Any]) -> torch.Tensor:
        x, c, chunks = call["input"], call["c"], len(call["cond_or_uncond"])
        starts = range(0, x.shape[-1], size)

        def ordered(x: torch.Tensor) -> torch.Tensor:
            return rearrange(x, f"tile (chunk row) ... -> ({order}) ...", chunk=chunks)

        def again(value: Any) -> Any:
            if isinstance(value, torch.Tensor) and len(value) == len(x):
                return ordered(torch.stack([value] * len(starts)))
            return value

        if not together:
            return torch.cat([apply_model(x[..., start : start + size], call["timestep"], **c) for start in starts], -1)
        tiles = ordered(torch.stack([x[..., start : start + size] for start in starts]))
        out = apply_model(tiles, again(call["timestep"]), **{name: again(value) for name, value in c.items()})
        out = rearrange(out, f"({order}) ... -> tile (chunk row) ...", tile=len(starts), chunk=chunks)
        return torch.cat(list(out), -1)

    tiled = of.clone()
    tiled.set_model_unet_function_wrapper(wrapper)
    return tiled


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_in_one_call_equal_one_tile_a_call(kind: str, name: str) -> None:
    of = model(kind)
    for batch in (1, 2, 3):
        if name == "first row" and batch == 1:
            continue
        for case in ({}, {"cfg": 1.0}, {"positive": cond(of, 1) + cond(of, 7)}):
            options = {"latent": empty(batch, 8, 24), "steps": 1, **case}
            apart, together = (
                run(styled(tiling(of, joined), "all", reference(name, of)), **options) for joined in (False, True)
            )
            assert_close(together, apart)
            assert differ(together, run(tiling(of, True), **options))


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("order", ["chunk tile row", "chunk row tile", "row chunk tile"])
def test_tiles_in_another_order_are_refused(order: str, name: str) -> None:
    of = model("sd15")
    with pytest.raises(ValueError, match="in an order that is not known"):
        run(styled(tiling(of, True, order), "all", reference(name, of)), latent=empty(2, 8, 24), steps=1)


def test_pictures_one_at_a_time() -> None:
    """A node that hands on a part of the batch: a hidden reference comes along, the first row cannot."""
    of = model("sd15").clone()

    def wrapper(apply_model: Callable[..., torch.Tensor], call: dict[str, Any]) -> torch.Tensor:
        x, c, rows = call["input"], call["c"], len(call["input"]) // len(call["cond_or_uncond"])
        parts = []
        for row in range(rows):
            own = {n: v[row::rows] if isinstance(v, torch.Tensor) and len(v) == len(x) else v for n, v in c.items()}
            parts.append(apply_model(x[row::rows], call["timestep"][row::rows], **own))
        return rearrange(torch.stack(parts), "row chunk ... -> (chunk row) ...")

    of.set_model_unet_function_wrapper(wrapper)
    assert_close(run(styled(of, "all", hidden(of))), run(styled(model("sd15"), "all", hidden(of))))
    with pytest.raises(ValueError, match="a part of the batch only: connect a 'reference'"):
        run(styled(of))


# Attention that others have replaced ----------------------------------------------------------------------------------


def perturbed(of: Any) -> Any:
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    return PerturbedAttentionGuidance.execute(of, 3.0).args[0]


def self_attention_guided(of: Any) -> Any:
    from comfy_extras.nodes_sag import SelfAttentionGuidance

    return SelfAttentionGuidance.execute(of, 0.5, 2.0)[0]


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guided", [perturbed, self_attention_guided])
def test_guidance_by_attention(guided: Any, kind: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The layer that the guidance replaces shares no attention there, said once; the first row stays as without us."""
    of = model(kind)
    source = reference(name, of)
    with caplog.at_level(logging.WARNING):
        injected = run(styled(guided(of), "all", source), **LARGE)
    plain = run(guided(of), **LARGE)
    said = [record.getMessage() for record in caplog.records if "shared no attention" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("Style injection: m0.0")
    assert torch.isfinite(injected).all()
    assert differ(injected[1:], plain[1:])
    if name == "first row":
        assert_close(injected[:1], plain[:1])
    caplog.clear()
    run(styled(guided(of), "o", source), **LARGE)
    assert "shared no attention" not in caplog.text


def test_two_injections_under_self_attention_guidance() -> None:
    of = model("sd15")
    both = styled(styled(self_attention_guided(of), "all", hidden(of)), "all", hidden(of, seed=6))
    assert torch.isfinite(run(both, **LARGE)).all()


@pytest.mark.parametrize("guided", [perturbed, self_attention_guided])
def test_guidance_by_attention_in_one_call_or_several(guided: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    of = model("sd15")
    together = run(styled(guided(of)), **LARGE)
    free_memory(monkeypatch, 0)
    assert_close(run(styled(guided(of)), **LARGE), together)


def _failing(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    if q.shape[1] != k.shape[1]:
        raise RuntimeError("as many keys as queries, please")
    return _attention(q, k, v, options)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=options["n_heads"]) for x in (q, k, v))
    return rearrange(torch.nn.functional.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")


def _identity(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    return v


@pytest.mark.parametrize("earlier", [_failing, _identity])
def test_an_attention_that_takes_no_more_keys(earlier: Any, caplog: pytest.LogCaptureFixture) -> None:
    of = model("sd15").clone()
    of.set_model_attn1_replace(earlier, "output", 5)
    with caplog.at_level(logging.WARNING):
        injected = run(styled(of))
    assert caplog.text.count("o5.0 shared no attention") == 1
    assert_close(injected[:1], run(of)[:1])


def test_an_error_of_the_earlier_attention_is_its_own() -> None:
    def broken(*args: Any) -> torch.Tensor:
        raise RuntimeError("broken anyway")

    of = model("sd15").clone()
    of.set_model_attn1_replace(broken, "output", 5)
    with pytest.raises(RuntimeError, match="broken anyway"):
        run(styled(of))


# Patches in front that change rows or tokens --------------------------------------------------------------------------


def hypertiled(of: Any) -> Any:
    from comfy_extras.nodes_hypertile import HyperTile

    return HyperTile.execute(of, 32, 2, 1, False)[0]


def merged(of: Any) -> Any:
    from comfy_extras.nodes_tomesd import TomePatchModel

    return TomePatchModel.execute(of, 0.3).args[0]


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("changed", [hypertiled, merged])
def test_other_rows_or_tokens(changed: Any, name: str, caplog: pytest.LogCaptureFixture) -> None:
    of = model("sd15")
    seen = []

    def looking(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> Any:
        seen.append((q.shape, k.shape))
        return q, k, v

    patched = changed(of)
    patched.set_model_attn1_patch(looking)
    with caplog.at_level(logging.WARNING):
        torch.manual_seed(0)
        injected = run(styled(patched, "all", reference(name, of)), **LARGE)
    assert any(q != k for q, k in seen), "the patch did nothing"
    torch.manual_seed(0)
    plain = run(patched, **LARGE)
    assert "Style injection" not in caplog.text
    assert differ(injected[1:], plain[1:])
    if name == "first row":
        assert_close(injected[:1], plain[:1])


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_hypertile_with_equal_rows(strength: float) -> None:
    """With three times the same picture nothing can be taken from the first: as without us, but for share's weight."""
    of = model("sd15")
    same = {"latent": {**empty(3, 16, 16), "batch_index": [0, 0, 0]}}
    torch.manual_seed(0)
    injected = run(styled(hypertiled(of), "all", strength=strength), **same)
    torch.manual_seed(0)
    assert_close(injected, run(hypertiled(of), **same))


def test_rows_nobody_can_tell_apart_take_no_style(caplog: pytest.LogCaptureFixture) -> None:
    of = model("sd15").clone()

    def halved(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> Any:
        if options["block"] != ("output", 9):
            return q, k, v
        return tuple(rearrange(x, "b (part n) c -> (part b) n c", part=2) for x in (q, k, v))

    def whole(n: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        return n if options["block"] != ("output", 9) else rearrange(n, "(part b) n c -> b (part n) c", part=2)

    of.set_model_attn1_patch(halved)
    of.set_model_attn1_output_patch(whole)
    with caplog.at_level(logging.WARNING):
        injected = run(styled(of))
    found = re.findall(r"o9.0 took no style, because another node's patch \((.*)\) changes how many rows", caplog.text)
    assert found == ["test_rows_nobody_can_tell_apart_take_no_style.halved of test_style_among_nodes"]
    assert_close(injected[:1], run(of)[:1])
    assert differ(injected[1:], run(of)[1:])
    assert torch.equal(run(styled(of, "o9")), run(of))


# Half precision -------------------------------------------------------------------------------------------------------


def test_moments_of_wide_half_precision_are_finite() -> None:
    from conditional_balance.engine.style import adain

    generator = torch.Generator().manual_seed(0)
    x, to = (torch.randn(1, 64, 8, generator=generator) * spread for spread in (300.0, 400.0))
    found = adain(x.half(), to.half(), 1.0)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.float(), adain(x, to, 1.0), rtol=2e-3, atol=1.0)
    flat = torch.full_like(x, 3.0).half()
    assert torch.isfinite(adain(flat, to.half(), 1.0)).all()


# Nodes that run the network by themselves -----------------------------------------------------------------------------


def running_twice(of: Any, pictures: int) -> Any:
    """The network also run on a hint of as many rows as the sampler has, as Advanced-ControlNet's reference does."""
    from comfy.patcher_extension import WrappersMP

    def wrapper(executor: Callable[..., torch.Tensor], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        chunks = len(args[4]["cond_or_uncond"])
        executor(torch.ones_like(x[: chunks * pictures]), *args, **kwargs)
        return executor(x, *args, **kwargs)

    twice = of.clone()
    twice.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "hint", wrapper)
    return twice


def test_who_cannot_have_a_reference_ride_along_is_named() -> None:
    of = model("sd15")
    named = r"running_twice.wrapper of test_style_among_nodes runs the model by itself and fails when a style reference"
    with pytest.raises(ValueError, match=named):
        run(styled(running_twice(of, 3), "all", hidden(of)))
    assert_close(run(styled(running_twice(of, 3))), run(styled(of)))


def test_copies_of_comfyuis_block_may_leave_out_the_precision() -> None:
    from conditional_balance.runtime.arch.attention import plain_attention

    x = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    options = {"n_heads": 2, "attn_precision": None}
    assert torch.equal(plain_attention(x, x, x, None, {"n_heads": 2}), plain_attention(x, x, x, None, options))


# No private key, no guess ---------------------------------------------------------------------------------------------


def _leaving_out(of: Any, key: str) -> Any:
    """The model called without one of ComfyUI's private keys, by somebody outside of us."""

    def wrapper(apply_model: Callable[..., torch.Tensor], call: dict[str, Any]) -> torch.Tensor:
        options = {name: value for name, value in call["c"]["transformer_options"].items() if name != key}
        return apply_model(call["input"], call["timestep"], **{**call["c"], "transformer_options": options})

    poorer = of.clone()
    poorer.set_model_unet_function_wrapper(wrapper)
    return poorer


@pytest.mark.parametrize("name", REFERENCES)
def test_a_missing_key_is_named(name: str) -> None:
    of = model("sd15")
    with pytest.raises(MissingKey, match="called without 'cond_or_uncond'"):
        run(styled(_leaving_out(of, "cond_or_uncond"), "all", reference(name, of)))


def _patched(node: Any, *args: Any) -> Any:
    """The model that a core node returns, of either schema."""
    if hasattr(node, "execute"):
        return node.execute(*args)[0]
    return getattr(node(), node.FUNCTION)(*args)[0]


def test_other_core_nodes_act_with_us(caplog: pytest.LogCaptureFixture) -> None:
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
    from comfy_extras.nodes_freelunch import FreeU_V2
    from comfy_extras.nodes_model_downscale import PatchModelAddDownscale

    of = model("sd15")
    nodes = {
        "freeu": _patched(FreeU_V2, of, 1.3, 1.4, 0.9, 0.2),
        "downscale": _patched(PatchModelAddDownscale, of, 3, 2.0, 0.0, 0.35, True, "bicubic", "bicubic"),
        "differential": _patched(DifferentialDiffusion, of),
    }
    for name, patched in nodes.items():
        injected, plain = (run(each, latent=empty(3, 16, 16)) for each in (styled(patched), patched))
        assert_close(injected[:1], plain[:1])
        assert differ(injected[1:], plain[1:]), name
    assert "Style injection" not in caplog.text


def test_guiders_of_other_kinds() -> None:
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Guider_Basic
    from comfy_extras.nodes_perpneg import Guider_PerpNeg

    of = model("sd15")

    def guided(of: Any, kind: str) -> torch.Tensor:
        guider = {"basic": Guider_Basic, "perp": Guider_PerpNeg}[kind](of)
        if kind == "basic":
            guider.set_conds(cond(of, 1))
        else:
            guider.set_conds(cond(of, 1), cond(of, 2), cond(of, 3))
            guider.set_cfg(4.0, 1.0)
        noise = torch.randn(3, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
        sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([8.0, 3.0, 0.0])
        with torch.inference_mode():
            return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, seed=0)

    for kind in ("basic", "perp"):
        plain = guided(of, kind)
        injected = guided(styled(of), kind)
        if kind == "basic":  # perp-neg takes one projection over the whole batch, so that rows hang together
            assert_close(injected[:1], plain[:1])
        assert differ(injected[1:], plain[1:])
        assert differ(guided(styled(of, "all", hidden(of)), kind), plain)


# Samplers that look at a picture of another size --------------------------------------------------------------------


def resizing(scale: float) -> Any:
    """A sampler such as Euler Smea Dy: in every step it also asks for a smaller or a larger picture."""
    import comfy.samplers
    from torch.nn.functional import interpolate

    def sample_resizing(of: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: Any, **kwargs: Any) -> torch.Tensor:
        for sigma, after in itertools.pairwise(sigmas):
            asked = sigma.expand(len(x))
            denoised = of(x, asked, **extra_args)
            other = of(interpolate(x, scale_factor=scale, mode="bilinear"), asked, **extra_args)
            denoised = torch.lerp(denoised, interpolate(other, x.shape[-2:], mode="bilinear"), 0.3)
            x = x + (x - denoised) / sigma * (after - sigma)
        return x

    return comfy.samplers.KSAMPLER(sample_resizing)


def sampled_resizing(of: Any, scale: float) -> torch.Tensor:
    import comfy.sample

    noise = torch.randn(2, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    sigmas, nothing = torch.tensor([14.0, 3.0, 0.0]), torch.zeros_like(noise)
    with torch.inference_mode():
        return comfy.sample.sample_custom(
            of, noise, 4.0, resizing(scale), sigmas, cond(of, 1), cond(of, 2), nothing, seed=0
        )


@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_samplers_that_look_at_another_size(scale: float) -> None:
    """Every condition goes along, or says why it cannot; what is recorded is the picture that is painted."""
    from gradsam_case import ALL_ZEROS, blended

    from conditional_balance.nodes.trajectory import CBRecordTrajectory

    of = model("sd15")
    plain = sampled_resizing(of, scale)
    source = hidden(of)
    masked = replace(source, mask=torch.eye(8), subject_mask=torch.eye(8))
    for reference in (FIRST_ROW, source, masked, replace(source, subject_mask=torch.eye(8))):
        out = sampled_resizing(styled(of, "all", reference), scale)
        assert bool(out.isfinite().all()) and differ(out[1], plain[1])
    assert not torch.equal(sampled_resizing(blended(of, "0.05-1", mask=ALL_ZEROS)[0], scale), plain)
    recording, trajectories = CBRecordTrajectory.execute(of).args
    way = trajectories.of(sampled_resizing(recording, scale))
    assert way.states.shape == (3, 4, HEIGHT, WIDTH)
    replayed = styled(of, "all", StyleReference(trajectory=way))
    if scale < 1:
        assert differ(sampled_resizing(replayed, scale), plain)
    else:
        with pytest.raises(ValueError, match="its noise cannot be resized"):
            sampled_resizing(replayed, scale)
