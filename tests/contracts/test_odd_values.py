"""Values that no widget gives but links, clients and other packs do: numbers out of range, names, pictures, masks."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from comfy_api.latest import io
from style_case import model, tiny_controlnet
from tiny_transformers import KINDS, cond, latent, tiny_transformer

from conditional_balance.engine.conditioning import shifted_sigmas
from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.engine.texts import counted
from conditional_balance.engine.windows import Window
from conditional_balance.nodes import profile as profile_nodes
from conditional_balance.nodes import results, routes
from conditional_balance.nodes.extension import ConditionalBalance
from conditional_balance.nodes.jobs import PRESETS
from conditional_balance.runtime.arch.registry import architecture_of
from conditional_balance.runtime.attribution.measured import Attribution, Measured, RunMeasured
from conditional_balance.runtime.inject.picture import latent_of, under_control
from conditional_balance.runtime.inject.reference import FIRST_ROW
from conditional_balance.runtime.inject.style import StyleInjection
from conditional_balance.runtime.runs.injector import injectors_of
from conditional_balance.runtime.runs.loaded import cell_of
from tiny import sample, tiny_vae

NODES = {node.define_schema().node_id: node for node in asyncio.run(ConditionalBalance().get_node_list())}
NUMBERS = {
    (node_id, each.id): each
    for node_id, node in NODES.items()
    for each in node.define_schema().inputs
    if isinstance(each, io.Float.Input | io.Int.Input)
}
LAMBDA = ("CBSelectLayers", "lambda")  # where links may still bring a number of layers


def execute(node_id: str, **inputs: Any) -> io.NodeOutput:
    """A node executed as the server does: in inference mode, every widget that is not given at its default."""
    schema = NODES[node_id].define_schema()
    defaults = {each.id: each.default for each in schema.inputs if getattr(each, "default", None) is not None}
    given = {**defaults, **inputs}
    if schema.is_input_list:
        given = {name: [value] for name, value in given.items()}
    with torch.inference_mode():
        return NODES[node_id].execute(**given)


@pytest.mark.parametrize(("node_id", "name"), NUMBERS, ids=str)
def test_a_number_that_no_widget_gives_is_refused_when_the_node_runs(node_id: str, name: str) -> None:
    """Core asks only widgets for their range, and takes NaN from them too."""
    widget = NUMBERS[node_id, name]
    beyond = 1001 if (node_id, name) == LAMBDA else widget.max + 1
    for value in (math.nan, math.inf, widget.min - 1, beyond):
        with pytest.raises(ValueError) as caught:
            execute(node_id, **{name: value})
        assert str(caught.value).startswith(f"'{name}' is {value}")


NEEDED = [
    (node_id, each.id)
    for node_id, node in NODES.items()
    for each in node.define_schema().inputs
    if not (each.optional or isinstance(each, io.WidgetInput | io.Clip.Input | io.Vae.Input))
]


@pytest.mark.parametrize(("node_id", "name"), NEEDED, ids=str)
def test_a_link_that_brings_nothing_is_said_by_the_name_of_its_input(node_id: str, name: str) -> None:
    """Such as that of a switch with nothing behind it, or of a loop at its first turn."""
    if name == "image" and node_id == "CBSuggestAmount":
        return  # it never looks at the picture that is connected, but paints it anew
    with pytest.raises(ValueError) as caught:
        execute(node_id, **{name: None})
    assert str(caught.value).startswith(f"'{name}' is empty")


def test_an_optional_input_whose_link_brings_nothing_is_open(clip: Any) -> None:
    """Also where being open means something."""
    loop = execute("CBImageClusters", images=torch.rand(2, 8, 8, 3), previous=None, subjects=None)
    assert [cluster.name for cluster in loop.args[0]] == ["style 1"]
    gate = execute("CBLayerGate", layers="o9-11").args[0]
    styled = execute("CBStyleInjection", model=model("sd15"), gate=gate, reference=None).args[0]
    assert injectors_of(styled, StyleInjection)[0].reference is FIRST_ROW


def test_no_run_draws_another_seed_for_what_is_measured() -> None:
    """Front ends put a control that draws after each run behind every input of this name, unless told not to."""
    seeds = [each for (_, name), each in NUMBERS.items() if name in ("seed", "noise_seed")]
    assert len(seeds) > 4 and all(each.as_dict()["control_after_generate"] is False for each in seeds)


LOOKED_UP = {
    "CBLoadImageClusters": {"folder": None, "limit": 12},
    "CBLoadSensitivityProfile": {"profile": None, "model": None},
    "CBSaveSensitivityProfile": {"name": None, "profile": None},
    "CBProfileFromRecording": {"series": None, "after": None},
}


@pytest.mark.parametrize("node_id", LOOKED_UP)
def test_a_name_from_a_link_makes_the_node_run_again(node_id: str) -> None:
    """Core asks for the fingerprint before it has followed any link."""
    first, second = ([NODES[node_id].fingerprint_inputs(**LOOKED_UP[node_id])] for _ in range(2))
    assert first != second


@pytest.mark.parametrize("sent", [None, "text", ["text"], {"workflow": "text"}, {"workflow": None}], ids=str)
def test_whatever_clients_send_with_a_prompt_the_results_of_others_are_found(sent: Any) -> None:
    prompt, outputs = {"3": {"class_type": "CBLayerGate", "inputs": {}}}, {"3": {"cb_summary": ["words"]}}
    run = results._run_of({"prompt": (0, "id", prompt, {"extra_pnginfo": sent}, []), "outputs": outputs})
    assert run.workflow is None and run.results == {"3": {"type": "CBLayerGate", "output": outputs["3"]}}


@pytest.mark.parametrize(("preset", "amount"), [*PRESETS.items(), ("gone", None), (None, None), ([], None)], ids=str)
def test_the_map_follows_a_preset_that_no_hand_has_chosen(preset: Any, amount: float | None) -> None:
    """In a prompt of the API, or on a subgraph's own node, the slider stays where it was."""
    asked = {"profile": {"file": profile_nodes.PUBLISHED}, "values": {"preset": preset, "lambda": 0.5}}
    by_hand = {**asked, "values": {"lambda": amount or 0.5}}
    assert routes.show_selection(asked) == routes.show_selection(by_hand)


