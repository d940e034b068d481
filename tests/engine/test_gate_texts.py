"""A gate as other packs' texts: each number where their sources count it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine.gate_texts import NoSuchFormat, controlnet_text, ipadapter_text, lora_text
from conditional_balance.engine.layers import LayerId


def sd15(weight: dict[str, float]) -> dict[LayerId, float]:
    names = [f"i{n}.0" for n in (1, 2, 4, 5, 7, 8)] + ["m0.0"] + [f"o{n}.0" for n in range(3, 12)]
    return {LayerId.parse(name): weight.get(name, 0.0) for name in names}


def sdxl(weight: dict[str, float]) -> dict[LayerId, float]:
    depth = {"i4": 2, "i5": 2, "i7": 10, "i8": 10, "m0": 10, "o0": 10, "o1": 10, "o2": 10, "o3": 2, "o4": 2, "o5": 2}
    return {
        LayerId.parse(f"{b}.{i}"): weight.get(b, weight.get(f"{b}.{i}", 0.0))
        for b, d in depth.items()
        for i in range(d)
    }


def flux(double: int, single: int, weight: float) -> dict[LayerId, float]:
    kinds = [("joint", n) for n in range(double)] + [("single", n) for n in range(single)]
    return {LayerId(*kind): weight for kind in kinds}


def test_ipadapter_counts_the_blocks_with_attention() -> None:
    """InstantStyle's blocks, which IPAdapter_plus names: style is its 6, up_blocks.0.attentions.1; layout its 3."""
    assert ipadapter_text(sdxl({"o1": 1.0, "i8": 0.5})) == "3:0.5,6:1"
    assert ipadapter_text(sd15({"i7.0": 0.25, "i8.0": 1.0, "o3.0": 1.0, "m0.0": 1 / 3})) == "4:0.25,5:1,6:0.333,7:1"


def test_a_closed_gate_does_not_become_the_empty_text_that_means_everything() -> None:
    assert ipadapter_text(sd15({})) == "0:0"


def test_a_block_has_the_mean_of_its_layers() -> None:
    assert ipadapter_text(sdxl({f"o1.{i}": 1.0 for i in range(4)})) == "6:0.4"


def test_lora_vectors_have_the_lengths_of_inspire_packs_presets() -> None:
    assert lora_text(sd15({"i1.0": 1.0, "o11.0": 0.5})) == "1,1," + "0," * 14 + "0.5"
    for weights, count in ((sd15({}), 17), (sdxl({}), 12), (flux(19, 38, 0.0), 58)):
        assert len(lora_text(weights).split(",")) == count


def test_controlnet_residuals_take_the_weight_of_the_layers_they_reach_first() -> None:
    """SD1.5's residual of input block 0 goes to output block 11, and those of 9 to 11 reach o3 first."""
    lines = dict(line.split(": ") for line in controlnet_text(sd15({"o11.0": 1.0, "o3.0": 0.5})).splitlines())
    assert len(lines) == 13 and lines["output_0"] == "1" and lines["output_1"] == "0"
    assert [lines[f"output_{slot}"] for slot in (8, 9, 10, 11)] == ["0.5"] * 4 and lines["middle_0"] == "0.5"
    lines = dict(line.split(": ") for line in controlnet_text(sdxl({"o0": 1.0, "o5": 0.5})).splitlines())
    assert len(lines) == 10 and lines["output_8"] == lines["middle_0"] == "1"
    assert [lines[f"output_{slot}"] for slot in range(5)] == ["0.5", "0.5", "0.5", "0.5", "0"]


def test_models_without_a_format_are_refused() -> None:
    for write in (ipadapter_text, controlnet_text):
        with pytest.raises(NoSuchFormat, match="begin with j0-1"):
            write(flux(2, 3, 1.0))
    only_joint = {LayerId("joint", number): 1.0 for number in range(3)}
    with pytest.raises(NoSuchFormat, match="SDXL and Flux"):
        lora_text(only_joint)


@given(st.dictionaries(st.sampled_from([str(layer) for layer in sd15({})]), st.floats(0, 1)))
def test_what_ipadapter_reads_back_is_the_gate(weight: dict[str, float]) -> None:
    read = {int(k): float(v) for k, v in (entry.split(":") for entry in ipadapter_text(sd15(weight)).split(","))}
    for index, found in enumerate(sd15(weight).values()):
        assert read.get(index, 0.0) == pytest.approx(found, abs=6e-4)
