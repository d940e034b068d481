"""What ComfyUI brings beside text, on transformers: Redux, pictures to fill or to follow, USO, skipped layers.

Conditionings are made by ComfyUI's own nodes. A style reference's row reads what its own prompt holds and nothing of
the run's, and a subject's words are found wherever other tokens have moved them.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import comfy.ops
import comfy.sd
import nodes
import pytest
import torch
from comfy.ldm.flux.redux import ReduxImageEncoder
from comfy_extras.nodes_model_patch import (
    QwenImageBlockWiseControlNet,
    QwenImageDiffsynthControlnet,
    SigLIPMultiFeatProjModel,
    USOStyleReference,
)
from node_helpers import conditioning_set_values
from style_case import assert_close, differ
from test_transformer_style import hidden, styled
from test_transformers import run
from tiny_transformers import cond, latent, tiny_transformer

import tiny
from conditional_balance.engine.subject import Phrase
from conditional_balance.runtime.attribution.find import ProbeSettings, find_subject
from conditional_balance.runtime.attribution.settings import AttributionSettings
from conditional_balance.runtime.attribution.subject import Subject
from conditional_balance.runtime.inject.reference import StyleReference
from conditional_balance.runtime.inject.remembered import STORE
from conditional_balance.runtime.profile.capture import capture

ITSELF = latent("flux", 5)["samples"]


def redux(prompt: Any, strength: float, how: str = "attn_bias", tokens: int = 9) -> Any:
    """What Apply Style Model makes of a prompt and a picture of so many tokens."""
    generator = torch.Generator().manual_seed(tokens)
    with torch.inference_mode():
        encoder = ReduxImageEncoder(8, 32)
        tiny._fill(encoder, 4)
        seen = SimpleNamespace(last_hidden_state=torch.randn(1, tokens, 8, generator=generator))
        model = comfy.sd.StyleModel(encoder)
        return nodes.StyleModelApply().apply_stylemodel(prompt, model, seen, strength, how)[0]


def uso(of: Any) -> Any:
    """The model under what USO Style Reference makes of a picture: six tokens before its text."""
    generator = torch.Generator().manual_seed(2)
    with torch.inference_mode():
        projector = SigLIPMultiFeatProjModel(20, 2, 8, 64, device="cpu", operations=comfy.ops.manual_cast)
        tiny._fill(projector, 4)
        states = torch.randn(1, 30, 20, 8, generator=generator)
        seen = SimpleNamespace(all_hidden_states=states, penultimate_hidden_states=states[:, -2])
        return USOStyleReference().apply_patch(of, tiny._patcher(projector), seen)[0]


def calls_of(of: Any, **options: Any) -> list[tuple[tuple[Any, ...], dict[str, Any], torch.Tensor]]:
    """Every call of the network in a step of one picture: its arguments and what it returned."""
    STORE.kept.clear()  # what an earlier test has left would make the reference's own call needless
    calls: list[Any] = []
    handle = of.model.diffusion_model.register_forward_hook(
        lambda module, args, kwargs, out: calls.append((args, kwargs, out.clone())), with_kwargs=True
    )
    try:
        run(of, "flux", **{"steps": 1, "batch": 1, "cfg": 1.0, **options})
    finally:
        handle.remove()
    return calls


def alone(of: Any, call: Any, prompt: Any, **options: Any) -> torch.Tensor:
    """The last row of a call as the network predicts it by itself under a prompt."""
    (text, about), *_ = prompt
    args, _, _ = call
    conds = of.model.extra_conds(cross_attn=text, noise=ITSELF, device="cpu", **about)
    own = {name: conds[name].cond for name in ("y", "guidance", "attention_mask") if name in conds}
    if "attention_mask" in own:
        own["attention_mask"] = own["attention_mask"].float()
    with torch.inference_mode():
        return of.model.diffusion_model(*(x[-1:] for x in args), context=text, transformer_options=options, **own)


WEIGHED = {
    "none of its own, shorter": (redux(cond("flux", 1), 0.5), cond("flux", 31, 9)),
    "none of its own, as long": (redux(cond("flux", 1), 0.5), cond("flux", 31, 22)),
    "none of its own, longer": (redux(cond("flux", 1), 0.5), cond("flux", 31, 40)),
    "its own alone": (cond("flux", 1), redux(cond("flux", 31), 0.2)),
    "its own, longer": (redux(cond("flux", 1), 0.5), redux(cond("flux", 31), 0.2, tokens=12)),
    "its own, shorter": (redux(cond("flux", 1), 0.5), redux(cond("flux", 31), 0.01, tokens=4)),
    "multiplied": (redux(cond("flux", 1), 0.5, "multiply"), redux(cond("flux", 31), 0.2, "multiply", 12)),
}


@pytest.mark.parametrize("remember", [True, False])
@pytest.mark.parametrize("case", WEIGHED)
def test_a_reference_sees_its_own_redux_tokens_and_weighs_no_others(case: str, remember: bool) -> None:
    """A picture's tokens are weighed by a mask as large as text and picture, which differs from prompt to prompt."""
    model, (positive, prompt) = tiny_transformer("flux"), WEIGHED[case]
    of = styled(model, reference=StyleReference(ITSELF, prompt), remember=remember)
    first, *_ = calls_of(of, positive=positive)
    assert_close(first[2][-1:], alone(model, first, prompt))


