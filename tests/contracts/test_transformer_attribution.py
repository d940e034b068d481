"""Where a transformer draws a subject, and Grad-SAM Blend on it: exact, and leaving no trace."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import pytest
import torch
from gradsam_case import ALL_ONES, ALL_ZEROS, HALF, latest
from test_transformers import EVERY, hooks_of
from tiny_transformers import cond, latent, tiny_transformer

import tiny
from conditional_balance.engine.attribution import gradients_of, sign_probes
from conditional_balance.engine.gates import WrittenGate
from conditional_balance.engine.grammar import parse
from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.subject import Phrase
from conditional_balance.engine.windows import parse_windows
from conditional_balance.runtime.arch.registry import architecture_of
from conditional_balance.runtime.arch.transformer import TEXT_PADS
from conditional_balance.runtime.attribution.calls import LayerCall
from conditional_balance.runtime.attribution.find import ProbeSettings, find_subject
from conditional_balance.runtime.attribution.gradients import backward, gradients
from conditional_balance.runtime.attribution.methods.grad_sam import tracing
from conditional_balance.runtime.attribution.prediction import Prediction
from conditional_balance.runtime.attribution.propagation import Propagation
from conditional_balance.runtime.attribution.question import Question
from conditional_balance.runtime.attribution.scaling import scaled
from conditional_balance.runtime.attribution.settings import AttributionSettings
from conditional_balance.runtime.attribution.subject import Subject
from conditional_balance.runtime.inject.blend import Blend, blend_reference
from conditional_balance.runtime.inject.reference import StyleReference
from conditional_balance.runtime.inject.style import StyleInjection, inject_style

PHRASE = Phrase("fox", (2, 3))
MOST_USED = [kind for kind in ("sd3", "flux", "qwen", "qwen21", "z-image") if kind in EVERY]


def subject_of(kind: str) -> Subject:
    return Subject(cond(kind, 1), (PHRASE,))


def find(kind: str, method: str, **settings: Any) -> Any:
    with torch.inference_mode():
        picture = latent(kind, 4)["samples"]
        asked = AttributionSettings(method, **settings)
        return find_subject(tiny_transformer(kind), picture, subject_of(kind), ProbeSettings((0.5,)), asked)


def inspect(kind: str, look: Any) -> Any:
    """`look(prediction, question)` for a noisy latent, at the moment when a run would ask."""
    from conditional_balance.runtime.attribution import find as finding

    found: list[Any] = []

    def attribute(prediction: Prediction, subject: Subject, layers: Any, settings: Any) -> Any:
        question = Question(prediction, subject.phrases, layers, settings, Propagation(prediction, layers, 0))
        found.append(look(prediction, question))
        raise StopIteration

    model, before = tiny_transformer(kind), finding.attribute
    finding.attribute = attribute
    try:
        with torch.inference_mode(), pytest.raises(StopIteration):
            picture = latent(kind, 4)["samples"]
            find_subject(model, picture, subject_of(kind), ProbeSettings((0.5,)), AttributionSettings("grad_sam"))
    finally:
        finding.attribute = before
    return found[0]


@pytest.mark.parametrize("kind", EVERY)
def test_every_method_finds_a_map_without_fallback_and_leaves_nothing(kind: str) -> None:
    model = tiny_transformer(kind)
    plain = tiny.sample(model, positive=cond(kind, 1), negative=cond(kind, 2), latent=latent(kind), steps=1)
    for method in ("attention", "value_norm", "jvp", "grad_sam"):
        result = find(kind, method)
        if method == "grad_sam" and kind in ("cosmos", "anima") and hasattr(comfy.model_management, "in_training"):
            assert result.method == "jvp" and "no gradients" in result.note  # newer versions rotate without a backward
        else:
            assert result.method == method and not result.note
        assert result.maps.shape[:2] == (1, 1) and result.maps.shape[-2:] == latent(kind)["samples"].shape[-2:]
        assert result.maps.isfinite().all() and result.maps.std() > 0
    assert hooks_of(model) == 0
    again = tiny.sample(model, positive=cond(kind, 1), negative=cond(kind, 2), latent=latent(kind), steps=1)
    assert torch.equal(plain, again)


@pytest.mark.parametrize("method", ["attention", "value_norm"])
@pytest.mark.parametrize("kind", ["sd3", "flux", "chroma", "qwen", "aura"])
def test_padding_that_the_model_does_not_see_changes_no_map(kind: str, method: str) -> None:
    """Such as the padding that a style reference with a longer prompt brings."""
    model, picture = tiny_transformer(kind), latent(kind, 4)["samples"]
    (text, options), *_ = cond(kind, 1, 9)
    padded = [[torch.cat((text, torch.zeros(1, 5, text.shape[2])), 1), options]]
    clone = model.clone()
    clone.model_options["transformer_options"][TEXT_PADS] = (5,)
    ask = ProbeSettings((0.5,)), AttributionSettings(method, "all")
    with torch.inference_mode():
        expected = find_subject(model, picture, Subject([[text, options]], (PHRASE,)), *ask).maps
        found = find_subject(clone, picture, Subject(padded, (PHRASE,)), *ask).maps
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


@pytest.mark.parametrize("kind", EVERY)
def test_reading_every_layer_changes_no_prediction(kind: str) -> None:
    layers = architecture_of(tiny_transformer(kind)).text_layers
    called: list[LayerId] = []

    def read(call: LayerCall) -> torch.Tensor:
        called.append(call.layer)
        column = call.column(call.parts[0], PHRASE)
        assert column.shape[2] == call.grid[0] * call.grid[1] and 0 < float(column.min()) <= float(column.max()) < 1
        return call.output

    def look(prediction: Prediction, question: Question) -> None:
        from conditional_balance.runtime.attribution.calls import with_calls_read

        seen = prediction.predict(with_calls_read(prediction, layers, read))
        torch.testing.assert_close(seen, prediction.base, rtol=1e-5, atol=1e-5)

    inspect(kind, look)
    assert called == list(layers)


@pytest.mark.parametrize("kind", [kind for kind in ("sd3", "flux", "qwen21") if kind in EVERY])
def test_gradients_of_columns_are_finite_differences(kind: str) -> None:
    """d<probe, eps> / d a, where a turns a phrase's columns up at one layer: W * dL/dW against a central difference."""

    def look(prediction: Prediction, question: Question) -> tuple[float, float]:
        traced: list[LayerCall] = []
        with gradients():
            noise = prediction.noise(question.predict(tracing(traced), differentiable=True))
            (probe,) = sign_probes(1, noise)
            ((slope, *_),) = backward(noise, [probe], [call.output for call in traced])
        call = traced[0]
        part = call.parts[0]
        slopes = gradients_of(slope[part.rows], call.v[part.rows], part.positions(PHRASE), call.heads)
        by_gradient = float((call.column(part, PHRASE) * slopes).sum())
        up, down = (
            prediction.noise(prediction.predict(scaled(prediction, PHRASE, {call.layer: step})))
            for step in (0.25, -0.25)
        )
        return by_gradient, float(((up - down) * probe).sum() / 0.5)

    by_gradient, by_difference = inspect(kind, look)
    assert by_gradient == pytest.approx(by_difference, rel=0.02)


