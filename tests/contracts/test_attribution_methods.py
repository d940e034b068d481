"""The four methods on real UNets: exact where they can be, agreeing where they estimate, and leaving no trace."""

from __future__ import annotations

import weakref
from typing import Any

import comfy.model_management
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from comfy.patcher_extension import WrappersMP
from gradsam_case import applied, by_the_book, layer, plain_copy, prediction_of, question_of, subject_of, written_out
from style_case import HEIGHT, KINDS, WIDTH, assert_same_traces, failing, model, tiny_controlnet, traces, with_control

from conditional_balance.engine.masks import MaskSettings, dilated, mask_of
from conditional_balance.engine.subject import Phrase
from conditional_balance.runtime.attribution.attribute import attribute
from conditional_balance.runtime.attribution.find import ProbeSettings, find_subject
from conditional_balance.runtime.attribution.layers import chosen_layers
from conditional_balance.runtime.attribution.methods import METHODS, grad_sam
from conditional_balance.runtime.attribution.methods.grad_sam import GradSAM, seed_of
from conditional_balance.runtime.attribution.methods.grad_sam_output import GradSAMOutput
from conditional_balance.runtime.attribution.methods.jvp import JVP
from conditional_balance.runtime.attribution.scaling import head_sensitivity, layer_sensitivity
from conditional_balance.runtime.attribution.settings import AttributionSettings
from conditional_balance.runtime.attribution.subject import Subject
from tiny import cond, latent, tiny_model

SIGMA = 2.0
PHRASE = Phrase("fox", (2, 3))


def find(of: Any, method: str, positive: Any = None, percents: tuple[float, ...] = (0.6,), **settings: Any) -> Any:
    picture = latent(4, height=HEIGHT, width=WIDTH)["samples"]
    chosen = AttributionSettings(method, **settings)
    with torch.inference_mode():
        return find_subject(of, picture, subject_of(of), ProbeSettings(percents), chosen, positive)


def inputs(of: Any, side: int = 8, rows: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    context = cond(of, 1)[0][0].expand(rows, -1, -1)
    return context, SIGMA * latent(3, rows, side, side)["samples"]


# exactness ----------------------------------------------------------------------------------------------------------


def test_grad_sam_by_query_and_by_output_is_the_brute_force_jacobian() -> None:
    """Every output differentiated by itself, with respect to explicit probabilities, in an ordinary autograd graph."""
    of, names = plain_copy(lambda: tiny_model("sd15")), ("o9.0", "o11.0")
    context, x = inputs(of)
    seen: dict[str, torch.Tensor] = {}

    def explicit(name: str) -> Any:
        def replaced(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
            seen[name] = written_out(q, k, extra["n_heads"])
            if not seen[name].requires_grad:
                seen[name].requires_grad_()
            return applied(seen[name], v)

        return replaced

    patches = {tuple(layer(name)): explicit(name) for name in names}
    prediction = prediction_of(of, context, x, SIGMA, optimized_attention_override=by_the_book)
    options = {**prediction.options, "patches_replace": {"attn2": patches}}
    noise = prediction.noise(prediction.predict(options)).flatten()
    rows = [torch.autograd.grad(output, list(seen.values()), retain_graph=True) for output in noise]
    jacobian = [torch.stack(parts)[..., list(PHRASE.positions)] for parts in zip(*rows, strict=True)]
    weights = [each[..., list(PHRASE.positions)].detach() for each in seen.values()]
    exact = [(w * j.relu()).sum((0, -1)) / len(noise) for w, j in zip(weights, jacobian, strict=True)]
    expected = torch.cat(exact, 1).mean(1).reshape(1, 8, 8)

    settings = AttributionSettings("grad_sam", "o9, o11")
    mine = model("sd15")
    with torch.inference_mode():
        prediction = prediction_of(mine, *inputs(mine), SIGMA)
        unit = torch.eye(x.numel()).reshape(-1, *x.shape)
        found = GradSAM().over(question_of(mine, prediction, settings, PHRASE), unit)[0]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))
        by_output = sum((w * j.relu()).sum((1, 2, 3, 4)) for w, j in zip(weights, jacobian, strict=True))
        of_outputs = by_output.reshape(1, 4, 8, 8).norm(dim=1)
        question = question_of(mine, prediction, settings, PHRASE)
        exact_output = GradSAMOutput().over(question, 8)[0]  # so far apart that every output has a pass of its own
        torch.testing.assert_close(exact_output, of_outputs, rtol=1e-3, atol=1e-4 * float(of_outputs.max()))
        near = GradSAMOutput().maps(question)[0]
    assert float(torch.corrcoef(torch.stack((near.flatten(), of_outputs.flatten())))[0, 1]) > 0.8


