"""What stands in the way of a condition is named: which layers, and whose function."""

from __future__ import annotations

import functools
import logging
import types
from typing import Any
from unittest import mock

import comfy.ldm.flux.model as flux_model
import pytest
import torch
from comfy.ldm.modules import attention
from style_case import differ, gate, model, run, styled
from test_transformer_style import hidden as hidden_of
from test_transformers import run as run_transformer
from tiny_transformers import cond as transformer_cond
from tiny_transformers import latent as transformer_latent
from tiny_transformers import tiny_transformer

from conditional_balance.engine.subject import Phrase
from conditional_balance.runtime.attribution.find import ProbeSettings, find_subject
from conditional_balance.runtime.attribution.settings import AttributionSettings
from conditional_balance.runtime.attribution.subject import Subject
from conditional_balance.runtime.inject.layer_prompt import LayerPrompt, prompt_layers
from conditional_balance.runtime.runs.loaded import own_classes
from conditional_balance.runtime.runs.whose import whose
from tiny import cond


def of_pack(function: Any, module: str = "/comfy/custom_nodes/Some_Pack.attention") -> Any:
    """A function as if a custom node had brought it: ComfyUI names a pack's modules by its folder."""
    made = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, function.__closure__)
    made.__module__, made.__qualname__ = module, function.__name__
    return made


def told(caplog: pytest.LogCaptureFixture, word: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if word in record.getMessage()]


def test_names_of_functions_methods_partials_and_objects() -> None:
    def replaced() -> None: ...

    assert whose(of_pack(replaced)) == "replaced of Some_Pack"
    assert whose(functools.partial(of_pack(replaced, r"C:\comfy\custom_nodes\My_x_0_x_1\x"))) == "replaced of My.0.1"
    assert whose(of_pack(replaced, "comfy_extras.nodes_pag")) == "replaced of ComfyUI's nodes_pag"
    assert whose(of_pack(replaced, "conditional_balance.runtime.x")) == "another node of Conditional Balance"
    assert whose(of_pack(lambda: None)) == "a function of Some_Pack"
    assert whose(types.MethodType(of_pack(replaced), object())) == "replaced of Some_Pack"
    assert whose(torch.nn.Identity()) == "Identity of torch"
    assert whose("text".upper).startswith("str.upper of")


def test_a_forward_that_another_pack_has_set_is_named(caplog: pytest.LogCaptureFixture) -> None:
    of = model("sd15")
    block = of.model.diffusion_model.output_blocks[5][1].transformer_blocks[0]

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return x

    block.forward = of_pack(forward)
    try:
        with caplog.at_level(logging.WARNING):
            run(styled(of))
    finally:
        del block.forward
    (sentence,) = told(caplog, "never ran")
    assert sentence.endswith("o5.0 was selected but never ran, because forward of Some_Pack stands in the way.")


