"""The attribution nodes: schemas for people, the whole chain with defaults, and one clear sentence for bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from comfy_api.latest import io
from gradsam_case import run, subject_of
from PIL import Image
from style_case import HEIGHT, WIDTH, model

from conditional_balance.engine.windows import Window
from conditional_balance.nodes import attribution_preview, gradsam
from conditional_balance.nodes import subject as subject_nodes
from conditional_balance.runtime.attribution.measured import Attribution, Measured, RunMeasured
from tiny import cond, latent, sample

NODES = [*subject_nodes.NODES, *gradsam.NODES, *attribution_preview.NODES]
BY_ID = {node.define_schema().node_id: node for node in NODES}


def call(node_id: str, **inputs: Any) -> tuple[Any, ...]:
    """The outputs of a node that is executed."""
    return executed(node_id, **inputs).args


def executed(node_id: str, **inputs: Any) -> io.NodeOutput:
    """Execute a node as the server does: in inference mode, every widget that is not given at its default."""
    schema = BY_ID[node_id].define_schema()
    defaults = {each.id: each.default for each in schema.inputs if getattr(each, "default", None) is not None}
    with torch.inference_mode():
        return BY_ID[node_id].execute(**{**defaults, **inputs})


@pytest.mark.parametrize("node", NODES, ids=list(BY_ID))
def test_schemas_speak_to_people(node: type[io.ComfyNode]) -> None:
    schema = node.GET_SCHEMA()
    assert schema.category.startswith("conditional balance/")
    assert schema.description.endswith(".")
    for socket in (*schema.inputs, *schema.outputs):
        assert socket.tooltip and socket.tooltip.endswith("."), socket


def test_ids_and_sockets_are_those_promised() -> None:
    sockets = {node_id: [each.io_type for each in BY_ID[node_id].define_schema().outputs] for node_id in BY_ID}
    assert sockets == {
        "CBSubject": ["CONDITIONING", "SUBJECT"],
        "CBGradSAMMask": ["MASK", "IMAGE", "STRING"],
        "CBGradSAMBlend": ["MODEL", "LATENT", "ATTRIBUTION"],
        "CBAttributionPreview": ["MASK", "IMAGE", "STRING"],
    }


def test_the_whole_chain_with_defaults(clip: Any) -> None:
    of, reference = model("sd15"), latent(5, 2, HEIGHT, WIDTH)
    positive, subject = call("CBSubject", clip=clip)
    kept, empty, attribution = call("CBGradSAMBlend", model=of, reference=reference, subject=subject)
    assert empty["samples"].shape == reference["samples"].shape and not empty["samples"].any()
    out = sample(kept, positive, cond(of, 2), empty, steps=4)
    picture = torch.rand(2, 8 * HEIGHT, 8 * WIDTH, 3)
    mask, windows, words = call("CBAttributionPreview", attribution=attribution, after={"samples": out}, image=picture)
    assert mask.shape == (2, 8 * HEIGHT, 8 * WIDTH) and set(mask.unique().tolist()) <= {0.0, 1.0}
    assert windows.shape == (3 * 2, 8 * HEIGHT, 3 * 8 * WIDTH, 3)
    assert windows.min() >= 0 and windows.max() <= 1
    assert len(words.splitlines()) == 4 and words.startswith("0.22-0.48, sigma ")
    assert words.splitlines()[-1].startswith("0.68-0.9 acts in the last step, which begins at 1 of the schedule")


def measured(after: dict[str, torch.Tensor], batch: int, side: int, subjects: int = 2) -> Attribution:
    """Two windows' findings of the run that ended in `after`, in which the subjects lie in the left half."""
    mask = torch.zeros(batch, side, side)
    mask[..., : side // 2] = 1
    maps = torch.rand(subjects, batch, side, side) + mask
    ranges = Window(0.2, 0.5), Window(0.7)
    windows = tuple(Measured(each, 2.5, maps, mask, "value_norm", "A caveat.") for each in ranges)
    found = Attribution()
    found.keep([after["samples"]], RunMeasured(windows))
    return found


@pytest.mark.parametrize(("side", "shown"), [(8, 64), (80, 512)])
def test_the_strip_has_a_tile_for_each_window(side: int, shown: int) -> None:
    """The pictures are saved where core keeps previews, and are not shown a second time as core's own."""
    after = latent(1)
    inputs = {"attribution": measured(after, 2, side), "after": after}
    ui = executed("CBAttributionPreview", **inputs, image=torch.rand(2, 8 * side, 8 * side, 3)).ui
    assert set(ui) == {"cb_strip", "cb_summary", "text"}
    assert [tile["window"] for tile in ui["cb_strip"]] == ["20% to 50%", "70%"]
    for tile in ui["cb_strip"]:
        assert set(tile) == {"window", "words", "map", "mask", "overlay"}
        assert tile["words"] == "sigma 2.50: value_norm, 50%, 50% of the picture. A caveat."
        for file in (file for view in ("map", "mask", "overlay") for file in tile[view]):
            path = Path(folder_paths.get_temp_directory(), file["subfolder"], file["filename"])
            assert file["type"] == "temp" and Image.open(path).size == (shown, shown)
        assert [len(tile[view]) for view in ("map", "mask", "overlay")] == [2, 2, 2]
    assert ui["cb_summary"][0].startswith("2 windows; at the last the mask covers 50%, 50% of the picture")
    json.dumps(ui)


@pytest.mark.parametrize("method", ["jvp", "grad_sam"])
def test_a_mask_of_a_picture(method: str) -> None:
    of, picture = model("sd15"), torch.rand(1, 8 * HEIGHT, 8 * WIDTH, 3)
    inputs = dict(model=of, latent=latent(4, height=HEIGHT, width=WIDTH), subject=subject_of(of), method=method)
    mask, shown, words = call("CBGradSAMMask", **inputs, image=picture, feather=2.0)
    assert mask.shape == (1, 8 * HEIGHT, 8 * WIDTH) and mask.min() >= 0 and mask.max() == 1
    assert torch.equal(shown[mask == 1], picture[mask == 1])
    assert re.fullmatch(rf"{method}, \d+% of the picture\.", words)
    inverted, *_ = call("CBGradSAMMask", **inputs, invert=True)
    plain, *_ = call("CBGradSAMMask", **inputs)
    assert torch.equal(inverted, 1 - plain)


def test_a_noisy_latent_is_looked_at_as_it_is() -> None:
    """The latent of a run that stopped midway; noise added to it again would move the mask."""
    of = model("sd15")
    sigma = float(of.get_model_object("model_sampling").percent_to_sigma(0.5))
    clean = latent(4, height=HEIGHT, width=WIDTH)["samples"]
    noise = latent(8, height=HEIGHT, width=WIDTH)["samples"] * sigma / of.model.latent_format.scale_factor
    inputs = dict(model=of, latent={"samples": clean + noise}, subject=subject_of(of), noise_levels="0.5")
    first, *_ = call("CBGradSAMMask", **inputs, latent_is="noisy latent", seed=1)
    second, *_ = call("CBGradSAMMask", **inputs, latent_is="noisy latent", seed=2)
    noised, *_ = call("CBGradSAMMask", **inputs, seed=2)
    assert torch.equal(first, second)
    assert not torch.equal(first, noised)


@pytest.mark.parametrize(
    ("node_id", "inputs", "says"),
    [
        ("CBGradSAMMask", {"noise_levels": "0.5, 7"}, "'noise_levels': '7' is not a noise level"),
        ("CBGradSAMMask", {"noise_levels": "1" * 6_000}, r"'noise_levels' is too long \(6,000 char"),
        ("CBGradSAMBlend", {"windows": "1" * 20_000}, r"'windows' is too long \(20,000 characters"),
        ("CBGradSAMBlend", {"windows": "0.5-0.2"}, "'windows': '0.5-0.2' ends before it starts"),
    ],
)
def test_the_prompt_is_refused_before_it_runs(node_id: str, inputs: dict[str, Any], says: str) -> None:
    assert re.match(says, BY_ID[node_id].validate_inputs(**inputs))


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ("o1, y", "'layers': Expected a layer at character 5;"),
        ("o1," * 9_000, r"'layers' is too long \(27,000 characters"),
    ],
)
def test_layers_are_read_when_the_node_runs(layers: str, says: str) -> None:
    """Core reports a problem once for every name that validate_inputs declares, so it declares one."""
    of = model("sd15")
    with pytest.raises(ValueError, match=says):
        call("CBGradSAMMask", model=of, latent=latent(1), subject=subject_of(of), layers=layers)


def test_defaults_and_linked_texts_are_let_through() -> None:
    assert BY_ID["CBGradSAMMask"].validate_inputs(noise_levels=None) is True
    assert BY_ID["CBGradSAMBlend"].validate_inputs(windows="0.2-0.4, 0.9") is True


def test_bad_input_is_one_sentence() -> None:
    of = model("sd15")
    with pytest.raises(ValueError, match="'attribution' is empty: connect 'after'"):
        call("CBAttributionPreview", attribution=Attribution(), after=latent(1))
    with pytest.raises(ValueError, match="'noise_levels' is empty"):
        call("CBGradSAMMask", model=of, latent=latent(1), subject=subject_of(of), noise_levels=" ")


def test_an_empty_mask_is_told() -> None:
    of = model("sd15")
    kept, _, attribution = call(
        "CBGradSAMBlend", model=of, reference=latent(5, height=HEIGHT, width=WIDTH), subject=subject_of(of), amount=5.0,
        threshold="mean + c std", blur=16.0,
    )  # fmt: skip
    after = {"samples": run(kept)}
    *_, words = call("CBAttributionPreview", attribution=attribution, after=after)
    assert "0% of the picture. Nothing was found: lower 'amount'" in words
