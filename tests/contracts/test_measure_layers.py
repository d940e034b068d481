"""Measure Layers on real tiny models: what it gives, that it leaves nothing behind, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from tiny_transformers import cond, tiny_transformer

import tiny
from conditional_balance.engine.combining import low_content
from conditional_balance.engine.gates import RankedGate
from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.profile_file import load, save
from conditional_balance.nodes.measured import CBMeasureLayers
from conditional_balance.runtime.arch.registry import architecture_of
from conditional_balance.runtime.inject.reference import FIRST_ROW, StyleReference
from conditional_balance.runtime.profile.effect import measure_layers
from conditional_balance.runtime.profile.likeness import style_distances

REFERENCE = StyleReference(3 * tiny.latent(seed=9)["samples"] + 1)


def measured(model, levels: int = 2, batch: int = 2, **changes):
    given = {"reference": REFERENCE, "latents": tiny.latent(batch=batch)["samples"]} | changes
    positive = given.pop("positive", None) or tiny.cond(model, 1)
    with torch.inference_mode():
        return measure_layers(model, levels=levels, seed=0, positive=positive, **given)


def by_node(model, **options):
    """What the node shows and gives of the same as `measured`."""
    with torch.inference_mode():
        return CBMeasureLayers.execute(
            model, REFERENCE, tiny.latent(batch=2), tiny.cond(model, 1), noise_levels=2, seed=0, **options
        )


@pytest.fixture(scope="module")
def hearing(sd15_model):
    """What the node gives of a model whose layers are all heard."""
    return by_node(sd15_model)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_every_layer_has_a_gain_and_a_loss(kind, sd15_model, sdxl_model, tmp_path):
    model = {"sd15": sd15_model, "sdxl": sdxl_model}[kind]
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    calls = []
    handle = model.model.diffusion_model.register_forward_hook(lambda *args: calls.append(1))
    try:
        profile = measured(model)
    finally:
        handle.remove()
    layers = architecture_of(model).layers
    assert profile.layers == layers and profile.scores.shape == (2, 2, len(layers))
    assert len(calls) == 2 * (1 + len(layers))
    assert torch.equal(profile.scores[0], profile.scores[1])
    assert int((profile.scores[0] != 1).sum()) == profile.scores[0].numel()  # every layer does something
    assert bool((profile.content.score <= 1 + 1e-6).all())
    save(profile, tmp_path / "effect.safetensors")
    again = load(tmp_path / "effect.safetensors")
    assert torch.equal(again.scores, profile.scores) and again.provenance["scale"] == profile.provenance["scale"]
    gate = RankedGate(low_content(again), 0.3)
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    assert 0 < float(gate.weights(2.0, layers, to_sigma).sum()) < 3 * len(layers)
    assert all(torch.equal(weight, before[name]) for name, weight in model.model.state_dict().items())


def test_a_layer_whose_attention_is_not_heard_does_nothing(sd15_model):
    """Its output projection is zero: opening it cannot change the prediction."""
    model, deaf = sd15_model.clone(), LayerId("output", 4, 0)
    prefix = architecture_of(model).projection(deaf, "q").removesuffix("to_q.weight")
    weights = dict(model.model.diffusion_model.named_parameters())
    names = [f"{prefix}to_out.0.{part}" for part in ("weight", "bias")]
    changes = {f"diffusion_model.{name}": ("diff", (-weights[name].detach().clone(),)) for name in names}
    model.add_patches(changes, 1.0)
    profile = measured(model)
    place = profile.layers.index(deaf)
    torch.testing.assert_close(profile.scores[0, :, place], torch.ones(2, dtype=torch.float64), atol=1e-6, rtol=0)
    assert int((profile.scores[0] - 1).abs().argmax()) != place


def test_a_reference_that_no_layer_leads_to_is_said(sd15_model, hearing):
    """No layer's attention is heard: a ranking of nothing would be kept and rule every later style."""
    deaf = sd15_model.clone()
    outs = {name: w for name, w in deaf.model.diffusion_model.named_parameters() if ".attn1.to_out.0." in name}
    deaf.add_patches({f"diffusion_model.{name}": ("diff", (-w.detach().clone(),)) for name, w in outs.items()}, 1.0)
    said = {}
    for name, shown in (("deaf", by_node(deaf)), ("hearing", hearing)):
        gains = 1 - shown.result[0].scores.mean((0, 1))
        said[name] = shown.ui["cb_warning"]
        assert bool(said[name]) == (float(gains.max()) <= 1e-3)
    assert said["deaf"][0].startswith("No layer by itself brings the pictures nearer")
    assert said["hearing"] == []


def test_a_transformer_is_measured_too():
    model = tiny_transformer("sd3")
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, 8, 8, generator=generator)
    reference = StyleReference(2 * torch.randn(1, 16, 8, 8, generator=generator) + 1)
    profile = measured(model, latents=latents, reference=reference, positive=cond("sd3", 1))
    assert profile.layers == architecture_of(model).layers and bool(profile.scores.isfinite().all())


def test_latents_with_and_without_the_axis_of_frames_are_the_same_pictures():
    model, positive = tiny_transformer("wan"), cond("wan", 1)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, 1, 8, 8, generator=generator)
    reference = 2 * torch.randn(1, 16, 1, 8, 8, generator=generator) + 1
    with torch.inference_mode():
        found = [
            (
                measured(model, 1, latents=pictures, reference=StyleReference(one), positive=positive).scores,
                style_distances(model, positive, one, pictures, architecture_of(model).layers),
            )
            for pictures in (latents, latents.squeeze(2))
            for one in (reference, reference.squeeze(2))
        ]
    assert all(torch.equal(one, other) for each in found[1:] for one, other in zip(each, found[0], strict=True))


def test_a_model_that_predicts_nan_has_no_effect_of_one(sd15_model):
    model = sd15_model.clone()
    name = next(name for name, _ in model.model.diffusion_model.named_parameters() if name.endswith("to_out.0.bias"))
    width = dict(model.model.diffusion_model.named_parameters())[name].shape
    model.add_patches({f"diffusion_model.{name}": ("diff", (torch.full(width, torch.nan),))}, 1.0)
    with pytest.raises(ValueError, match="'model' predicts NaN or infinite values at sigma"):
        measured(model)


def test_the_report_says_how_far_it_agrees_with_a_profile(sd15_model, hearing):
    out = by_node(sd15_model, profile=hearing.args[0])
    assert "Agrees with 'style, by measured effect' at 1.00" in out.args[2]


def test_bad_input_is_one_sentence(sd15_model):
    with pytest.raises(ValueError, match="'reference' has no picture"):
        measured(sd15_model, reference=FIRST_ROW)
    with pytest.raises(ValueError, match="'latent' holds a latent"):
        measured(sd15_model, latents=torch.zeros(1, 16, 8, 8))
