"""The structure nodes and Combine Profiles as the server calls them, and the ablation on real models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management
import pytest
import torch
from style_case import HEIGHT, KINDS, WIDTH, differ, model, run, tiny_controlnet
from test_control import applied, controlled, everything, profile_of, weighed

from conditional_balance.engine.ablation import SlotAblation
from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.engine.scoring import Scores
from conditional_balance.nodes.profile import CBCombineProfiles
from conditional_balance.nodes.structure import NODES
from conditional_balance.runtime.profile.ablation import ablate_slots
from tiny import cond, latent

BY_ID = {node.define_schema().node_id: node for node in [*NODES, CBCombineProfiles]}


def call(node_id: str, **inputs: Any) -> tuple[Any, ...]:
    """Execute a node as the server does: every widget that is not given has its default."""
    schema = BY_ID[node_id].GET_SCHEMA()
    defaults = {each.id: each.default for each in schema.inputs if getattr(each, "default", None) is not None}
    with torch.inference_mode():
        return BY_ID[node_id].execute(**{**defaults, **inputs}).args


def ablated(of: Any, prompts: dict[str, Any], sigmas: list[float], on_pass: Any = lambda: None) -> SlotAblation:
    pictures = latent(3, batch=2, height=HEIGHT, width=WIDTH)["samples"]
    with torch.inference_mode():
        return ablate_slots(of, pictures, prompts["positive"], torch.tensor(sigmas), 0, on_pass)


@pytest.mark.parametrize("node_id", BY_ID)
def test_schemas_speak_to_people(node_id: str) -> None:
    schema = BY_ID[node_id].GET_SCHEMA()
    assert schema.category.startswith("conditional balance/")
    assert schema.description.endswith(".")
    for socket in (*schema.inputs, *schema.outputs):
        assert socket.tooltip and socket.tooltip.endswith("."), socket


def test_ids_sockets_and_the_papers_number_are_those_promised() -> None:
    assert set(BY_ID) == {"CBGateControlNet", "CBProfileControlSlots", "CBCombineProfiles"}
    gate = BY_ID["CBGateControlNet"].GET_SCHEMA()
    assert [each.io_type for each in gate.outputs] == ["CONTROL_NET", "STRING"]
    assert gate.inputs[0].io_type == "CONTROL_NET"
    (kept,) = (each for each in gate.inputs if each.id == "kept")
    assert kept.default == 0.15 and "0.15 equals the official code's removed share 0.85" in kept.tooltip


@pytest.mark.parametrize("kind", KINDS)
def test_every_policy_through_the_node(kind: str) -> None:
    of, control = model(kind), tiny_controlnet(kind)
    plain = controlled(of, control, steps=4)
    paper, words = call("CBGateControlNet", control_net=control)
    assert words == "Every residual for the first 15% of the schedule, then the middle one alone, times 1."
    assert differ(controlled(of, paper, steps=4), plain)
    whole, _ = call("CBGateControlNet", control_net=control, kept=1.0)
    assert torch.equal(controlled(of, whole, steps=4), plain)
    ranked, words = call("CBGateControlNet", control_net=control, policy="ranked", kept=0.5, profile=profile_of(of))
    assert words.startswith("The 50% of the slots that are least sensitive to ")
    assert differ(controlled(of, ranked, steps=4), plain)
    measured = profile_of(of)
    both = replace(measured, content=Scores(*[measured.scores.flip(-1)] * 3))
    content, words = call("CBGateControlNet", control_net=control, policy="ranked by content", kept=0.5, profile=both)
    assert words.startswith("The 50% of the slots whose layers follow content more than style")
    assert differ(controlled(of, content, steps=4), plain)
    with pytest.raises(ValueError, match=r"^'profile' holds no content scores: .* or choose another 'policy'"):
        call("CBGateControlNet", control_net=control, policy="ranked by content", profile=measured)
    written, words = call("CBGateControlNet", control_net=control, policy="weights", weights=everything(kind))
    assert words == f"{12 if kind == 'sd15' else 9} slots by hand, the middle 1."
    assert torch.equal(controlled(of, written, steps=4), plain)
    off, _ = call("CBGateControlNet", control_net=control, strength=0.0)
    assert torch.equal(controlled(of, off, steps=4), run(of, batch=2, steps=4))


def test_the_summary_tells_when_no_residual_is_left() -> None:
    *_, words = call("CBGateControlNet", control_net=tiny_controlnet("sd15"), middle=0.0)
    assert words.endswith("then none.")


def test_a_stranger_passes_through_with_its_note() -> None:
    stranger = object()
    found, words = call("CBGateControlNet", control_net=stranger)
    assert found is stranger and words.endswith("left as it is.")


def test_wrong_weights_are_refused_where_they_count() -> None:
    control = tiny_controlnet("sd15")
    with pytest.raises(ValueError, match=r"'weights': Expected a weight at character 5;.*\n1x9 oops\n {4}\^"):
        call("CBGateControlNet", control_net=control, policy="weights", weights="1x9 oops")
    call("CBGateControlNet", control_net=control, policy="paper", weights="1x9 oops")


def test_ranked_without_a_profile_is_refused() -> None:
    with pytest.raises(ValueError, match="'profile' is empty, but policy ranked needs one"):
        call("CBGateControlNet", control_net=tiny_controlnet("sd15"), policy="ranked")


# Ablation -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_ablation_finds_the_slots_that_a_gate_has_closed(kind: str) -> None:
    """Slots that a gate keeps shut change nothing when left out; the others do, at every noise level."""
    of, slots = model(kind), 12 if kind == "sd15" else 9
    gated = weighed(tiny_controlnet(kind), f"0x3 1x{slots - 3} m1")
    found = ablated(of, applied(of, gated), [5.0, 0.5])
    assert found.change.shape == (2, slots + 1) and found.sigmas.tolist() == [5.0, 0.5]
    assert bool((found.change[:, :3] == 0).all()) and bool((found.change[:, 3:] > 0).all())


def test_ablation_by_the_node_counts_its_calls_and_compares_with_a_profile() -> None:
    of = model("sdxl")
    prompts = applied(of, tiny_controlnet("sdxl"))
    pictures = latent(3, batch=2, height=HEIGHT, width=WIDTH)
    of_profile = {"profile": profile_of(of), "noise_levels": 2}
    (text,) = call("CBProfileControlSlots", model=of, positive=prompts["positive"], latent=pictures, **of_profile)
    assert "Agreement with the profile's ranking of slots (Spearman): " in text
    assert len(text.splitlines()) == 5
    (again,) = call("CBProfileControlSlots", model=of, positive=prompts["positive"], latent=pictures, noise_levels=2)
    assert again == "\n".join(text.splitlines()[:-1])


def test_ablation_leaves_the_model_as_it_was() -> None:
    of = model("sd15")
    before, options = controlled(of, tiny_controlnet("sd15")), repr(of.model_options)
    ablated(of, applied(of, tiny_controlnet("sd15")), [1.0])
    assert repr(of.model_options) == options
    assert torch.equal(controlled(of, tiny_controlnet("sd15")), before)


def test_ablation_can_be_cancelled() -> None:
    of, passes = model("sd15"), []

    def cancel_at_three() -> None:
        passes.append(1)
        if len(passes) == 3:
            comfy.model_management.interrupt_current_processing(True)

    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            ablated(of, applied(of, tiny_controlnet("sd15")), [1.0, 0.5], cancel_at_three)
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert len(passes) == 3


def test_ablation_without_a_control_is_refused() -> None:
    of = model("sd15")
    with pytest.raises(ValueError, match="'positive' carries no ControlNet"):
        ablated(of, {"positive": cond(of, 1)}, [1.0])


# Combine Profiles ---------------------------------------------------------------------------------------------------


def measured(seed: int) -> SensitivityProfile:
    base = profile_of(model("sd15"))
    scores = torch.rand(base.scores.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return SensitivityProfile(base.layers, base.features, base.sigmas, scores, provenance={"what": f"series {seed}"})


@pytest.fixture
def own_temp(tmp_path, monkeypatch) -> None:
    """Previews are written there."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))