def test_both_prompts_under_redux_beside_a_longer_prompt_of_the_reference() -> None:
    """In the negative prompt's call too, whose text the reference's lengthens."""
    negative, reference = redux(cond("flux", 2), 0.3, tokens=5), hidden("flux", 40)
    of = styled(tiny_transformer("flux"), reference=reference, remember=False)
    out = run(of, "flux", positive=redux(cond("flux", 1), 0.5), negative=negative)
    assert bool(out.isfinite().all())


def test_pictures_under_redux_take_style_alike_beside_a_reference_and_behind_it() -> None:
    model, (positive, prompt) = tiny_transformer("flux"), WEIGHED["its own, longer"]
    reference = StyleReference(ITSELF, prompt)
    beside, behind = (
        run(styled(model, reference=reference, remember=remember), "flux", positive=positive)
        for remember in (True, False)
    )
    assert_close(behind, beside, 1e-3)
    assert differ(beside, run(model, "flux", positive=positive))


def to_follow(prompt: Any, **more: Any) -> Any:
    return conditioning_set_values(prompt, {"concat_latent_image": latent("flux", 7)["samples"], **more})


CONCATENATED = {
    "Canny and Depth": (32, {}),
    "Fill": (96, {"concat_mask": torch.zeros(1, 1, 80, 56)}),
}


@pytest.mark.parametrize("remember", [True, False])
@pytest.mark.parametrize("kind", CONCATENATED)
@pytest.mark.parametrize("own", ["no prompt", "a prompt"])
def test_a_reference_follows_no_picture_that_the_run_follows(kind: str, own: str, remember: bool) -> None:
    """Also where a prompt has an area, and the call shows a part of the picture."""
    channels, more = CONCATENATED[kind]
    model, seen = tiny_transformer("flux", in_channels=channels), []
    area, *_ = nodes.ConditioningSetArea().append(to_follow(cond("flux", 3), **more), 32, 48, 8, 16, 1.0)
    reference = StyleReference(ITSELF, cond("flux", 31) if own == "a prompt" else None)
    of = styled(model, reference=reference, remember=remember)
    for args, _, _ in calls_of(of, positive=[*to_follow(cond("flux", 1), **more), *area]):
        seen.append(args[0][-1, 16:])
        if not remember:
            assert args[0][0, 16:32].std() > 0.1  # the picture's own row still follows
    nothing = model.model.process_latent_in(torch.zeros(1))
    own_rows = [x for x in seen if x[:16].std() < 1e-6]
    assert len(own_rows) == 2 and {x.shape[-2:] for x in own_rows} == {(10, 7), (6, 4)}
    for x in own_rows:
        torch.testing.assert_close(x[:16], nothing.expand_as(x[:16]))
        assert bool((x[16:] == 1).all())  # all of it is to be painted