def test_a_replaced_block_of_a_transformer_is_named(caplog: pytest.LogCaptureFixture) -> None:
    of, reference = tiny_transformer("flux").clone(), hidden_of("flux")

    def block(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        return {"img": args["img"], "txt": args["txt"]}

    of.set_model_patch_replace(of_pack(block), "dit", "double_block", 1)
    with caplog.at_level(logging.WARNING):
        run_transformer(styled(of, reference=reference), "flux")
    (sentence,) = told(caplog, "never ran")
    assert "j1 was selected but never ran, because block of Some_Pack" in sentence


@pytest.mark.parametrize("heeds", [True, False])
@pytest.mark.parametrize("kind", ["sd15", "flux"])
def test_an_override_that_leaves_masks_out_is_set_aside_where_one_is_needed(
    heeds: bool, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As packs put SageAttention in place: half a share would become a whole one without a word."""
    masks = []

    def sage(attend: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        masks.append(kwargs.get("mask") is not None)
        return attend(*args, **kwargs if heeds else {**kwargs, "mask": None})

    def half(of: Any) -> torch.Tensor:
        if kind == "sd15":
            return run(styled(of, share=0.5))
        return run_transformer(styled(of, reference=hidden_of(kind), share=0.5), kind)

    plain = model(kind) if kind == "sd15" else tiny_transformer(kind)
    other = plain.clone()
    other.model_options["transformer_options"]["optimized_attention_override"] = of_pack(sage)
    with caplog.at_level(logging.WARNING):
        found = half(other)
    torch.testing.assert_close(found, half(plain), rtol=0, atol=1e-3)  # a kept reference differs by rounding
    assert len(told(caplog, "sage of Some_Pack leaves masks out")) == (not heeds)
    assert masks.count(False) and (masks.count(True) > 1) == heeds  # one is how it is found out


class _Bare(torch.nn.Module):
    """A block that holds nothing of what it stands for."""

    def forward(self, img: torch.Tensor, txt: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        return img, txt


def test_a_block_that_an_object_patch_has_put_in_place_is_named(caplog: pytest.LogCaptureFixture) -> None:
    of = tiny_transformer(
        "flux", seed=77
    ).clone()  # its own: ComfyUI leaves an object patch in place until another model is loaded
    reference = hidden_of("flux")
    of.add_object_patch("diffusion_model.double_blocks.1", _Bare())
    with caplog.at_level(logging.WARNING):
        run_transformer(styled(of, reference=reference), "flux")
    (sentence,) = told(caplog, "never ran")
    assert "j1 was selected but never ran, because" in sentence and "_Bare" in sentence


def test_an_attention_that_takes_no_more_keys_is_named(caplog: pytest.LogCaptureFixture) -> None:
    of = model("sd15").clone()

    def perturbed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        return v

    of.set_model_attn1_replace(of_pack(perturbed), "output", 5)
    with caplog.at_level(logging.WARNING):
        run(styled(of))
    (sentence,) = told(caplog, "shared no attention")
    assert "o5.0" in sentence and "perturbed of Some_Pack" in sentence


def test_a_text_that_is_put_over_the_layer_prompts_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Attention couple hands its own texts on; a hypernetwork changes what it is given, and ours comes through."""
    of, own = model("sd15"), cond(model("sd15"), 9)[0][0]
    prompt = LayerPrompt(gate("o"), cond(of, 7)[0][0])

    def coupled(n: torch.Tensor, context: torch.Tensor, value: Any, options: dict[str, Any]) -> Any:
        return n, own.expand(len(n), -1, -1), None

    def hypernetwork(n: torch.Tensor, context: torch.Tensor, value: Any, options: dict[str, Any]) -> Any:
        return n, 1.1 * context, value

    for patch, count in ((of_pack(coupled), 1), (of_pack(hypernetwork), 0)):
        patched = of.clone()
        patched.set_model_attn2_patch(patch)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = run(prompt_layers(patched, prompt))
        assert len(told(caplog, "coupled of Some_Pack")) == count
        assert differ(found, run(patched)) == (not count)
    both = prompt_layers(prompt_layers(of, prompt), LayerPrompt(gate("o"), own))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        run(both)
    assert len(told(caplog, "another node of Conditional Balance")) == 1


# Classes that another pack gives the model's modules while it samples ------------------------------------------------


class Deaf(flux_model.Flux):
    """Flux with attention of its own, as RES4LYF's model patchers make it by object patches."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        def attend(*args: Any, transformer_options: Any, **kwargs: Any) -> torch.Tensor:
            return attention.attention_pytorch(*args, **kwargs)

        with mock.patch("comfy.ldm.flux.math.optimized_attention", attend):
            return super().forward(*args, **kwargs)


def deafened(of: Any) -> Any:
    clone = of.clone()
    clone.add_object_patch("diffusion_model.__class__", Deaf)
    return clone


def test_what_a_model_is_does_not_depend_on_what_was_loaded_last(caplog: pytest.LogCaptureFixture) -> None:
    of, reference = tiny_transformer("flux"), hidden_of("flux")
    alone = run_transformer(styled(of, reference=reference), "flux")
    theirs = run_transformer(deafened(of), "flux")
    assert type(of.model.diffusion_model) is Deaf  # and stays so until a clone without it is loaded
    with caplog.at_level(logging.WARNING):
        both = styled(deafened(of), reference=reference)
        assert torch.equal(run_transformer(both, "flux"), theirs)
        ours = styled(of, reference=reference)
    assert type(of.model.diffusion_model) is Deaf
    (sentence,) = told(caplog, "never ran")
    assert sentence.endswith("because Deaf.forward of test_whose stands in the way.")
    assert torch.equal(run_transformer(ours, "flux"), alone)
    assert type(of.model.diffusion_model) is flux_model.Flux


def test_a_class_that_cannot_be_put_back_leaves_all_modules_as_they_were() -> None:
    of = tiny_transformer("flux")
    run_transformer(deafened(of), "flux")
    of.object_patches_backup["diffusion_model.gone_since.__class__"] = flux_model.Flux
    with pytest.raises(AttributeError, match="gone_since"), own_classes(of):
        pass
    assert type(of.model.diffusion_model) is Deaf
    del of.object_patches_backup["diffusion_model.gone_since.__class__"]
    with pytest.raises(ZeroDivisionError), own_classes(of):
        assert type(of.model.diffusion_model) is flux_model.Flux
        raise ZeroDivisionError
    assert type(of.model.diffusion_model) is Deaf
    run_transformer(of, "flux")
    assert type(of.model.diffusion_model) is flux_model.Flux


def test_a_subject_behind_such_classes_is_refused_by_name() -> None:
    of, picture = deafened(tiny_transformer("flux")), transformer_latent("flux", 4)["samples"]
    asked = Subject(transformer_cond("flux", 1), (Phrase("fox", (2, 3)),)), ProbeSettings((0.5,)), AttributionSettings()
    named = r"replaces or skips them \(Deaf.forward of test_whose\); choose others, or bypass it."
    with torch.inference_mode(), pytest.raises(ValueError, match=named):
        find_subject(of, picture, *asked)
    run_transformer(tiny_transformer("flux"), "flux")
