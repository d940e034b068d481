"""Metadata by noise level on a real tiny SDXL: off is off, all the way is core's own, and nothing stays."""

from __future__ import annotations

import functools

import pytest
import torch
from style_case import differ
from test_transformers import run as run_transformer
from tiny_transformers import cond as transformer_cond
from tiny_transformers import tiny_transformer

import tiny
from conditional_balance.nodes.metadata import CBMicroConditioning, CBResolutionShift
from conditional_balance.nodes.projection import CBProject
from conditional_balance.runtime.inject.metadata import Change, Metadata, _vector, groups_of, schedule_metadata

OFF = {each.id: each.default for each in CBMicroConditioning.define_schema().inputs if each.id not in ("model",)}


@functools.cache
def text(batch: int = 1, **sizes: int) -> list:
    generator = torch.Generator().manual_seed(1)
    extra = {"pooled_output": torch.randn(1, 1280, generator=generator), **sizes}
    return [[torch.randn(1, 77, 128, generator=generator), extra]]


def painted(model, **sizes: int) -> torch.Tensor:
    return tiny.sample(model, text(**sizes), text(**sizes), tiny.latent(), steps=3)


def test_defaults_change_no_bit(sdxl_model) -> None:
    (model, *_) = CBMicroConditioning.execute(sdxl_model, **OFF).args
    assert torch.equal(painted(model), painted(sdxl_model))


@pytest.mark.parametrize("by_value", [True, False])
def test_all_the_time_equals_cores_own_sizes(sdxl_model, by_value: bool) -> None:
    constant = Metadata(
        original=Change(2.0, 0.0), target=Change(0.5, 0.0), top=Change(64, 0.0), left=Change(8, 0.0), by_value=by_value
    )
    asked = painted(schedule_metadata(sdxl_model, constant), width=512, height=768, crop_w=16)
    own = painted(sdxl_model, width=1024, height=1536, crop_w=24, crop_h=64, target_width=256, target_height=384)
    assert torch.equal(asked, own)


@pytest.mark.parametrize("percent", [0.3, 0.5, 1.0])
def test_numbers_on_the_way_are_whole_pixels(sdxl_model, percent: float) -> None:
    """Training has shown no others, and a part of a pixel turns the fastest sinusoids by as much as a whole one."""
    model, asked = sdxl_model.model, Metadata(original=Change(0.55, 1.0), left=Change(33.0, 1.0))
    y = model.encode_adm(pooled_output=torch.zeros(1, 1280), width=1023, height=767)
    blocks = _vector(y, asked, percent, model)[:, 1280:].view(6, 256)
    known = model.embedder(torch.arange(0.0, 1100.0))
    assert all(float((known - block).abs().amax(1).min()) < 1e-5 for block in blocks)
    assert not torch.equal(blocks[0], y[0, 1280:1536]) and torch.equal(blocks[2], y[0, 1792:2048])


def test_late_metadata_leaves_the_first_step_alone(sdxl_model) -> None:
    seen: dict[str, list] = {"plain": [], "late": []}
    late = schedule_metadata(sdxl_model, Metadata(original=Change(4.0, 3.0)))
    for name, model in (("plain", sdxl_model), ("late", late)):
        model = model.clone()
        model.set_model_sampler_post_cfg_function(
            lambda arguments, name=name: seen[name].append(arguments["denoised"]) or arguments["denoised"]
        )
        painted(model)
    assert torch.equal(seen["plain"][0], seen["late"][0])
    assert not torch.equal(seen["plain"][-1], seen["late"][-1])


def test_pooled_text_can_fade(sdxl_model) -> None:
    faded = schedule_metadata(sdxl_model, Metadata(pooled=Change(0.0, 0.0)))
    empty = [[part, {**extra, "pooled_output": torch.zeros(1, 1280)}] for part, extra in text()]
    assert torch.equal(painted(faded), tiny.sample(sdxl_model, empty, empty, tiny.latent(), steps=3))