def test_the_flag_for_training_is_set_during_the_pass_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with gradients():
        assert hasattr(comfy.model_management, "in_training") is False or comfy.model_management.in_training
    monkeypatch.setattr(comfy.model_management, "in_training", False, raising=False)
    with pytest.raises(RuntimeError, match="inside"), gradients():
        assert comfy.model_management.in_training
        raise RuntimeError("inside")
    assert comfy.model_management.in_training is False


@pytest.mark.parametrize("kind", ["flux", "wan"])
def test_maps_propagate_along_the_pictures_own_attention(kind: str) -> None:
    spread, plain = find(kind, "attention", propagation=1), find(kind, "attention")
    assert not spread.note and not torch.equal(spread.maps, plain.maps)


def test_what_a_transformer_cannot_do_is_said() -> None:
    with pytest.raises(ValueError, match="'method' grad_sam_output needs a UNet"):
        find("flux", "grad_sam_output")
    with pytest.raises(ValueError, match="no layer like the one named"):
        find("z-image", "attention", layers="r0")
    with pytest.raises(ValueError, match="set the length of the latent to 1"):
        with torch.inference_mode():
            frames = torch.randn(1, 16, 3, 10, 8)
            find_subject(
                tiny_transformer("wan"), frames, subject_of("wan"), ProbeSettings((0.5,)), AttributionSettings("jvp")
            )


