"""Gate ControlNet and the ablation of slots on transformers: residuals by block, nothing but their weights changed."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from comfy.controlnet import ControlBase
from tiny_transformers import cond, latent, tiny_transformer

import tiny
from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.engine.structure import PaperSchedule, RankedSlots, StructureGate, parse_weights
from conditional_balance.nodes.structure import CBProfileControlSlots
from conditional_balance.runtime.arch.registry import architecture_of
from conditional_balance.runtime.inject.control import gate_control, layout_of

SLOTS = {
    "sd3": {"output": 3},
    "flux": {"input": 2, "output": 3},
    "chroma": {"input": 2, "output": 3},
    "qwen": {"input": 3},
}
WIDTHS = {"sd3": 128, "flux": 64, "chroma": 64, "qwen": 64}


class Residual(ControlBase):
    """A ControlNet of ComfyUI's interface that brings a tensor for each block; lists as InstantX's and Qwen's do."""

    def __init__(self, kind: str, strength: float = 1.0) -> None:
        super().__init__()
        self.kind, self.strength = kind, strength

    def get_control(self, x: torch.Tensor, t: torch.Tensor, cond: Any, batched: int, *args: Any) -> Any:
        generator = torch.Generator().manual_seed(3)
        shape = (x.shape[0], 20, WIDTHS[self.kind])  # a latent of 10 by 7 is 5 by 4 tokens
        lists = {"input": [], "middle": [], "output": []}
        for part, blocks in SLOTS[self.kind].items():
            lists[part] = [torch.randn(shape, generator=generator) * self.strength for _ in range(blocks)]
        return lists

    def copy(self) -> Residual:
        copied = Residual(self.kind, self.strength)
        self.copy_to(copied)
        return copied


def prompts(kind: str, control: Any = None) -> dict[str, Any]:
    extra = {} if control is None else {"control": control, "control_apply_to_uncond": True}
    return {"positive": cond(kind, 1, **extra), "negative": cond(kind, 2)}


def run(kind: str, control: Any = None) -> torch.Tensor:
    options = {"latent": latent(kind), "steps": 3, "scheduler": "simple", **prompts(kind, control)}
    return tiny.sample(tiny_transformer(kind), **options)


def gated(kind: str, gate: StructureGate) -> torch.Tensor:
    control, note = gate_control(Residual(kind), gate)
    assert not note
    return run(kind, control)


@pytest.mark.parametrize("kind", SLOTS)
def test_ones_are_the_control_and_zeros_are_none_bit_for_bit(kind: str) -> None:
    slots = layout_of(tiny_transformer(kind).model.diffusion_model).slots
    full, none = run(kind, Residual(kind)), run(kind)
    assert slots == sum(SLOTS[kind].values()) and not torch.equal(full, none)
    assert torch.equal(gated(kind, parse_weights(f"1x{slots}")), full)
    assert torch.equal(gated(kind, parse_weights(f"0x{slots}")), none)
    assert torch.equal(gated(kind, PaperSchedule(1.0)), full)
    half = gated(kind, PaperSchedule(0.5))
    assert not torch.equal(half, full) and not torch.equal(half, none)


def test_every_slot_is_a_block_of_its_own_and_keys_stay() -> None:
    kind = "flux"
    layout = layout_of(tiny_transformer(kind).model.diffusion_model)
    full = Residual(kind).get_control(torch.zeros(1), None, None, 1)
    from conditional_balance.engine.structure import gate_stream

    for slot in range(layout.slots):
        weights = [0.0] * slot + [1.0] + [0.0] * (layout.slots - slot - 1)
        found = gate_stream(full, parse_weights(" ".join(map(str, weights))).written, layout)
        assert set(found) == {"input", "middle", "output"}
        kept = [one for part in ("input", "output") for one in found[part]]
        assert [place for place, one in enumerate(kept) if one is not None] == [slot]
        assert kept[slot] is (full["input"] + full["output"])[slot]


def profile_of(kind: str) -> SensitivityProfile:
    layers = architecture_of(tiny_transformer(kind)).layers
    return SensitivityProfile(layers, ("q",), torch.tensor([0.5]), torch.rand(1, 1, len(layers)).double())


def test_weights_of_another_model_and_a_ranking_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^'weights' has 12 numbers .* this model has 5 residual slots: write 5"):
        gated("flux", parse_weights("1x12 m1"))
    says = "^'policy' ranked does not fit here, as it is not known which layers of a transformer"
    with pytest.raises(ValueError, match=says):
        gated("flux", RankedSlots(profile_of("flux"), 0.5))


def test_a_profile_is_not_compared_with_a_transformers_slots() -> None:
    of = tiny_transformer("sd3")
    with pytest.raises(ValueError, match=r"^'profile' cannot be compared here, as it is not known .*: leave it open"):
        CBProfileControlSlots.execute(
            model=of, positive=[], latent={"samples": torch.zeros(1)}, noise_levels=1, seed=0, profile=profile_of("sd3")
        )


def test_paper_without_a_middle_is_said_and_control_of_other_kinds_is_not_gated(caplog: Any) -> None:
    with caplog.at_level(logging.INFO):
        gated("sd3", PaperSchedule(0.0))
    assert caplog.text.count("a transformer has no middle residual") == 1
    for kind in ("aura", "z-image", "cosmos"):
        with pytest.raises(ValueError, match="takes no ControlNet's residuals"):
            layout_of(tiny_transformer(kind).model.diffusion_model)
        assert architecture_of(tiny_transformer(kind)).layers


def test_slots_are_measured_one_by_one() -> None:
    kind = "sd3"
    with torch.inference_mode():
        out = CBProfileControlSlots.execute(
            tiny_transformer(kind), prompts(kind, Residual(kind))["positive"], latent(kind, 4), 2, 0
        )
    (report,) = out.args
    table = [line.split() for line in report.splitlines()[1:]]
    assert table[0] == ["sigma", "0", "1", "2", "mid"]
    assert all(float(row[4]) == 0 and max(map(float, row[1:4])) > 0 for row in table[1:])
