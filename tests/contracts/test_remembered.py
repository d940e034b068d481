"""A reference that is painted from again costs less, and not one bit is another for it."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any
from uuid import uuid4

import comfy.model_management
import pytest
import torch
from comfy.model_management import OOM_EXCEPTION
from comfy.patcher_extension import WrappersMP
from comfy_execution.utils import CurrentNodeContext
from style_case import (
    KINDS,
    assert_close,
    assert_same_traces,
    differ,
    empty,
    free_memory,
    gate,
    hidden,
    model,
    run,
    tiny_controlnet,
    traces,
    with_control,
)
from test_transformer_style import hidden as hidden_of
from test_transformers import EVERY
from test_transformers import run as run_transformer
from tiny_transformers import tiny_transformer

from conditional_balance.engine.brought import Brought
from conditional_balance.engine.style import StyleSettings
from conditional_balance.nodes.style import CBStyleInjection
from conditional_balance.nodes.trajectory import CBRecordTrajectory
from conditional_balance.runtime.inject import remembered
from conditional_balance.runtime.inject.reference import StyleReference
from conditional_balance.runtime.inject.remembered import STORE
from conditional_balance.runtime.inject.style import StyleInjection, inject_style
from conditional_balance.runtime.runs.notices import told_in
from tiny import cond, tiny_model


def styled(of: Any, reference: StyleReference, layers: str = "all", remember: bool = True, **settings: Any) -> Any:
    injection = StyleInjection(gate(layers), reference, StyleSettings(**settings), remember=remember)
    return inject_style(of, injection)


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    STORE.kept.clear()


class Calls:
    """Rows of every call of a network inside the block."""

    def __init__(self, of: Any) -> None:
        self.network, self.rows = of.model.diffusion_model, list[int]()

    def __enter__(self) -> list[int]:
        self.handle = self.network.register_forward_hook(lambda module, args, out: self.rows.append(len(out)))
        return self.rows

    def __exit__(self, *error: Any) -> None:
        self.handle.remove()


def rows_of(of: Any, injected: Any, **options: Any) -> tuple[torch.Tensor, list[int]]:
    with Calls(of) as rows:
        return run(injected, **{"batch": 1, **options}), rows


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_seed_runs_without_the_reference_to_the_bit(kind: str) -> None:
    of = model(kind)
    reference = hidden(of)
    cold, rows = rows_of(of, styled(of, reference), seed=2)
    assert rows == [2, 2] * 2  # the reference's, the picture's
    other, rows = rows_of(of, styled(of, reference), seed=3)
    assert rows == [2] * 2 and differ(other, cold)
    warm, rows = rows_of(of, styled(of, reference), seed=2)
    assert rows == [2] * 2 and torch.equal(warm, cold)
    along, rows = rows_of(of, styled(of, reference, remember=False), seed=2)
    assert rows == [4] * 2
    assert_close(warm, along)


@pytest.mark.parametrize("kind", EVERY)
def test_transformers_too(kind: str) -> None:
    of = tiny_transformer(kind)
    cold, warm, along = (
        run_transformer(styled(of, hidden_of(kind), remember=remember), kind) for remember in (True, True, False)
    )
    assert torch.equal(warm, cold)
    assert_close(warm, along)


def kept_calls() -> int:
    return sum(map(len, STORE.kept.values()))


def turned(reference: StyleReference) -> StyleReference:
    assert reference.latent is not None
    return replace(reference, latent=reference.latent.flip(-1))


def times(reference: StyleReference, factor: float) -> StyleReference:
    assert reference.latent is not None
    return replace(reference, latent=factor * reference.latent)


CHANGED: dict[str, Any] = {
    "another picture": lambda of: {"reference": turned(hidden(of))},
    "another prompt of the reference": lambda of: {"reference": replace(hidden(of), prompt=cond(of, 32))},
    "another negative prompt": lambda of: {"negative": cond(of, 3)},
    "another schedule": lambda of: {"scheduler": "karras"},
    "without guidance": lambda of: {"cfg": 1.0},
    "another size": lambda of: {"latent": empty(1, 16, 16)},
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGED)
def test_what_the_reference_depends_on_is_seen(what: str) -> None:
    """After a run with something else, a run gives what it gives when nothing is kept."""
    of = model("sdxl")
    run(styled(of, hidden(of)), batch=1)
    changed = CHANGED[what](of)
    reference = changed.pop("reference", hidden(of))
    after, rows = rows_of(of, styled(of, reference), **changed)
    assert len(rows) > 2  # its first call has the same noise level in all but one of these
    STORE.kept.clear()
    assert torch.equal(after, run(styled(of, reference), **{"batch": 1, **changed}))


def test_other_weights_are_seen() -> None:
    of = tiny_model("sd15")
    reference = hidden(of)
    run(styled(of, reference), batch=1)
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_k.weight"
    patched = of.clone()
    patched.add_patches({key: ("diff", (torch.ones_like(of.model.state_dict()[key]),))}, 0.1)
    found, rows = rows_of(of, styled(patched, reference))
    assert rows == [2, 2] * 2
    STORE.kept.clear()
    assert torch.equal(found, run(styled(patched, reference), batch=1))


def test_another_sampling_is_seen() -> None:
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    of = tiny_model("sd15")
    reference = hidden(of)
    run(styled(of, reference), batch=1, steps=1)
    (other,) = ModelSamplingDiscrete().patch(of, "v_prediction", False)
    found, rows = rows_of(of, styled(other, reference), steps=1)
    assert rows == [2, 2]
    STORE.kept.clear()
    assert torch.equal(found, run(styled(other, reference), batch=1, steps=1))


def test_batches_and_other_gates_share_what_is_kept() -> None:
    of = model("sdxl")
    reference = hidden(of)
    run(styled(of, reference), batch=1)
    for settings in ({"layers": "o0-2"}, {"share": 0.5}, {"adain_v": True, "strength": 0.5}, {"share": 0.0}):
        warm, rows = rows_of(of, styled(of, reference, **settings), batch=3)
        assert rows == [6] * 2
        STORE.kept.clear()
        assert torch.equal(warm, run(styled(of, reference, **settings)))
        run(styled(of, reference), batch=1)
    _, rows = rows_of(of, styled(of, reference, "i"), batch=1)
    assert rows == [2] * 2


def test_layers_that_are_missing_are_added() -> None:
    of = model("sdxl")
    reference = hidden(of)
    run(styled(of, reference, "o0"), batch=1)
    _, rows = rows_of(of, styled(of, reference, "o0-2"))
    assert rows == [2, 2] * 2
    _, rows = rows_of(of, styled(of, reference, "o0-2"))
    assert rows == [2] * 2 and kept_calls() == 2


def patched_inside(of: Any) -> Any:
    other = of.clone()
    other.set_model_attn1_patch(lambda q, k, v, options: (q, k, v))
    return other


def replaced_inside(of: Any) -> Any:
    from comfy.ldm.modules.attention import optimized_attention

    other = of.clone()
    other.set_model_attn2_replace(
        lambda q, k, v, options: optimized_attention(q, k, v, options["n_heads"]), "middle", 0
    )
    return other


def overridden_inside(of: Any) -> Any:
    other = of.clone()
    override = {"optimized_attention_override": lambda attend, *args, **kwargs: attend(*args, **kwargs)}
    other.model_options["transformer_options"].update(override)
    return other


def wrapped_inside(of: Any) -> Any:
    other = of.clone()
    other.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "other", lambda executor, *args, **kw: executor(*args, **kw))
    return other


def wrapped_by_us(of: Any) -> Any:
    return styled(of, turned(hidden(of)), "m", remember=False)


@pytest.mark.parametrize(
    "disturbed", [patched_inside, replaced_inside, overridden_inside, wrapped_inside, wrapped_by_us]
)
def test_with_others_inside_it_rides_along_as_always(disturbed: Any) -> None:
    of = model("sd15")
    other = disturbed(of)
    found, rows = rows_of(of, styled(other, hidden(of)))
    assert rows == [6 if disturbed is wrapped_by_us else 4] * 2 and not kept_calls()
    assert torch.equal(found, run(styled(other, hidden(of), remember=False), batch=1))


@pytest.mark.parametrize("change", [{"mask": torch.ones(8, 8)}, {"strength": -0.3}])
def test_references_that_act_in_other_ways_ride_along(change: dict[str, Any]) -> None:
    of = model("sd15")
    reference = replace(hidden(of), **change)
    _, rows = rows_of(of, styled(of, reference))
    assert rows == [4] * 2 and not kept_calls()
    both = replace(hidden(of), previous=turned(hidden(of)))
    _, rows = rows_of(of, styled(of, both))
    assert rows == [6] * 2 and not kept_calls()


def test_loras_of_one_prompt_ride_along() -> None:
    from comfy.hooks import HookGroup, WeightHook

    of = tiny_model("sd15")
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_k.weight"
    hook = WeightHook(1.0, 0.0)
    hook.weights, hook.need_weight_init = {key: ("diff", (torch.ones_like(of.model.state_dict()[key]),))}, False
    hooks = HookGroup()
    hooks.add(hook)
    [[text, extra]] = cond(of, 1)
    found, rows = rows_of(of, styled(of, hidden(of)), positive=[[text, {**extra, "hooks": hooks}]])
    assert 4 not in rows and len(rows) >= 4  # the prompts run in calls of their own
    again, _ = rows_of(of, styled(of, hidden(of)), positive=[[text, {**extra, "hooks": hooks}]])
    assert torch.equal(again, found) and bool(found.isfinite().all())


def test_controlnets_areas_split_calls_and_trajectories(monkeypatch: pytest.MonkeyPatch) -> None:
    of = model("sd15")
    positive, negative = with_control(tiny_controlnet("sd15"), cond(of, 1), cond(of, 2))
    area = {"area": (8, 8, 0, 8), "strength": 1.0}
    recording, trajectories = CBRecordTrajectory.execute(of).args
    way = trajectories.of(run(recording, batch=1))
    cases = (
        (hidden(of), {"positive": positive, "negative": negative}),
        (hidden(of), {"positive": [*cond(of, 1), [cond(of, 3)[0][0], area]]}),
        (StyleReference(trajectory=way, prompt=cond(of, 31)), {}),
        (StyleReference(hidden(of).latent), {"sampler": "dpmpp_2m_sde"}),
    )
    for free in (None, 0):
        if free is not None:
            free_memory(monkeypatch, free)
        for reference, options in cases:
            STORE.kept.clear()
            remembering = styled(of, reference), styled(of, reference), styled(of, reference, remember=False)
            cold, warm, along = (run(each, **{"batch": 2, **options}) for each in remembering)
            assert torch.equal(warm, cold)
            assert_close(warm, along)


def test_memory_is_bounded_and_this_runs_own_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    of = model("sd15")
    run(styled(of, hidden(of)), batch=1, steps=4)
    ((one, *_),) = STORE.kept.values()
    size = one.taken[torch.device("cpu")]
    STORE.kept.clear()
    monkeypatch.setattr(remembered, "MOST", 2.5 * size)
    _, rows = rows_of(of, styled(of, hidden(of)), steps=4)
    _, rows = rows_of(of, styled(of, hidden(of)), steps=4)
    assert kept_calls() == 2 and rows == [2, 2, 2, 2, 2, 2]  # two levels are kept, two run again
    other = turned(hidden(of))
    _, rows = rows_of(of, styled(of, other), steps=4)
    _, rows = rows_of(of, styled(of, other), steps=4)
    assert kept_calls() == 2 and rows == [2, 2, 2, 2, 2, 2]  # the older reference made room
    monkeypatch.setattr(remembered, "MOST", 0)
    STORE.kept.clear()
    found = run(styled(of, hidden(of)), batch=1)
    assert not kept_calls()
    monkeypatch.undo()
    assert torch.equal(found, run(styled(of, hidden(of)), batch=1))


def test_the_reference_used_last_stays_where_room_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    of = model("sd15")
    first, second, third = hidden(of), turned(hidden(of)), times(hidden(of), 2)
    run(styled(of, first), batch=1)
    ((one, *_),) = STORE.kept.values()
    monkeypatch.setattr(remembered, "MOST", 4.5 * one.taken[torch.device("cpu")])  # two references, two calls each
    for reference in (second, first, third):
        run(styled(of, reference), batch=1)
    _, rows = rows_of(of, styled(of, first))
    assert rows == [2] * 2 and kept_calls() == 4


def test_options_of_other_nodes_are_compared_by_what_they_say() -> None:
    of = model("sd15")

    def with_option(value: str) -> Any:
        told = of.clone()
        told.model_options["transformer_options"]["another_nodes"] = value
        return styled(told, hidden(of))

    for value, expected in (("ink", [2, 2] * 2), ("".join("ink"), [2] * 2), ("oil", [2, 2] * 2)):
        assert rows_of(of, with_option(value))[1] == expected


def test_a_long_list_of_kept_calls_is_not_compared_tensor_by_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor added up layer by layer: what a call costs would grow with all that was painted before."""
    of, looked = model("sd15"), []
    for number in range(6):
        run(styled(of, times(hidden(of), 1 + number / 8)), batch=1, steps=3)
    assert kept_calls() == 18
    monkeypatch.setattr(torch, "equal", lambda one, other, equal=torch.equal: looked.append(1) or equal(one, other))
    monkeypatch.setattr(
        Brought, "bytes", property(lambda self, whole=Brought.bytes: looked.append(2) or whole.fget(self))
    )
    layers = len(STORE.kept[of.model.diffusion_model][0].brought)
    run(styled(of, times(hidden(of), 2)), batch=1, steps=3)
    assert kept_calls() == 21 and looked.count(2) == 2 * layers * 3  # to make room, and to keep
    assert looked.count(1) <= 4 * 3  # what each is given, with what the call before it was
    looked.clear()
    run(styled(of, times(hidden(of), 2)), batch=1, steps=3)
    assert kept_calls() == 21 and 0 < len(looked) <= 12 * 3  # of the three that are the same