@pytest.mark.parametrize("kind", [*MOST_USED, "cosmos"])
@pytest.mark.parametrize("mode", ["x0", "paper"])
def test_blend_keeps_all_or_nothing_and_measures(kind: str, mode: str) -> None:
    model, reference = tiny_transformer(kind), latent(kind, 5)["samples"]
    windows = parse_windows("0.2-1")

    def run(mask: Any, left_out: torch.Tensor | None = None) -> tuple[torch.Tensor, Any]:
        attribution = AttributionSettings("attention")
        blend = Blend(reference, subject_of(kind), windows, mode, attribution, mask, left_out=left_out)
        patched, attribution = blend_reference(model, blend)
        return sample(patched, kind), latest(attribution)

    plain = sample(model, kind)
    kept, measured = run(ALL_ONES)
    assert len(measured) == 1 and hooks_of(model) == 0
    if mode == "x0":
        assert torch.equal(kept, plain)
        gone, _ = run(ALL_ZEROS)
        torch.testing.assert_close(gone, reference, rtol=1e-4, atol=1e-4)
        free, _ = run(ALL_ZEROS, torch.ones(1, 80, 56))
        assert torch.equal(free, plain)
    else:
        torch.testing.assert_close(kept, plain, rtol=1e-3, atol=1e-3)
    half, _ = run(HALF)
    assert half.isfinite().all() and not torch.allclose(half, plain, atol=1e-3)


@pytest.mark.parametrize("kind", ["flux", "cosmos"])
def test_a_subject_is_found_in_styled_pictures_in_either_order_of_nodes(kind: str) -> None:
    reference = StyleReference(latent(kind, 6)["samples"], cond(kind, 31))
    blend = Blend(
        latent(kind, 5)["samples"],
        subject_of(kind),
        parse_windows("0.2-1"),
        "x0",
        AttributionSettings("value_norm"),
        HALF,
    )

    def style(of: Any) -> Any:
        return inject_style(of, StyleInjection(WrittenGate(parse("all")), reference))

    inside, found = blend_reference(style(tiny_transformer(kind)), blend)
    first = sample(inside, kind), latest(found)[0].maps
    before, found = blend_reference(tiny_transformer(kind), blend)
    second = sample(style(before), kind), latest(found)[0].maps
    torch.testing.assert_close(second[1], first[1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(second[0], first[0], rtol=1e-3, atol=1e-3)


def test_papers_way_puts_the_reference_under_the_runs_own_noise() -> None:
    """Where nothing is kept and the model predicts one picture, euler's path from there is that picture's."""
    kind = "flux"
    model, reference = tiny_transformer(kind), latent(kind, 5)["samples"]
    sampling, noise = model.model.model_sampling, torch.randn(1, 16, 10, 7)
    scaled_in = model.model.process_latent_in(reference)
    sigma = torch.tensor(0.4)
    handed_on = sampling.inverse_noise_scaling(sigma, sampling.noise_scaling(sigma, noise, scaled_in))
    begun = sampling.noise_scaling(sigma, torch.zeros_like(noise), handed_on)
    torch.testing.assert_close(begun, (1 - sigma) * scaled_in + sigma * noise)


def sample(model: Any, kind: str) -> torch.Tensor:
    return tiny.sample(
        model, positive=cond(kind, 1), negative=cond(kind, 2), latent=latent(kind), steps=3, scheduler="simple"
    )