@pytest.mark.parametrize("remember", [True, False])
def test_a_reference_runs_along_under_uso_which_knows_one_row(remember: bool) -> None:
    """Its tokens are joined to one row's text: our rows meet them one by one."""
    model = uso(tiny_transformer("flux"))
    reference = hidden("flux", 20)
    plain = run(model, "flux", batch=1, cfg=1.0)
    call, *_ = calls_of(styled(model, reference=reference, remember=remember))
    patches = model.model_options["transformer_options"]["patches"]
    assert_close(call[2][-1:], alone(model, call, reference.prompt, patches=patches))
    two = StyleReference(latent("flux", 6)["samples"], cond("flux", 32, 9), previous=reference)
    for each in (reference, two):
        out = run(styled(model, reference=each, remember=remember), "flux", batch=1, cfg=1.0)
        assert bool(out.isfinite().all()) and differ(out, plain)


def test_pictures_are_measured_one_by_one_under_uso() -> None:
    pictures, found = latent("flux", 4, batch=3)["samples"], []
    with torch.inference_mode():
        for of in (uso(tiny_transformer("flux")), tiny_transformer("flux")):
            moments: list[Any] = []
            keep, level = (lambda _, one, moments=moments: moments.append(one)), torch.tensor([0.5])
            capture(of, pictures, cond("flux", 1), None, level, ("k",), 0, lambda count: None, keep)
            found.append([part.mean for part in moments[0].values()])
    assert all(x.shape[0] == 3 for x in found[0]) and differ(found[0][-1], found[1][-1])


def maps_of(of: Any, kind: str, prompt: Any, positions: tuple[int, ...]) -> torch.Tensor:
    asked = AttributionSettings("value_norm", "all", propagation=1)
    with torch.inference_mode():
        subject = Subject(prompt, (Phrase("fox", positions),))
        return find_subject(of, latent(kind, 4)["samples"], subject, ProbeSettings((0.5,)), asked).maps


@pytest.mark.parametrize("before", [True, False])
def test_a_subject_is_found_beside_tokens_that_a_patch_puts_before_or_behind_the_text(before: bool) -> None:
    """As USO puts its style before it: the map is that of the same text written out."""

    def joined(x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x[:, :4], x) if before else (x, x[:, :4]), 1)

    model, (text, about) = tiny_transformer("flux"), cond("flux", 1)[0]
    patched = model.clone()
    patched.set_model_post_input_patch(
        lambda args: {**args, "txt": joined(args["txt"]), "txt_ids": joined(args["txt_ids"])}
    )
    found = maps_of(patched, "flux", [[text, about]], (2, 3))
    more = 4 if before else 0
    expected = maps_of(model, "flux", [[joined(text), about]], (2 + more, 3 + more))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.max()))


def test_a_subject_of_flux_2_is_found_behind_the_padding_that_the_model_puts_before_its_prompt() -> None:
    """It lengthens every prompt to 512 tokens, at its beginning."""
    model, (text, about) = tiny_transformer("flux2"), cond("flux2", 1)[0]
    found = maps_of(model, "flux2", [[text, about]], (2, 3))
    more = 512 - text.shape[1]
    written = torch.nn.functional.pad(text, (0, 0, more, 0))
    expected = maps_of(model, "flux2", [[written, about]], (2 + more, 3 + more))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.max()))