def test_a_text_that_all_steps_share_is_kept_once() -> None:
    """Each step's call brings a copy of its own, of 8 MB where T5 wrote it."""
    of = model("sd15")
    run(styled(of, hidden(of)), batch=1, steps=3)
    calls = [each.given[1] for each in STORE.kept[of.model.diffusion_model]]
    assert len({id(call[0]) for call in calls}) == 3 and len({id(call[3]) for call in calls}) == 1  # x and text


def test_it_is_given_back_with_the_model() -> None:
    of = tiny_model("sd15")
    run(of, batch=1)
    injected, before = styled(of, hidden(of)), traces(of)
    run(injected, batch=1)
    assert_same_traces(before, traces(of))
    assert kept_calls()
    run(of, batch=1)  # another clone of the model takes its place
    assert kept_calls()
    run(injected, batch=1)
    comfy.model_management.unload_all_models()
    assert not kept_calls()
    run(injected, batch=1)
    assert kept_calls()
    del of, injected, before
    gc.collect()
    assert not kept_calls()


def test_a_cancelled_run_keeps_nothing_half() -> None:
    of = model("sd15")
    handle = of.model.diffusion_model.output_blocks[5][0].register_forward_pre_hook(lambda *args: 1 / 0)
    try:
        with pytest.raises(ZeroDivisionError):
            run(styled(of, hidden(of)), batch=1)
    finally:
        handle.remove()
    assert not kept_calls()