def test_every_noise_level_has_probes_of_its_own_and_always_the_same() -> None:
    assert seed_of(torch.tensor([2.0])) == seed_of(torch.tensor([2.0, 2.0])) != seed_of(torch.tensor([2.1]))
    of = model("sd15")
    maps = [find(of, "grad_sam", percents=(level,)).maps for level in (0.6, 0.6)]
    assert torch.equal(*maps)


@pytest.mark.parametrize("layers", ["all", "o9-11"])
def test_jvp_agrees_with_forward_mode_differentiation(layers: str) -> None:
    of, mine = plain_copy(lambda: tiny_model("sd15")), model("sd15")
    settings = AttributionSettings("jvp", layers)
    asked = chosen_layers(mine, settings)
    context, x = inputs(of)
    prediction = prediction_of(of, context, x, SIGMA, optimized_attention_override=by_the_book)

    def turned_up(factor: torch.Tensor) -> Any:
        def replaced(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
            weights = written_out(q, k, extra["n_heads"])
            mark = torch.zeros(weights.shape[-1])
            mark[list(PHRASE.positions)] = 1
            return applied(weights * (1 + (factor - 1) * mark), v)

        return replaced

    with torch.inference_mode(False), torch.no_grad(), forward_ad.dual_level():
        factor = forward_ad.make_dual(torch.ones(()), torch.ones(()))
        patches = dict.fromkeys(map(tuple, asked.targets), turned_up(factor))
        noise = prediction.noise(prediction.predict({**prediction.options, "patches_replace": {"attn2": patches}}))
        expected = forward_ad.unpack_dual(noise).tangent.norm(dim=1)
    with torch.inference_mode():
        found = JVP().maps(question_of(mine, prediction_of(mine, *inputs(mine), SIGMA), settings, PHRASE))[0]
    assert float((found - expected).norm() / expected.norm()) < 0.02


def planted(of: Any, place: torch.Tensor, token: int = 5) -> Any:
    """The model with one token that all queries inside `place` [h, w] heed, and none outside, at layer o11.

    The token's key is along what the planted queries become; queries outside are turned round.
    """
    attn2 = dict(of.model.diffusion_model.named_modules())["output_blocks.11.1.transformer_blocks.0.attn2"]
    with torch.inference_mode():
        query = torch.randn(32, generator=torch.Generator().manual_seed(7))
        key = attn2.to_q.weight @ query
        word = torch.linalg.pinv(attn2.to_k.weight) @ (key * 60 / key.square().mean())
    signs = torch.where(place.flatten() > 0, 1.0, -1.0)

    def patch(n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, extra: dict[str, Any]) -> Any:
        if tuple(extra["block"]) == ("output", 11):
            n = (signs[:, None] * query).expand_as(n).to(n)
            context = context.clone()
            context[:, token] = word.to(context)
        return n, context, context

    patched = of.clone()
    patched.set_model_attn2_patch(patch)
    return patched


@pytest.mark.parametrize("method", METHODS)
def test_a_planted_token_gives_its_planted_mask(method: str) -> None:
    place = torch.zeros(16, 16)
    place[3:10, 5:13] = 1
    of = planted(model("sd15"), place)
    subject = Subject(cond(of, 1), (Phrase("fox", (5,)),))
    with torch.inference_mode():
        found = find_subject(
            of, latent(4)["samples"], subject, ProbeSettings((0.6,)), AttributionSettings(method, "o11", probes=8)
        )
    assert found.method == method
    if method in (
        "jvp",
        "grad_sam_output",
    ):  # they see outputs: a convolution further, and stirred by the last normalisation
        near = dilated(place[None] > 0, 1.5)[0]
        assert float(found.maps[0, 0][place > 0].mean()) > 1.5 * float(found.maps[0, 0][~near].mean())
        assert place.flatten()[found.maps.flatten().argmax()] == 1
    else:
        assert overlap(found.maps, place) > 0.9


def overlap(maps: torch.Tensor, place: torch.Tensor) -> float:
    mask = mask_of(maps, MaskSettings(blur=0, rule="otsu", dilate=0))[0]
    return float((mask * place).sum() / torch.maximum(mask, place).sum())


def test_another_token_does_not_give_the_planted_mask() -> None:
    """One place off, as in the official code's counting from the first word, finds nothing."""
    place = torch.zeros(16, 16)
    place[3:10, 5:13] = 1
    of = planted(model("sd15"), place)
    subject = Subject(cond(of, 1), (Phrase("fox", (4,)),))
    with torch.inference_mode():
        found = find_subject(
            of, latent(4)["samples"], subject, ProbeSettings((0.6,)), AttributionSettings("attention", "o11")
        )
    assert overlap(found.maps, place) < 0.3


# what acts besides ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_every_kind_of_model(kind: str, method: str) -> None:
    found = find(model(kind), method, percents=(0.4, 0.7), propagation=1)
    assert found.method == method and found.note == ""
    assert found.maps.shape == (1, 1, HEIGHT, WIDTH)
    assert found.maps.isfinite().all() and found.maps.min() >= 0 and found.maps.std() > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_controlnet_acts_and_gradients_survive_it(method: str) -> None:
    of = model("sd15")
    positive, _ = with_control(tiny_controlnet("sd15"), cond(of, 1), cond(of, 2))
    controlled, plain = find(of, method, positive), find(of, method)
    assert controlled.method == method and controlled.note == ""
    assert float((controlled.maps - plain.maps).abs().max()) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_a_lora_acts(method: str) -> None:
    """On keys, as attention by itself tells nothing of values."""
    of = model("sd15").clone()
    name = "diffusion_model.output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight"
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(2))
    assert of.add_patches({name: ("diff", (weight,))}, 1.0)
    changed, plain = find(of, method), find(model("sd15"), method)
    assert changed.method == method
    assert float((changed.maps - plain.maps).abs().max()) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_weights_that_are_cast_agree_with_full_ones(method: str) -> None:
    cast = tiny_model("sd15", dtype=torch.float16, manual_cast=torch.float32)
    found, full = find(cast, method), find(model("sd15"), method)
    assert found.method == method
    assert float((found.maps - full.maps).norm() / full.maps.norm()) < 0.05