@pytest.mark.parametrize(
    ("kind", "groups"),
    [
        ("sd3", ("pooled",)),
        ("flux", ("guidance", "pooled")),
        ("hunyuan-video", ("pooled",)),
        ("flux2", ("guidance",)),
        ("chroma", ()),
        ("qwen", ()),
    ],
)
def test_transformers_take_what_they_are_told(kind: str, groups: tuple[str, ...]) -> None:
    """Each group that is offered acts, and no other is: Flux.1's pooled text is not called by SD3's name for it."""
    of = tiny_transformer(kind)
    assert groups_of(of.model) == groups
    (text, extra), *_ = transformer_cond(kind, 1)
    positive = [[text, {**extra, "guidance": 3.0}]]
    if "pooled" in groups:
        faded = schedule_metadata(of, Metadata(pooled=Change(0.0, 0.0)))
        empty = [[text, {**extra, "pooled_output": 0 * extra["pooled_output"], "guidance": 3.0}]]
        expected = run_transformer(of, kind, positive=empty, cfg=1.0)
        assert torch.equal(run_transformer(faded, kind, positive=positive, cfg=1.0), expected)
    if "guidance" in groups:
        less = schedule_metadata(of, Metadata(guidance=Change(0.5, 0.0)))
        assert differ(run_transformer(less, kind, positive=positive), run_transformer(of, kind, positive=positive))


def test_nothing_stays_on_the_model_and_two_nodes_chain(sdxl_model) -> None:
    before = painted(sdxl_model)
    twice = schedule_metadata(
        schedule_metadata(sdxl_model, Metadata(original=Change(2.0, 0.0))), Metadata(original=Change(2.0, 0.0))
    )
    assert torch.equal(painted(twice), painted(schedule_metadata(sdxl_model, Metadata(original=Change(4.0, 0.0)))))
    assert torch.equal(painted(sdxl_model), before)


@pytest.mark.parametrize(
    ("name", "value", "neutral"), [("original_scale", 2.0, "1"), ("crop_top", 64, "0"), ("guidance_scale", 2.0, "1")]
)
def test_a_model_without_it_is_refused_by_name(sd15_model, name: str, value: float, neutral: int) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is set, but a BaseModel model .*: set it to {neutral}"):
        CBMicroConditioning.execute(sd15_model, **{**OFF, name: value})


def test_a_schedule_that_rises_is_refused(sd15_model) -> None:
    with pytest.raises(ValueError, match="'sigmas' rise"):
        CBResolutionShift.execute(sd15_model, torch.tensor([0.0, 1.0, 2.0]), 1024, 1024, 512, 1.0)


def test_the_trained_size_leaves_a_schedule_alone(sd15_model) -> None:
    sigmas = torch.tensor([14.6, 3.0, 0.5, 0.0])
    assert CBResolutionShift.execute(sd15_model, sigmas, 512, 512, 512, 1.0).args[0] is sigmas
    assert bool((CBResolutionShift.execute(sd15_model, sigmas, 1024, 1024, 512, 1.0).args[0][1:2] > 3.0).all())


def projected(model, **changed) -> torch.Tensor:
    values = {
        "known": "low resolution",
        "cell": 32,
        "strength": 1.0,
        "start_percent": 0.0,
        "end_percent": 1.0,
    } | changed
    (patched, *_) = CBProject.execute(model, tiny.latent(seed=9), **values).args
    return tiny.sample(patched, tiny.cond(model, 1), tiny.cond(model, 2), tiny.latent(), steps=3)


def test_a_projected_picture_has_the_known_layout(sd15_model) -> None:
    shrink = functools.partial(torch.nn.functional.adaptive_avg_pool2d, output_size=(4, 4))
    known = shrink(tiny.latent(seed=9)["samples"])
    assert torch.allclose(shrink(projected(sd15_model)), known, atol=1e-3)
    mean = projected(sd15_model, known="colour").mean((-2, -1))
    assert torch.allclose(mean, tiny.latent(seed=9)["samples"].mean((-2, -1)), atol=1e-3)


def test_projection_off_changes_no_bit(sd15_model) -> None:
    plain = tiny.sample(sd15_model, tiny.cond(sd15_model, 1), tiny.cond(sd15_model, 2), tiny.latent(), steps=3)
    assert torch.equal(projected(sd15_model, strength=0.0), plain)


def test_a_latent_of_another_model_is_refused(sd15_model) -> None:
    with pytest.raises(ValueError, match="'latent' holds a latent of shape"):
        CBProject.execute(sd15_model, {"samples": torch.zeros(1, 16, 8, 8)}, "colour", 64, 1.0, 0.0, 1.0)