def test_profiles_are_combined_by_the_node(own_temp: None) -> None:
    three = {f"profile_{number}": measured(number) for number in (1, 2, 3)}
    made, picture, text = call("CBCombineProfiles", **three)
    middle = torch.stack([each.scores for each in three.values()]).median(0).values
    torch.testing.assert_close(made.scores, middle)
    assert picture.ndim == 4 and "trimmed mean of 3 profiles" in text
    against = {"operation": "contrast (first minus second)", "profile_1": measured(1), "profile_2": measured(2)}
    made, *_ = call("CBCombineProfiles", **against, profile_3=None)
    assert made.provenance["what"] == "series 1 minus series 2"
    torch.testing.assert_close(made.scores.mean(-1), torch.zeros(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("operation", ["trimmed mean", "contrast (first minus second)"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda full: replace(full, layers=full.layers[:4], scores=full.scores[..., :4]),
            "^'profile_4' was measured on 4 layers and 'profile_1' on 16 of another architecture: connect",
        ),
        (
            lambda full: replace(full, features=("v",), scores=full.scores[:1]),
            r"^'profile_1', 'profile_4' have no feature in common \(q and k; v\): connect",
        ),
    ],
)
def test_profiles_that_do_not_go_together_are_named_by_their_inputs(operation: str, change: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        given = {"profile_1": measured(1), "profile_4": change(measured(2))}
        call("CBCombineProfiles", operation=operation, **given)


def test_one_profile_is_not_combined() -> None:
    with pytest.raises(ValueError, match=r"^'profile_2' is empty, as what it is connected to gives nothing"):
        call("CBCombineProfiles", profile_1=measured(1), profile_2=None)


def test_a_contrast_of_three_is_refused(own_temp: None) -> None:
    three = {f"profile_{number}": measured(number) for number in (1, 2, 3)}
    with pytest.raises(ValueError, match="contrast takes two profiles and 3 are connected"):
        call("CBCombineProfiles", operation="contrast (first minus second)", **three)