@pytest.mark.parametrize("method", METHODS)
def test_a_model_loaded_for_little_memory_gives_the_same(method: str) -> None:
    """Weights then stay behind and are cast, and a LoRA is added to them, inside every call."""
    name = "diffusion_model.output_blocks.11.1.transformer_blocks.0.attn2.to_v.weight"
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(2))
    maps = []
    for room in (0, 1):  # bytes for weights; 0 is all that is needed
        of = tiny_model("sd15")
        of.add_patches({name: ("diff", (weight,))}, 1.0)
        with torch.inference_mode():
            of.patch_model(torch.device("cpu"), lowvram_model_memory=room)
            assert of.model.model_lowvram == bool(room)
            found = attribute(
                prediction_of(of, *inputs(of), SIGMA),
                subject_of(of),
                chosen_layers(of, AttributionSettings(method)),
                AttributionSettings(method),
            )
            of.unpatch_model()
        assert (found.method, found.note) == (method, "")
        maps.append(found.maps)
    torch.testing.assert_close(maps[1], maps[0], rtol=0, atol=1e-3 * float(maps[0].max()))


@pytest.mark.parametrize("method", METHODS)
def test_v_prediction_is_read_as_noise(method: str) -> None:
    found = find(tiny_model("sd15", v_pred=True), method)
    assert found.method == method and found.maps.std() > 0


def test_pictures_of_a_batch_are_attributed_by_themselves() -> None:
    of, pictures = model("sd15"), latent(4, 3, HEIGHT, WIDTH)["samples"]
    for method in ("jvp", "attention", "value_norm"):
        with torch.inference_mode():
            prediction = prediction_of(of, *batch(of, pictures))
            together = by(prediction, of, method)
            alone = by(prediction_of(of, *batch(of, pictures[1:2])), of, method)
        tolerance = 1e-3 if method == "jvp" else 1e-4
        torch.testing.assert_close(together[:, 1:2], alone, rtol=0, atol=tolerance * float(alone.max()))


