"""Attribution beside nodes that change attention's tokens, prompts that act only for a while, and new methods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from gradsam_case import blended, latest, run, subject_of
from style_case import HEIGHT, WIDTH, model
from test_style_among_nodes import tiling

from conditional_balance.runtime.attribution.find import ProbeSettings, find_subject
from conditional_balance.runtime.attribution.methods import METHODS, Method
from conditional_balance.runtime.attribution.methods.base import register
from conditional_balance.runtime.attribution.settings import AttributionSettings
from tiny import cond, latent


def find(of: Any, method: str, percent: float = 0.6, positive: Any = None, **settings: Any) -> Any:
    picture = latent(4, height=HEIGHT, width=WIDTH)["samples"]
    with torch.inference_mode():
        return find_subject(
            of, picture, subject_of(of), ProbeSettings((percent,)), AttributionSettings(method, **settings), positive
        )


# nodes that change tokens --------------------------------------------------------------------------------------------


def merged(of: Any) -> Any:
    from comfy_extras.nodes_tomesd import TomePatchModel

    return TomePatchModel.execute(of, 0.3).args[0]


def tiled(of: Any) -> Any:
    from comfy_extras.nodes_hypertile import HyperTile

    out = HyperTile.execute(of, 32, 2, 0, False)
    return getattr(out, "args", out)[0]  # a plain tuple in some versions


def halved(of: Any) -> Any:
    """Self-attention that sees every second place, as downsampling patches make it."""
    of = of.clone()
    of.set_model_attn1_patch(lambda q, k, v, extra: (q[:, ::2], k[:, ::2], v[:, ::2]))
    of.set_model_attn1_output_patch(lambda n, extra: n.repeat_interleave(2, 1))
    return of


CHANGED = {"ToMe": merged, "HyperTile": tiled, "halved": halved}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("change", CHANGED.values(), ids=list(CHANGED))
def test_changed_self_attention_leaves_propagation_out_and_says_so(change: Any, method: str) -> None:
    torch.manual_seed(0)
    found = find(change(model("sd15")), method, propagation=2)
    assert found.maps.isfinite().all() and found.maps.std() > 0
    assert "Propagation was left out at o11.0: another node, such as token merging or HyperTile" in found.note


@pytest.mark.parametrize("change", CHANGED.values(), ids=list(CHANGED))
def test_a_blend_runs_over_changed_self_attention(change: Any) -> None:
    kept, attribution = blended(change(model("sd15")), method="value_norm", propagation=2)
    assert run(kept).isfinite().all()
    assert ["Propagation was left out" in each.note for each in latest(attribution)] == [True, True]


def test_a_hypernetwork_changes_what_is_attended_to_and_no_more() -> None:
    """Keys and values of their own, for self- and cross-attention, in the places that the model's have."""
    of = model("sd15").clone()

    def shifted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]) -> Any:
        return q, k + 0.5 * k.flip(-1), v - 0.5 * v.flip(-1)

    of.set_model_attn1_patch(shifted)
    of.set_model_attn2_patch(shifted)
    for method in METHODS:
        found, plain = find(of, method, propagation=1), find(model("sd15"), method, propagation=1)
        assert (found.method, found.note) == (method, "")
        assert float((found.maps - plain.maps).abs().max()) > 1e-3


def only_at(layer: int | None, patch: Any) -> Any:
    """A patch at one block of the way up, or at all layers."""

    def at(*args: Any) -> Any:
        return patch(*args) if layer is None or args[-1]["block"] == ("output", layer) else args[:-1]

    return at


def merging_cross_attention(layer: int | None = None) -> Any:
    of = model("sd15").clone()
    of.set_model_attn2_patch(only_at(layer, lambda q, k, v, extra: (q[:, ::2], k, v)))
    grow = only_at(layer, lambda n, extra: (n.repeat_interleave(2, 1),))
    of.set_model_attn2_output_patch(lambda n, extra: grow(n, extra)[0])
    return of


@pytest.mark.parametrize("method", METHODS)
def test_changed_cross_attention_is_left_out_by_name_or_refused(method: str) -> None:
    found = find(merging_cross_attention(10), method, layers="o9-11")
    assert found.note == "Left out, as another node changes the rows or tokens there: o10.0."
    torch.testing.assert_close(found.maps, find(merging_cross_attention(10), method, layers="o9, o11").maps)
    with pytest.raises(ValueError, match=r"'layers' names layers whose rows or tokens another node changes \(o9.0, o1"):
        find(merging_cross_attention(), method, layers="o9-11")


@pytest.mark.parametrize("method", METHODS)
def test_tokens_behind_the_text_are_other_nodes_own(method: str) -> None:
    """Four tokens of a picture behind the prompt's 77, as adapters append them in an attn2 patch."""
    of = model("sd15").clone()

    def appended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]) -> Any:
        more = -100 * torch.ones_like(k[:, :4])
        return q, torch.cat((k, more), 1), torch.cat((v, 0 * more), 1)

    of.set_model_attn2_patch(appended)
    found = find(of, method)
    assert (found.method, found.note) == (method, "") and found.maps.std() > 0


