"""UNets beside SD1.5 and SDXL, and what their prompts hold: pictures to edit, masks, boxes, other depths and widths."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from style_case import HEIGHT, WIDTH, differ, gate, hidden, run, styled
from test_jobs import output, own, picture, profile_for  # noqa: F401 - a fixture
from tiny_unets import OTHERS, UNETS, in_boxes, tiny_gligen, tiny_unet

from conditional_balance.engine.gates import WrittenGate
from conditional_balance.engine.grammar import parse
from conditional_balance.engine.profile_file import save
from conditional_balance.nodes import jobs
from conditional_balance.runtime.arch.registry import architecture_of
from conditional_balance.runtime.inject.contrast import LayerContrast, contrast_layers
from conditional_balance.runtime.inject.layer_prompt import LayerPrompt, prompt_layers
from conditional_balance.runtime.inject.metadata import Change, Metadata, NoSuchMetadata, schedule_metadata
from conditional_balance.runtime.inject.noise_blend import NoiseBlend, blend_prompts
from conditional_balance.runtime.inject.style import StyleInjection
from conditional_balance.runtime.profile.choosing import guessed_order
from conditional_balance.runtime.profile.clusters import native_side
from tiny import cond, latent, tiny_model, tiny_vae

INPAINTING, EDITING = ("sd15_inpaint", "sdxl_inpaint"), ("sd15_edit", "cosxl_edit")


@cache
def unet(kind: str) -> Any:
    return tiny_unet(kind) if kind in UNETS | OTHERS else tiny_model(kind)


def tied(kind: str, conditioning: Any) -> Any:
    """A prompt as InpaintModelConditioning or InstructPixToPixConditioning leaves it."""
    about = {"concat_latent_image": latent(7, height=HEIGHT, width=WIDTH)["samples"]}
    if kind in INPAINTING:
        about["concat_mask"] = torch.ones(1, 1, HEIGHT, WIDTH).triu()
    return [[text, {**others, **about}] for text, others in conditioning]


def prompts_of(kind: str) -> dict[str, Any]:
    prompts = {"positive": cond(unet(kind), 1), "negative": cond(unet(kind), 2)}
    return {name: tied(kind, each) for name, each in prompts.items()} if kind in INPAINTING + EDITING else prompts


class Network:
    """What the network is given and gives back in every call of a run: rows, those of a hidden reference last."""

    def __init__(self) -> None:
        self.given: list[torch.Tensor] = []
        self.made: list[torch.Tensor] = []

    def on(self, of: Any) -> Any:
        of = of.clone()
        of.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", self._around)
        return of

    def _around(self, executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = executor(x, *args, **kwargs)
        self.given.append(x.clone())
        self.made.append(out.clone())
        return out


# Layers


@pytest.mark.parametrize("kind", UNETS)
def test_every_unet_has_a_guess_and_takes_style_from_a_picture(kind: str, own: Path) -> None:  # noqa: F811
    of = unet(kind)
    layers = architecture_of(of).layers
    assert sorted(guessed_order(architecture_of(of))) == sorted(layers)
    made = output("CBStyleFromPicture", model=of, clip=None, vae=tiny_vae(), image=picture(), **{"lambda": 1.0})
    assert f"{len(layers)} of {len(layers)} layers" in made.ui["cb_summary"][0]
    plain, styled_run = (run(each, batch=1, **prompts_of(kind)) for each in (of, made.args[0]))
    assert differ(styled_run, plain)


def test_blocks_that_attend_to_text_alone_are_no_layers_of_style() -> None:
    """SDXS has such in its first level; ComfyUI itself gives them no values where one replaces their attention."""
    of = unet("sd_xs")
    assert [str(layer) for layer in architecture_of(of).layers] == ["i3.0", "i5.0", "o0.0", "o1.0", "o2.0", "o3.0"]
    assert differ(run(styled(of, "all", hidden(of)), batch=1), run(of, batch=1))


@pytest.mark.parametrize("kind", OTHERS)
def test_models_with_another_task_are_refused_in_one_sentence(kind: str) -> None:
    of = unet(kind)
    style = StyleInjection(gate("all"), hidden(of))
    for attempt in (
        lambda: styled(of, "all", hidden(of)),
        lambda: contrast_layers(of, LayerContrast(style, 1.0)),
        lambda: prompt_layers(of, LayerPrompt(gate("all"), cond(of, 3)[0][0])),
        lambda: output("CBStyleFromPicture", model=of, clip=None, vae=tiny_vae(), image=picture()),
    ):
        with pytest.raises(ValueError, match=r"^'model' cannot be used here: it [a-z ,]+\. Connect SD1\.5, [^\n]+$"):
            attempt()


def test_a_profile_of_sd15_is_none_of_sd2s_family(own: Path) -> None:  # noqa: F811
    """Both have the same layers at the same widths, and were trained from nothing each."""
    of = tiny_model("sd15")
    measured = profile_for(of, weights="0" * 16)
    assert measured.provenance["model"]["text"] == 64
    of_another = measured.provenance["model"] | {"text": 48}
    save(replace(measured, provenance=measured.provenance | {"model": of_another}), own / "other.safetensors")
    assert jobs._chosen(of).words.startswith("Layers by a guess")
    older = {name: value for name, value in measured.provenance["model"].items() if name != "text"}
    save(replace(measured, provenance=measured.provenance | {"model": older}), own / "older.safetensors")
    assert jobs._chosen(of).words == "Layers by older, measured on another checkpoint of this family."


@pytest.mark.parametrize(
    ("kind", "side"), [("sd15", 512), ("sd15_inpaint", 512), ("sdxl", 1024), ("koala", 1024), ("refiner", 1024)]
)
def test_pictures_are_no_larger_than_the_model_paints(kind: str, side: int) -> None:
    assert native_side(unet(kind)) == side


@pytest.mark.parametrize(("v_pred", "side"), [(True, 768), (False, 512)])
def test_sd2_that_predicts_v_paints_at_768(v_pred: bool, side: int) -> None:
    from comfy.model_base import ModelType

    of = tiny_unet("sd21")
    of.model.model_type = ModelType.V_PREDICTION if v_pred else ModelType.EPS  # told by a weight of the real one
    assert native_side(of) == side


# Pictures and masks beside the latent


@pytest.mark.parametrize("area", [False, True])
@pytest.mark.parametrize("kind", INPAINTING + EDITING)
def test_the_reference_rides_beside_no_picture_of_the_runs(kind: str, area: bool) -> None:
    """In calls on an area as well, as Conditioning (Set Area) makes them."""
    of, network, prompts = unet(kind), Network(), prompts_of(kind)
    if area:
        (text, about) = prompts["positive"][0]
        prompts["positive"] = [[text, {**about, "area": (HEIGHT // 2, WIDTH // 2, 0, WIDTH // 2), "strength": 1.0}]]
    run(network.on(styled(of, "all", hidden(of))), batch=2, **prompts)
    blank = 0.0
    if kind in INPAINTING:
        like = torch.zeros(1, 4, 1, 1)
        blank = torch.cat((torch.ones(1, 1, 1, 1), of.model.blank_inpaint_image_like(like)), 1)
    assert network.given
    for rows in network.given:
        own_rows, reference = rows.unflatten(0, (-1, 3))[:, :2, 4:], rows.unflatten(0, (-1, 3))[:, 2, 4:]
        assert torch.equal(reference, torch.zeros_like(reference) + blank)
        assert not torch.equal(own_rows[:, 0], reference)


@pytest.mark.parametrize("kind", INPAINTING + EDITING)
def test_another_prompt_works_on_the_runs_picture(kind: str) -> None:
    """Without it the model would paint something else where the other prompt is blended in."""
    of, other = unet(kind), cond(unet(kind), 9)
    another = [[text, {**about, "concat_latent_image": torch.ones(1, 4, HEIGHT, WIDTH)}] for text, about in other]
    bare, whole, elsewhere = (
        run(blend_prompts(of, NoiseBlend(each)), batch=1, **prompts_of(kind))
        for each in (other, tied(kind, other), another)
    )
    assert torch.equal(bare, whole)
    assert differ(elsewhere, whole)


# GLIGEN


@cache
def gligen() -> Any:
    return tiny_gligen(unet("sd15"))


def test_boxes_act_on_the_pictures_and_not_on_the_reference() -> None:
    of = unet("sd15")
    boxed = in_boxes(cond(of, 1), gligen())
    with_boxes, without = Network(), Network()
    found = run(with_boxes.on(styled(of, "all", hidden(of))), batch=2, positive=boxed)
    plain = run(without.on(styled(of, "all", hidden(of))), batch=2)
    assert differ(found, plain)
    assert differ(found, run(of, batch=2, positive=boxed))
    ours, same = (torch.cat([out.unflatten(0, (-1, 3))[:, 2] for out in each.made]) for each in (with_boxes, without))
    apart = (ours[:, None] - same[None]).abs().flatten(2).amax(2)  # boxes put every prompt into a call of its own
    assert apart.amin(1).max() < 1e-4 * same.std() < apart.amax()


def test_boxes_go_along_with_several_references_and_guidance() -> None:
    of = unet("sd15")
    boxed = in_boxes(cond(of, 1), gligen())
    two = replace(hidden(of, 6), previous=hidden(of, 5))
    assert differ(run(styled(of, "all", two), batch=2, positive=boxed), run(of, batch=2, positive=boxed))
    guided = contrast_layers(of, LayerContrast(StyleInjection(WrittenGate(parse("o3-8")), hidden(of)), 1.0))
    assert differ(run(guided, batch=1, positive=boxed), run(of, batch=1, positive=boxed))


# Sizes and crops


def test_the_refiner_takes_sizes_and_crops_and_no_target() -> None:
    of, seen = unet("refiner"), []

    def around(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(args[3] if len(args) > 3 else kwargs["y"])
        return executor(*args, **kwargs)

    scheduled = schedule_metadata(of, Metadata(original=Change(0.5, 0.0), top=Change(32.0, 0.0)))
    for each in (of, scheduled):
        each = each.clone()
        each.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", around)
        run(each, batch=1, steps=1)
    plain, changed = (y[:, 1280:].unflatten(1, (5, 256)) for y in seen)
    embedded = of.model.embedder(torch.tensor([8.0 * HEIGHT / 2, 8.0 * WIDTH / 2, 32.0]))
    assert torch.allclose(changed[:, :3], embedded.expand_as(changed[:, :3]), atol=1e-5)
    assert torch.equal(changed[:, 3:], plain[:, 3:])
    with pytest.raises(NoSuchMetadata):
        schedule_metadata(of, Metadata(target=Change(0.5, 0.0)))