def failing(of: Any, problem: Exception, *failed: int) -> Any:
    """A network whose calls of these numbers end half way."""
    begun: list[Any] = []

    def fail(*args: Any) -> None:
        begun.append(args)
        if len(begun) - 1 in failed:
            raise problem

    return of.model.diffusion_model.output_blocks[5][0].register_forward_pre_hook(fail)


@pytest.mark.parametrize("failed", [0, 1, 2, 3])  # the reference's and the picture's, of the first step and the next
def test_where_memory_runs_out_the_reference_rides_along(failed: int) -> None:
    """Its keys of all open layers are held at once; in the pictures' calls those of one layer are."""
    of = model("sd15")
    along = run(styled(of, hidden(of), remember=False), batch=1)
    prompt = uuid4().hex
    with CurrentNodeContext(prompt, "9"):
        injected = styled(of, hidden(of))
    handle = failing(of, OOM_EXCEPTION("Allocation on device"), failed)
    try:
        with CurrentNodeContext(prompt, "11"):
            found, rows = rows_of(of, injected)
    finally:
        handle.remove()
    assert rows == [[4, 4], [2, 4, 4], [2, 2, 4], [2, 2, 2, 4]][failed] and not kept_calls()
    assert_close(found, along)
    (told,) = told_in(prompt)[-1].texts
    assert told.startswith("Memory ran out with what the reference brings")
    assert "'" not in told  # Style from Picture and Layer Contrast say it too, and have no such input
    assert rows_of(of, injected)[1] == [2, 2] * 2  # the next run tries again


@pytest.mark.parametrize("problem", [OOM_EXCEPTION("Allocation on device"), RuntimeError("another reason")])
def test_memory_that_does_not_suffice_either_way_and_other_errors_end_the_run(problem: Exception) -> None:
    of = model("sd15")
    handle = failing(of, problem, 0, 1)
    try:
        with pytest.raises(type(problem), match=str(problem)):
            run(styled(of, hidden(of)), batch=1)
    finally:
        handle.remove()
    assert not kept_calls()


def test_the_node_turns_it_off() -> None:
    of = model("sd15")
    (injected,) = CBStyleInjection.execute(of, gate("all"), 1.0, 1.0, 0.0, 1.0, hidden(of), remember=False).args
    _, rows = rows_of(of, injected)
    assert rows == [4] * 2
    (injected,) = CBStyleInjection.execute(of, gate("all"), 1.0, 1.0, 0.0, 1.0, hidden(of)).args
    _, rows = rows_of(of, injected)
    assert rows == [2, 2] * 2