# prompts that act for a while ----------------------------------------------------------------------------------------


def ranged(prompt: Any, start: float, end: float) -> Any:
    return [[text, {**options, "start_percent": start, "end_percent": end}] for text, options in prompt]


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "another after it"])
@pytest.mark.parametrize("method", METHODS)
def test_a_window_where_the_subjects_prompt_does_not_act_is_refused(method: str, alone: bool) -> None:
    of = model("sd15")
    positive = ranged(cond(of, 1), 0.0, 0.4) + ([] if alone else ranged(cond(of, 7), 0.4, 1.0))
    says = r"'windows': 0.6-0.9 lies where the prompt of 'fox' does not act \(it acts from 0 to 0.4 of the schedule\)"
    kept, attribution = blended(of, "0.1-0.3, 0.6-0.9", method=method)
    with pytest.raises(ValueError, match=says):
        run(kept, positive=positive, steps=10)
    with pytest.raises(ValueError, match=r"'noise_levels': 0.6 lies where the prompt of 'fox' does not act"):
        find(of, method, 0.6, positive)
    kept, attribution = blended(of, "0.1-0.3, 0.31-0.9", method=method)  # opens while the prompt acts
    run(kept, positive=positive, steps=10)
    assert [each.note for each in latest(attribution)] == ["", ""]


@pytest.mark.parametrize(("start", "end"), [(0.7, 1.0), (0.0, 0.1)])
def test_a_prompt_that_begins_later_or_has_ended_is_told(start: float, end: float) -> None:
    of = model("sd15")
    positive = ranged(cond(of, 1), start, end) + cond(of, 7)
    with pytest.raises(ValueError, match=rf"'windows': 0.3 lies where .* from {start:g} to {end:g} of"):
        run(blended(of, "0.3")[0], positive=positive, steps=10)


def test_a_prompt_in_two_ranges_may_act_in_either() -> None:
    of = model("sd15")
    positive = ranged(cond(of, 1), 0.0, 0.2) + ranged(cond(of, 1), 0.5, 1.0)
    kept, attribution = blended(of, "0.1, 0.6-0.9", method="value_norm")
    run(kept, positive=positive, steps=10)
    assert [each.note for each in latest(attribution)] == ["", ""]
    with pytest.raises(ValueError, match=r"it acts from 0 to 0.2 and from 0.5 to 1 of the schedule"):
        run(blended(of, "0.3")[0], positive=positive, steps=10)


# one method, one class -----------------------------------------------------------------------------------------------


@pytest.fixture
def new_method() -> Iterator[str]:
    @register
    class Even(Method):
        name: ClassVar[str] = "even"
        about: ClassVar[str] = "the same everywhere."

        def maps(self, question: Any) -> torch.Tensor:
            x = question.predict(lambda call: call.output)
            return x.new_ones(len(question.phrases), len(x), *x.shape[2:])

    yield Even.name
    del METHODS[Even.name]


def test_a_registered_method_is_offered_described_checked_and_run(new_method: str) -> None:
    from conditional_balance.nodes.gradsam import CBGradSAMBlend, CBGradSAMMask

    for node in (CBGradSAMMask, CBGradSAMBlend):
        (widget,) = (each for each in node.define_schema().inputs if each.id == "method")
        assert widget.options == list(METHODS) and "even: the same everywhere." in widget.tooltip
    found = find(model("sd15"), new_method)
    assert found.method == "even" and float(found.maps.std()) == 0
    with pytest.raises(ValueError, match=r"choose one of .*even"):
        AttributionSettings("odd")


def test_two_methods_of_one_name_are_refused(new_method: str) -> None:
    with pytest.raises(ValueError, match="Two attribution methods are called 'even'"):
        register(type(METHODS[new_method]))


# nodes that call the model in tiles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_subject_is_found_where_the_model_is_called_in_tiles(method: str) -> None:
    """One call with all tiles, or one for each: nothing is read off one tile for the whole."""
    together, apart = (find(tiling(model("sd15"), joined), method, propagation=1) for joined in (True, False))
    spread = float((together.maps - apart.maps).abs().max() / apart.maps.max())
    assert together.method == apart.method == "jvp" and spread < 0.01
    assert together.maps.std() > 0.1 * together.maps.mean()
    assert (f"{method} cannot tell where tiles lie" in together.note) == (method != "jvp")
    assert "Propagation was left out: the model is called on parts of the picture." in together.note


def test_tiles_of_several_pictures_and_prompts() -> None:
    of = model("sd15")
    for case in ({"cfg": 1.0}, {"batch": 2}, {"positive": cond(of, 1) + cond(of, 7)}):
        together, apart = (latest_maps(blended(tiling(of, joined), method="jvp"), **case) for joined in (True, False))
        torch.testing.assert_close(together, apart, rtol=0.05, atol=0.01 * float(apart.max()))


def latest_maps(blend: Any, **case: Any) -> torch.Tensor:
    kept, attribution = blend
    run(kept, **case)
    return torch.stack([each.maps for each in latest(attribution)])