def test_what_of_a_references_prompt_does_not_act_is_said(caplog: pytest.LogCaptureFixture) -> None:
    ranged, *_ = nodes.ConditioningSetTimestepRange().set_range(cond("flux", 31), 0.2, 1.0)
    prompts = {
        "holds 2 conditionings, and the reference runs under the first": cond("flux", 31) + cond("flux", 32, 20),
        "without its range of steps": ranged,
        "without its area": nodes.ConditioningSetArea().append(cond("flux", 31), 32, 48, 8, 16, 1.0)[0],
        "The picture to edit in 'prompt'": cond("flux", 31, reference_latents=[ITSELF]),
    }
    for says, prompt in prompts.items():
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            run(styled(tiny_transformer("flux"), reference=StyleReference(ITSELF, prompt)), "flux", steps=1)
        assert caplog.text.count(says) == 1
    caplog.clear()
    run(styled(tiny_transformer("flux"), reference=hidden("flux")), "flux", steps=1)
    assert not [message for message in caplog.messages if message.startswith("Style Injection")]


def test_a_subject_in_a_mixed_prompt_is_refused_with_the_cure() -> None:
    """Averaged, its words are no longer those; put behind another, they stand elsewhere; before it, they are found."""
    from conditional_balance.runtime.attribution.prompts import subject_prompts

    own, other = cond("flux", 1), cond("flux", 3, 7)
    subject, method = Subject(own, (Phrase("fox", (2, 3)),)), AttributionSettings("attention").way
    averaged, *_ = nodes.ConditioningAverage().addWeighted(own, other, 0.5)
    behind, before = (nodes.ConditioningConcat().concat(*pair)[0] for pair in ((other, own), (own, other)))
    for prompt in (averaged, behind):
        with pytest.raises(
            ValueError, match=r"not averaged with another, and before what Conditioning \(Concat\) adds"
        ):
            subject_prompts([{"cross_attn": prompt[0][0]}], subject, method)
    assert subject_prompts([{"cross_attn": before[0][0], "uuid": 0}], subject, method).texts == {0: 20}


def under_diffsynth(of: Any, pictures: int) -> Any:
    """Qwen-Image under what Qwen Image DiffSynth ControlNet makes of one picture or of two."""
    images = torch.stack([torch.full((80, 56, 3), value) for value in (0.2, 0.9)][:pictures])
    with torch.inference_mode():
        control = QwenImageBlockWiseControlNet(num_layers=3, dim=64, device="cpu", operations=comfy.ops.manual_cast)
        tiny._fill(control, 9)
        first = latent("qwen", 8)["samples"]
        vae = SimpleNamespace(
            encode=lambda image: first * image.mean((1, 2, 3)).view(-1, 1, 1, 1, 1),
            spacial_compression_encode=lambda: 8,
        )
        return QwenImageDiffsynthControlnet().diffsynth_controlnet(of, tiny._patcher(control), vae, images, 1.0)[0]


def test_a_control_of_a_picture_for_each_row_meets_no_row_of_a_reference() -> None:
    model = tiny_transformer("qwen")
    each, first = (styled(under_diffsynth(model, count), reference=hidden("qwen")) for count in (2, 1))
    out, same = (run(of, "qwen", batch=2, cfg=1.0) for of in (each, first))
    assert_close(out[0], same[0])
    assert differ(out[1], same[1])


def test_a_control_before_attention_meets_no_row_of_a_reference() -> None:
    """As LLLite for Anima, which is given what queries, keys and values are made of."""
    from conditional_balance.runtime.runs.model_patches import with_row_spared

    class Control:
        model_patch = object()

        def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **others: Any) -> dict[str, Any]:
            return {"q": q + others["vec"] + torch.tensor([[1.0], [2.0], [3.0], [4.0]]), "k": k, "v": v}

    options = with_row_spared({"patches": {"attn1_patch": [Control()]}}, 2, 2, added=True)
    (patch,) = options["patches"]["attn1_patch"]
    q, vec = torch.zeros(6, 1), torch.arange(6.0)[:, None]
    out = patch(q, q, q, vec=vec, pe=None)
    assert out["q"].flatten().tolist() == [1, 3, 0, 6, 8, 0] and torch.equal(out["k"], q)