def profile() -> SensitivityProfile:
    layers = architecture_of(model("sd15")).layers
    scores = torch.rand(2, 1, len(layers), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return SensitivityProfile(layers, ("q", "k"), torch.tensor([1.0], dtype=torch.float64), scores)


def test_a_saved_profile_that_is_gone_or_another_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(folder_paths.folder_names_and_paths, profile_nodes.FOLDER, ([str(tmp_path)], {".safetensors"}))
    node, links = NODES["CBSaveSensitivityProfile"], {"name": "mine", "profile": None}
    node.execute(profile=profile(), name="mine")
    saved = node.fingerprint_inputs(**links)
    assert node.fingerprint_inputs(**links) == saved
    file = tmp_path / "mine.safetensors"
    file.write_bytes(file.read_bytes() + b" ")
    assert node.fingerprint_inputs(**links) != saved
    file.unlink()
    assert node.fingerprint_inputs(**links) != saved


@pytest.mark.parametrize(("node_id", "prompt"), [("CBPromptBatch", "prompts"), ("CBSubject", "prompt")])
def test_a_checkpoint_without_clip_is_said(node_id: str, prompt: str) -> None:
    with pytest.raises(ValueError, match=rf"^'clip' is empty, and '{prompt}' needs it"):
        execute(node_id, clip=None)


def with_pictures(node_id: str, clip: Any, number: int) -> dict[str, Any]:
    """The inputs of a job for that many pictures where it takes one."""
    name = "style_image" if node_id == "CBStyleAndStructure" else "image"
    given = {"model": model("sd15"), "clip": clip, "vae": tiny_vae(), name: torch.rand(number, 64, 64, 3)}
    control = {"control_net": tiny_controlnet("sd15"), "structure_image": torch.rand(2, 64, 64, 3)}
    return given | (control if node_id == "CBStyleAndStructure" else {})


JOBS = {"CBStyleFromPicture": "image", "CBKeepSubject": "image", "CBStyleAndStructure": "style picture"}


@pytest.mark.parametrize("node_id", JOBS)
def test_a_job_says_that_it_takes_the_first_of_several_pictures(node_id: str, clip: Any) -> None:
    assert execute(node_id, **with_pictures(node_id, clip, 1)).ui["cb_warning"] == []
    (said,) = execute(node_id, **with_pictures(node_id, clip, 3)).ui["cb_warning"]
    assert said == f"'{JOBS[node_id]}' holds 3 pictures: the first is taken."
    with pytest.raises(ValueError, match=r"holds no picture: connect one\.$"):
        execute(node_id, **with_pictures(node_id, clip, 0))


OFF = [
    ("CBStyleFromPicture", {"strength": 0.0}, "Off: strength is 0, so no style comes in"),
    ("CBStyleAndStructure", {"strength": 0.0}, "Off: strength is 0, so no style comes in. Structure: Every"),
    ("CBStyleAndStructure", {"control_strength": 0.0}, "Structure: off, as control_strength is 0"),
    ("CBKeepSubject", {"windows": " "}, "Off: 'windows' is empty, so the model is unchanged"),
    ("CBKeepSubject", {"mode": "only measure"}, "Only looks for 'red fox' in 64 x 64 pixels: nothing comes from"),
]


@pytest.mark.parametrize(("node_id", "values", "words"), OFF, ids=str)
def test_a_job_says_what_is_off(node_id: str, values: dict[str, Any], words: str, clip: Any) -> None:
    assert words in execute(node_id, **with_pictures(node_id, clip, 1), **values).ui["cb_summary"][0]


def test_parts_of_jobs_say_what_is_off(clip: Any) -> None:
    control = tiny_controlnet("sd15")
    assert execute("CBGateControlNet", control_net=control, strength=0.0).args[1].startswith("Off: strength is 0")
    (gate,) = execute("CBLayerGate", layers="o3").args
    nothing = {"share": 0.0, "adain_q": False, "adain_k": False}
    said = execute("CBStyleInjection", model=model("sd15"), gate=gate, **nothing).ui["cb_summary"][0]
    assert said.startswith("Off: share is 0 and no statistics")
    _, subject = execute("CBSubject", clip=clip).args
    pictures = {"reference": {"samples": torch.zeros(1, 4, 8, 8)}, "subject": subject, "windows": ""}
    assert "Off: 'windows' is empty" in execute("CBGradSAMBlend", model=model("sd15"), **pictures).ui["cb_summary"][0]


def test_a_text_from_a_link_is_refused_by_the_name_of_its_input() -> None:
    with pytest.raises(ValueError, match=r"^'layers': "):
        execute("CBLayerGate", layers="o1.4-9, oops")


@pytest.mark.parametrize(("number", "words"), [(1, "1 prompt: set"), (2, "2 prompts: set")])
def test_one_is_not_said_as_several(number: int, words: str, clip: Any) -> None:
    assert execute("CBPromptBatch", clip=clip, prompts="a fox\n" * number).ui["cb_summary"][0].startswith(words)
    assert [counted(each, "picture") for each in (0, 1, 3)] == ["0 pictures", "1 picture", "3 pictures"]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_grey_pictures_and_those_with_alpha_are_compared(channels: int) -> None:
    of = torch.rand(1, 16, 16, channels)
    plain = torch.zeros(1, 16, 16, 3)
    for inputs in ({"before": of, "after": plain}, {"before": plain, "after": of, "reference": of}):
        (strip,) = execute("CBBeforeAfter", **inputs).args
        assert strip.shape[-1] == 3
    shown = of[..., :3] if channels > 2 else of[..., :1].expand(-1, -1, -1, 3)
    assert torch.equal(strip[:, :, -16:], shown)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_mask_is_laid_over_grey_pictures_and_those_with_alpha(channels: int) -> None:
    found, after = Attribution(), torch.rand(1, 4, 8, 8)
    window = Measured(Window(0.2, 0.5), 2.5, torch.rand(1, 1, 8, 8), torch.ones(1, 8, 8), "value_norm", "")
    found.keep([after], RunMeasured((window,)))
    image = torch.rand(1, 64, 64, channels)
    _, views, _ = execute("CBAttributionPreview", attribution=found, after={"samples": after}, image=image).args
    assert views.shape == (1, 64, 3 * 64, 3)
    assert torch.allclose(views[:, :, -64:, :1], image[..., :1])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_controlnet_follows_grey_pictures_and_those_with_alpha(channels: int) -> None:
    hint = torch.rand(1, 16, 16, channels)
    ((_, extras),) = under_control([[torch.zeros(1, 1, 1), {}]], tiny_controlnet("sd15"), hint, 1.0, None, "hint")
    assert extras["control"].cond_hint_original.shape == (1, 3, 16, 16)


@pytest.mark.parametrize("shape", [(8, 16), (1, 8, 16), (1, 1, 8, 16)], ids=str)
def test_one_mask_is_read_whatever_its_axes(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape)
    of, prompt = model("sd15"), [[torch.zeros(1, 77, 64), {}]]
    words = execute("CBNoiseBlend", model=of, conditioning=prompt, mask=mask).ui["cb_summary"][0]
    assert f"acts in {float(mask.mean()):.0%} of" in words
    latent_of = {"samples": torch.zeros(1, 4, 8, 8)}
    assert torch.equal(execute("CBStyleReference", latent=latent_of, mask=mask).args[0].mask, mask.reshape(8, 16))


def test_several_masks_are_refused() -> None:
    for node_id, inputs in (("CBNoiseBlend", {"model": object(), "conditioning": [0]}), ("CBStyleReference", {})):
        inputs |= {"latent": {"samples": torch.zeros(1, 4, 8, 8)}} if node_id == "CBStyleReference" else {}
        for shape in ((2, 8, 8), (2, 1, 8, 8)):
            with pytest.raises(ValueError, match=r"^'mask' holds 2 masks: give one, which is used for every picture"):
                execute(node_id, **inputs, mask=torch.ones(shape))


def test_a_text_or_number_in_the_place_of_a_link_is_refused() -> None:
    """A client may send one: core checks links alone."""
    for value in ("missing", 3, True):
        for node_id, name in (("CBSelectLayers", "profile"), ("CBNoiseBlend", "mask")):
            says = f"^'{name}' is .*{value}.*, and takes what another node gives: connect"
            with pytest.raises(ValueError, match=says):
                execute(node_id, **{name: value})


def test_an_empty_schedule_stays_one() -> None:
    """Basic Scheduler makes one for a denoise of 0."""
    assert not len(shifted_sigmas(torch.FloatTensor([]), 1.5, False))


CELLS = {"flux": 8, "flux2": 16, "qwen": 8, "wan": 8}


@pytest.mark.parametrize("kind", CELLS)
def test_cells_of_latents_are_as_large_as_the_family_has_them(kind: str) -> None:
    assert cell_of(tiny_transformer(kind)) == CELLS[kind]


def test_a_mask_without_a_picture_is_as_large_as_the_picture() -> None:
    after = torch.rand(1, 128, 8, 8)
    window = Measured(Window(0.2, 0.5), 2.5, torch.rand(1, 1, 8, 8), torch.ones(1, 8, 8), "value_norm", "")
    found = Attribution(16)
    found.keep([after], RunMeasured((window,)))
    mask, *_ = execute("CBAttributionPreview", attribution=found, after={"samples": after}).args
    assert mask.shape == (1, 128, 128)


@pytest.mark.parametrize(("kind", "kept"), [("flux", (8, 24, 64)), ("flux2", (16, 16, 64))])
def test_a_node_says_how_large_the_cells_are_whose_means_it_keeps(kind: str, kept: tuple[int, ...]) -> None:
    for asked, side in zip((8, 24, 64), kept, strict=True):
        shown = execute("CBProject", model=tiny_transformer(kind), latent=latent(kind, 3), cell=asked).ui
        assert shown["cb_summary"][0].startswith(f"Keeps means of cells of {side} pixels,")


class Coarse:
    """A VAE of Flux.2's kind, of 16 pixels to a cell, which would cut off what is left over."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        rows, columns = (side / 16 for side in pixels.shape[1:3])
        assert rows.is_integer() and columns.is_integer()
        return torch.zeros(1, 128, int(rows), int(columns))


@pytest.mark.parametrize("size", [(1000, 1048), (40, 72), (2000, 1336)])
def test_no_edge_of_a_picture_is_cut_off_where_cells_are_larger(size: tuple[int, int]) -> None:
    found = latent_of(Coarse(), torch.rand(1, *size, 3), tiny_transformer("flux2"))
    assert abs(found.shape[-2] / found.shape[-1] - size[0] / size[1]) < 0.12


def painted(kind: str, of: Any, start: dict[str, Any]) -> torch.Tensor:
    prompts = {"positive": cond(kind, 1), "negative": cond(kind, 2)}
    return sample(of, scheduler="simple", **prompts, latent=start, steps=2)


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_keeps_the_layout_and_the_colours_of_a_picture(kind: str) -> None:
    """Latents of one picture have an axis of frames in some; a latent without it does as well."""
    of, known, start = tiny_transformer(kind), latent(kind, 3, 1, 10, 6), latent(kind, None, 2, 10, 6)
    samples = known["samples"]
    for picture in (samples, samples.reshape(1, -1, 10, 6)):
        (held,) = execute("CBProject", model=of, latent={"samples": picture}, known="colour").args
        found = painted(kind, held, start).mean((-2, -1))
        assert torch.allclose(found, samples.mean((-2, -1)).expand_as(found), atol=1e-3)
    (held,) = execute("CBProject", model=of, latent=known, known="low resolution", cell=2 * cell_of(of)).args
    found = means_of_cells(painted(kind, held, start))
    assert torch.allclose(found, means_of_cells(samples).expand_as(found), atol=1e-3)


def means_of_cells(latents: torch.Tensor) -> torch.Tensor:
    return latents.unflatten(-2, (5, 2)).unflatten(-1, (3, 2)).mean((-3, -1))


def test_one_picture_holds_for_every_frame_and_other_numbers_are_refused() -> None:
    of = tiny_transformer("wan")
    film = {"samples": torch.zeros(1, 16, 3, 10, 7)}
    (held,) = execute("CBProject", model=of, latent=latent("wan", 3), known="colour").args
    found = painted("wan", held, film).mean((-2, -1))
    assert torch.allclose(found, latent("wan", 3)["samples"].mean((-2, -1)).expand_as(found), atol=1e-3)
    (held,) = execute("CBProject", model=of, latent={"samples": torch.zeros(1, 16, 2, 10, 7)}).args
    with pytest.raises(ValueError, match=r"^'latent' holds 2 frames and the sampler works on 3: connect one picture"):
        painted("wan", held, film)