def batch(of: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    return cond(of, 1)[0][0].expand(len(x), -1, -1), SIGMA * x, SIGMA


def by(prediction: Any, of: Any, method: str) -> torch.Tensor:
    settings = AttributionSettings(method, "o9-11" if method == "grad_sam_output" else "o")  # it takes many passes
    return attribute(prediction, Subject(cond(of, 1), (PHRASE,)), chosen_layers(of, settings), settings).maps


def test_a_prompt_beside_a_longer_one_is_found_in_every_repeat() -> None:
    """ComfyUI repeats a short prompt's tokens; attention to all copies is attention to the one."""
    of = model("sd15")
    context, x = inputs(of)
    for method in METHODS:
        with torch.inference_mode():
            alone = by(prediction_of(of, context, x, SIGMA), of, method)
            repeated = prediction_of(of, context.repeat(1, 2, 1), x, SIGMA)
            repeated.texts["it"] = 77
            twice = by(repeated, of, method)
        torch.testing.assert_close(twice, alone, rtol=0, atol=2e-3 * float(alone.max()))


def test_measured_weights_follow_what_scaling_moves() -> None:
    of = model("sd15")
    with torch.inference_mode():
        prediction = prediction_of(of, *inputs(of), SIGMA)
        each = head_sensitivity(prediction, [PHRASE], layer("o11.0"), 2)
        together = layer_sensitivity(prediction, [PHRASE], layer("o11.0"), 2)
    assert each.shape == together.shape == (2,)
    assert (each > 0).all() and float(together[0]) <= float(each.sum()) * 1.05
    maps = {how: find(of, "attention", layers="o", weighting=how).maps for how in ("uniform", "by head")}
    assert float((maps["uniform"] - maps["by head"]).abs().max()) > 1e-3


# layers --------------------------------------------------------------------------------------------------------------


def test_the_default_layers_are_the_papers() -> None:
    expected = {"sd15": "o9.0 o10.0 o11.0", "sdxl": "o3.0 o4.0 o5.0"}
    for kind, names in expected.items():
        asked = chosen_layers(model(kind), AttributionSettings("grad_sam")).targets
        assert " ".join(map(str, asked)) == names


def test_layers_are_chosen_by_the_gate_grammar() -> None:
    asked = chosen_layers(model("sd15"), AttributionSettings("jvp", "o9:0.5, m0")).targets
    assert {str(each): weight for each, weight in asked.items()} == {"m0.0": 1.0, "o9.0": 0.5}
    with pytest.raises(ValueError, match="no layer like"):
        chosen_layers(model("sd15"), AttributionSettings("jvp", "o1.8"))
    with pytest.raises(ValueError, match="'layers' chooses no layer"):
        chosen_layers(model("sd15"), AttributionSettings("jvp", "o9:0"))


def test_a_layer_that_never_runs_is_named() -> None:
    of = model("sd15").clone()

    def skip(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return x  # a network that is skipped altogether

    of.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", skip)
    for method in METHODS:
        with pytest.raises(ValueError, match="'layers' names layers that never ran"):
            find(of, method)


# gradients that cannot be had ----------------------------------------------------------------------------------------


def test_without_gradients_jvp_stands_in_and_says_so() -> None:
    of = model("sd15").clone()

    def cut(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return executor(*args, **kwargs).detach()  # as a kernel without a backward would

    of.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", cut)
    found = find(of, "grad_sam", layers="o")
    assert found.method == "jvp"
    assert "grad_sam found no gradients here" in found.note and found.note.endswith("jvp was used instead.")
    torch.testing.assert_close(found.maps, find(model("sd15"), "jvp", layers="o").maps)


@pytest.mark.parametrize(
    "error",
    [
        comfy.model_management.OOM_EXCEPTION("Allocation on device"),
        torch.AcceleratorError("CUDA error: out of memory"),  # told late
        RuntimeError("MPS backend out of memory"),
    ],
)
def test_without_memory_for_gradients_jvp_stands_in_and_finds_what_they_held_free(monkeypatch, error) -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def runs_out(output: torch.Tensor, *args: Any) -> Any:
        held.append(weakref.ref(output))
        raise type(error)(str(error))  # a new one, which nobody holds

    def maps(self: JVP, question: Any) -> torch.Tensor:
        assert held[0]() is None
        return question.prediction.x.new_ones(1, 1, HEIGHT, WIDTH)

    monkeypatch.setattr(grad_sam, "backward", runs_out)
    monkeypatch.setattr(JVP, "maps", maps)
    found = find(model("sd15"), "grad_sam", layers="o")
    assert found.note == "grad_sam needs more memory than there is; jvp was used instead."


# nothing stays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_nothing_stays_after_a_look(method: str) -> None:
    of = model("sdxl")
    find(of, method)
    before, draws = traces(of), torch.get_rng_state()
    find(of, method, propagation=1)
    assert_same_traces(before, traces(of))
    assert torch.equal(draws, torch.get_rng_state())
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    assert all(parameter.is_inference() for parameter in of.model.diffusion_model.parameters())


@pytest.mark.parametrize("error", [KeyError, comfy.model_management.InterruptProcessingException])
def test_nothing_stays_after_an_error_or_cancel(error: type[Exception]) -> None:
    of = failing(error, "here")(model("sd15"))
    before = traces(of)
    with torch.inference_mode():
        with pytest.raises(error):
            find_subject(
                of,
                latent(4)["samples"],
                subject_of(of),
                ProbeSettings((0.4, 0.6, 0.8)),
                AttributionSettings("grad_sam"),
            )
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
        assert len(torch.overrides._get_current_function_mode_stack()) == 0
    assert_same_traces(before, traces(of))


def test_the_graph_begins_at_the_first_chosen_layer() -> None:
    """What lies before it is not remembered: hidden states there carry no gradient."""
    of, carried = model("sd15").clone(), {}

    def look(h: torch.Tensor, skip: torch.Tensor, options: dict[str, Any]) -> Any:
        carried[options["block"][1]] = h.requires_grad
        return h, skip

    of.set_model_output_block_patch(look)
    find(of, "grad_sam", layers="o9-11")
    assert carried == {number: number > 9 for number in range(12)}


# bad input -----------------------------------------------------------------------------------------------------------


def test_bad_input_is_one_sentence() -> None:
    of, picture = model("sd15"), latent(4)["samples"]
    settings = AttributionSettings("jvp")
    with pytest.raises(ValueError, match="'latent' holds a latent of shape"):
        find_subject(of, torch.zeros(1, 8, 4, 4), subject_of(of), ProbeSettings((0.5,)), settings)
    with pytest.raises(ValueError, match="'noise_levels' names several"):
        find_subject(of, picture, subject_of(of), ProbeSettings((0.5, 0.6), noised=True), settings)
    with pytest.raises(ValueError, match="'subject' was read from another prompt"):
        find_subject(of, picture, subject_of(of), ProbeSettings((0.5,)), settings, positive=cond(of, 9))
    with pytest.raises(ValueError, match="'method' is 'magic'"):
        AttributionSettings("magic")
    area = [[cond(of, 1)[0][0], {"area": (8, 8, 4, 4), "strength": 1.0}]]
    with pytest.raises(ValueError, match="choose jvp, or remove the area"):
        find_subject(of, picture, subject_of(of), ProbeSettings((0.5,)), AttributionSettings("grad_sam"), positive=area)
    with torch.inference_mode():
        assert (
            find_subject(of, picture, subject_of(of), ProbeSettings((0.5,)), settings, positive=area)
            .maps.isfinite()
            .all()
        )


@pytest.mark.parametrize("method", METHODS)
def test_surroundings_weigh_a_map_by_its_share(method: str) -> None:
    """What the map is weighed by rises from place to place exactly as the ratio of both phrases' own maps does."""
    of = model("sd15")
    around = Phrase("snow", (6,))
    settings, look = AttributionSettings(method, "o11"), ProbeSettings((0.6,))
    picture, text = latent(4)["samples"], subject_of(of)
    with torch.inference_mode():
        share = find_subject(of, picture, Subject(text.conditioning, text.phrases, (around,)), look, settings).maps
        apart = find_subject(of, picture, Subject(text.conditioning, (*text.phrases, around)), look, settings).maps
    assert share.shape == (1, 1, *picture.shape[2:])
    weight = (share[0] / apart[0].clamp_min(1e-12)).flatten()
    order = (apart[0] / apart[1]).flatten().argsort()
    assert bool((weight[order].diff() >= -1e-4).all()) and weight.std() > 0
