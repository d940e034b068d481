"""The blend keeps its promises: ones are off, zeros are the reference, and each window is measured once."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from gradsam_case import ALL_ONES, ALL_ZEROS, HALF, blended, latest, run, subject_of, told_of
from style_case import (
    HEIGHT,
    KINDS,
    WIDTH,
    assert_close,
    assert_same_traces,
    differ,
    empty,
    failing,
    little_memory,
    model,
    styled,
    tiny_controlnet,
    traces,
    with_control,
)

from conditional_balance.engine.subject import Phrase
from conditional_balance.runtime.attribution.subject import Subject
from conditional_balance.runtime.inject.blend import MODES, PAPER, X0, Blend, blend_reference
from tiny import cond, latent

__all__ = ["little_memory"]

SAMPLERS = ("euler", "euler_ancestral", "dpmpp_2m_sde", "heun", "dpm_2", "uni_pc", "ddim")
SECOND_ORDER = ("heun", "dpm_2", "dpmpp_2s_ancestral")
REFERENCE = latent(5, height=HEIGHT, width=WIDTH)["samples"]


def counted(of: Any) -> tuple[Any, list[int]]:
    """The model, and the rows of each of its forward passes."""
    calls: list[int] = []

    def count(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(len(x))
        return executor(x, *args, **kwargs)

    of = of.clone()
    of.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", count)
    return of, calls


# off is off, all is all ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_mask_of_ones_is_off(sampler: str) -> None:
    of = model("sd15")
    kept, attribution = blended(of, "0-1", mask=ALL_ONES)
    assert torch.equal(run(kept, sampler=sampler), run(of, sampler=sampler))
    assert latest(attribution)[0].mask.min() == 1


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2"])
def test_a_mask_of_ones_is_off_for_the_papers_way_too(sampler: str) -> None:
    """One-step samplers know no difference; those with a memory begin it anew after a replacement."""
    of = model("sd15")
    kept, _ = blended(of, mask=ALL_ONES, mode=PAPER)
    assert torch.equal(run(kept, sampler=sampler), run(of, sampler=sampler))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_mask_that_is_only_measured_changes_nothing(sampler: str) -> None:
    of = model("sd15")
    watched, attribution = blended(of, mask=HALF, mode="only measure")
    assert torch.equal(run(watched, sampler=sampler), run(of, sampler=sampler))
    assert len(latest(attribution)) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_no_window_is_off(kind: str) -> None:
    of = model(kind)
    kept, attribution = blended(of, "", mask=ALL_ZEROS)
    assert torch.equal(run(kept), run(of))
    assert latest(attribution) == []


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_mask_of_zeros_gives_the_reference(sampler: str) -> None:
    out = run(blended(model("sd15"), "0-1", mask=ALL_ZEROS)[0], sampler=sampler)
    assert_close(out, REFERENCE, 1e-3)


def test_the_papers_way_at_the_last_step_gives_the_reference() -> None:
    out = run(blended(model("sd15"), "0.99", mask=ALL_ZEROS, mode=PAPER)[0], scheduler="simple")
    assert differ(out, REFERENCE)  # four steps: the last one begins long before 0.99
    out = run(blended(model("sd15"), "0.7", mask=ALL_ZEROS, mode=PAPER)[0], scheduler="simple")
    assert_close(out, REFERENCE, 1e-3)


@pytest.mark.parametrize("mode", [X0, PAPER])
def test_the_masked_half_is_kept_and_the_rest_is_the_reference(mode: str) -> None:
    """At the end the reference fills exactly what the last mask leaves free."""
    of = model("sd15")
    kept, attribution = blended(of, "0.2, 0.7-1" if mode == X0 else "0.2, 0.7", mask=HALF, mode=mode)
    out = run(kept, scheduler="simple")
    mask = latest(attribution)[-1].mask[0]
    assert 0.4 < float(mask.mean()) < 0.6
    away = (out - REFERENCE).abs().amax(1)[0]
    assert float(away[mask == 0].max()) < 1e-3
    assert float(away[mask == 1].min()) > 1e-3


def test_the_papers_way_puts_the_reference_under_the_runs_own_noise() -> None:
    """In the call after the window's step the latent is reference + sigma * noise, where the mask is zero."""
    import comfy.sample

    of, seen = model("sd15").clone(), []

    def look(executor: Any, x: torch.Tensor, t: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append((float(t[0]), x[-1:].clone()))
        return executor(x, t, *args, **kwargs)

    of.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", look)
    run(blended(of, "0.3", mask=ALL_ZEROS, mode=PAPER)[0], seed=3, steps=6)
    noise = comfy.sample.prepare_noise(empty(1)["samples"], 3)
    scaled = of.model.process_latent_in(REFERENCE)
    off = [float((x - scaled - sigma * noise).abs().max() / sigma) for sigma, x in seen]
    sigmas = [sigma for sigma, _ in seen]
    replaced = sigmas.index(min(sigma for sigma in sigmas if sigmas.count(sigma) == 2)) + 2  # behind the measured step
    assert off[replaced] < 1e-4
    assert min(off[1:replaced]) > 1e-2


# once a window -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sampler", ["euler", *SECOND_ORDER])
def test_each_window_is_measured_once(sampler: str, mode: str) -> None:
    """One extra pass over the conditional rows for each window and subject, and none outside."""
    (of, calls), (plain, plain_calls) = counted(model("sd15")), counted(model("sd15"))
    two = Subject(subject_of(of).conditioning, (Phrase("fox", (2,)), Phrase("hat", (4, 5))))
    kept, attribution = blended(of, "0.2-0.45, 0.45-0.7, 0.75", two, mode=mode, mask=HALF)
    run(kept, sampler=sampler, steps=8)
    run(plain, sampler=sampler, steps=8)
    assert [str(each.window) for each in latest(attribution)] == ["0.2-0.45", "0.45-0.7", "0.75"]
    assert calls.count(1) == 3 * 2 and calls.count(2) >= plain_calls.count(2)
    if mode != PAPER or sampler == "euler":
        assert len(calls) == len(plain_calls) + 3 * 2


def test_the_latest_run_alone_is_remembered() -> None:
    kept, attribution = blended(model("sd15"))
    run(kept, seed=1)
    first = [each.maps for each in latest(attribution)]
    run(kept, seed=2)
    assert len(latest(attribution)) == len(first) == 2
    assert not torch.equal(first[0], latest(attribution)[0].maps)


def test_windows_that_the_run_does_not_reach_do_nothing() -> None:
    of = model("sd15")
    options = dict(latent=latent(9, height=HEIGHT, width=WIDTH), denoise=0.4)
    kept, attribution = blended(of, "0.1-0.3", mask=ALL_ZEROS)
    assert torch.equal(run(kept, **options), run(of, **options))
    assert latest(attribution) == []


def test_smoothing_keeps_a_share_of_the_window_before() -> None:
    of, found = model("sd15"), {}
    for smoothing in (0.0, 0.5):
        kept, attribution = blended(of, mode="only measure", smoothing=smoothing)
        run(kept)
        found[smoothing] = [each.maps for each in latest(attribution)]
    torch.testing.assert_close(found[0.5][1], (found[0.0][0] + found[0.0][1]) / 2)


# others live ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [X0, PAPER])
def test_a_noise_mask_still_holds(mode: str) -> None:
    of, picture = model("sd15"), latent(9, height=HEIGHT, width=WIDTH)
    picture["noise_mask"] = torch.zeros(1, 8 * HEIGHT, 8 * WIDTH)
    picture["noise_mask"][..., 8 * WIDTH // 2 :] = 1
    out = run(blended(of, "0.2-0.5, 0.5-1", mask=ALL_ZEROS, mode=mode)[0], latent=picture)
    kept, free = slice(0, WIDTH // 2), slice(WIDTH // 2, WIDTH)
    assert_close(out[..., kept], picture["samples"][..., kept], 1e-3)
    if mode == X0:
        assert_close(out[..., free], REFERENCE[..., free], 1e-3)


def test_differential_diffusion_still_acts() -> None:
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

    of, picture = model("sd15"), latent(9, height=HEIGHT, width=WIDTH)
    picture["noise_mask"] = torch.linspace(0, 1, 8 * WIDTH).expand(1, 8 * HEIGHT, -1)
    (graded,) = DifferentialDiffusion.execute(of).args
    kept, attribution = blended(graded, mask=ALL_ONES)
    assert torch.equal(run(kept, latent=picture), run(graded, latent=picture))
    assert len(latest(attribution)) == 2


@pytest.mark.parametrize("method", ["jvp", "grad_sam"])
def test_a_controlnet_still_acts(method: str) -> None:
    of = model("sd15")
    positive, negative = with_control(tiny_controlnet("sd15"), cond(of, 1), cond(of, 2))
    prompts = dict(positive=positive, negative=negative)
    kept, attribution = blended(of, mask=ALL_ONES, method=method)
    assert torch.equal(run(kept, **prompts), run(of, **prompts))
    assert [each.method for each in latest(attribution)] == [method] * 2


@pytest.mark.parametrize("order", ["style first", "blend first"])
@pytest.mark.parametrize("method", ["jvp", "grad_sam", "attention"])
def test_style_injection_still_acts(method: str, order: str) -> None:
    from style_case import hidden

    of = model("sd15")
    alone = styled(of, "all", hidden(of))
    if order == "style first":
        both, attribution = blended(alone, mask=ALL_ONES, method=method, propagation=1)
    else:
        kept, attribution = blended(of, mask=ALL_ONES, method=method, propagation=1)
        both = styled(kept, "all", hidden(of))
    assert torch.equal(run(both), run(alone))
    assert [(each.method, each.note) for each in latest(attribution)] == [(method, "")] * 2
    assert latest(attribution)[0].maps.shape == (1, 1, HEIGHT, WIDTH)


def test_split_calls_find_the_same(little_memory: None) -> None:
    kept, attribution = blended(model("sd15"), mode="only measure", method="attention")
    run(kept)
    assert len(latest(attribution)) == 2


def test_without_guidance_the_same_is_measured() -> None:
    kept, attribution = blended(model("sd15"), "0.2", mask=HALF)
    run(kept, cfg=1.0)
    assert len(latest(attribution)) == 1


def test_a_second_prompt_beside_the_subjects_is_told_apart() -> None:
    """With two positive prompts combined, tokens are looked up in the subject's own."""
    of = model("sd15")
    found = []
    for prompts in ([*cond(of, 1), *cond(of, 7, tokens=154)], [*cond(of, 7, tokens=154), *cond(of, 1)]):
        kept, attribution = blended(of, "0.2", mode="only measure", method="attention")
        run(kept, positive=prompts)
        found.append(latest(attribution)[0].maps)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)


# batches and sizes ---------------------------------------------------------------------------------------------------


def test_every_picture_has_its_own_mask() -> None:
    of = model("sd15")
    kept, attribution = blended(of, "0.2-1", mask=HALF, method="attention")
    together = run(kept, batch=2)
    masks = latest(attribution)[0].mask
    assert masks.shape == (2, HEIGHT, WIDTH) and not torch.equal(masks[0], masks[1])
    alone = run(kept, latent={**empty(1), "batch_index": [1]})
    batched = run(kept, latent={**empty(2), "batch_index": [0, 1]})
    assert together.shape == batched.shape
    assert_close(batched[1:], alone, 1e-2)


def test_a_batch_of_references_gives_each_picture_its_own() -> None:
    references = latent(5, 2, HEIGHT, WIDTH)["samples"]
    out = run(blended(model("sd15"), "0-1", mask=ALL_ZEROS, reference=references)[0], batch=2)
    assert_close(out, references, 1e-3)


def test_a_reference_of_another_size_is_resized_or_refused() -> None:
    of, large = model("sd15"), latent(5, height=2 * HEIGHT, width=2 * WIDTH)["samples"]
    out = run(blended(of, "0-1", mask=ALL_ZEROS, reference=large)[0])
    assert out.shape == REFERENCE.shape and differ(out, REFERENCE)
    with pytest.raises(ValueError, match="'reference' is a latent of 16 x 32, but the sampler works on 8 x 16"):
        run(blended(of, reference=large, resize=False)[0])


# what of the reference is not taken -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [X0, PAPER])
def test_nothing_is_taken_of_what_is_left_out(mode: str) -> None:
    """Left out as a whole, it is off; in part, the rest alone comes from the reference."""
    of, windows = model("sd15"), "0-1" if mode == X0 else "0.7"
    whole, half = torch.ones(1, 8 * HEIGHT, 8 * WIDTH), torch.zeros(1, 8 * HEIGHT, 8 * WIDTH)
    half[..., : 4 * WIDTH - 3] = 1  # a cell of which a part is left out is left out
    off, measured = blended(of, windows, mask=ALL_ZEROS, mode=mode, left_out=whole)
    assert_close(run(off, scheduler="simple"), run(of, scheduler="simple"), 1e-6)
    assert "covers all of it, so nothing of it is taken" in " ".join(told_of(measured))
    out = run(blended(of, windows, mask=ALL_ZEROS, mode=mode, left_out=half)[0], scheduler="simple")
    away = (out - REFERENCE).abs().amax(1)[0]
    assert float(away[:, WIDTH // 2 :].max()) < 1e-3
    assert float(away[:, : WIDTH // 2].min()) > 1e-3


def test_a_mask_is_cropped_as_its_reference_is() -> None:
    wide = latent(5, height=HEIGHT, width=2 * WIDTH)["samples"]  # whose middle is taken
    masks = torch.zeros(1, 8 * HEIGHT, 16 * WIDTH)
    masks[..., : 8 * WIDTH] = 1
    out = run(blended(model("sd15"), "0-1", mask=ALL_ZEROS, reference=wide, left_out=masks)[0])
    away = (out - wide[..., WIDTH // 2 : 3 * WIDTH // 2]).abs().amax(1)[0]
    assert float(away[:, WIDTH // 2 :].max()) < 1e-3
    assert float(away[:, : WIDTH // 2].min()) > 1e-3


def test_each_picture_has_the_mask_of_its_reference() -> None:
    references, masks = latent(5, 2, HEIGHT, WIDTH)["samples"], torch.zeros(2, 8 * HEIGHT, 8 * WIDTH)
    masks[1] = 1
    out = run(blended(model("sd15"), "0-1", mask=ALL_ZEROS, reference=references, left_out=masks)[0], batch=2)
    assert_close(out[:1], references[:1], 1e-3)
    assert_close(out[1:], run(model("sd15"), batch=2)[1:], 1e-3)
    of, measured = blended(model("sd15"), "0-1", left_out=masks)
    run(of)
    assert any("mask has 2 rows for 1 picture" in each for each in told_of(measured))


# nothing stays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["jvp", "grad_sam"])
def test_nothing_stays_after_a_run(method: str, mode: str) -> None:
    of = model("sdxl")
    plain = run(of)
    kept, _ = blended(of, method=method, mode=mode)
    before, before_kept = traces(of), traces(kept)
    run(kept)
    assert_same_traces(before, traces(of))
    assert_same_traces(before_kept, traces(kept))
    assert torch.equal(run(of), plain)


@pytest.mark.parametrize("error", [KeyError, comfy.model_management.InterruptProcessingException])
def test_nothing_stays_after_an_error_or_cancel(error: type[Exception]) -> None:
    of = model("sd15")
    plain = run(of)
    kept, _ = blended(failing(error, "here")(of), "0", method="grad_sam")  # fails in the pass with gradients
    before, before_kept = traces(of), traces(kept)
    with pytest.raises(error):
        run(kept)
    assert_same_traces(before, traces(of))
    assert_same_traces(before_kept, traces(kept))
    assert torch.equal(run(of), plain)


# bad input -----------------------------------------------------------------------------------------------------------


def test_bad_input_is_one_sentence() -> None:
    of = model("sd15")
    with pytest.raises(ValueError, match="'reference' holds a latent of shape"):
        blended(of, reference=torch.zeros(1, 8, 4, 4))
    with pytest.raises(ValueError, match="'subject' was read from another prompt"):
        run(blended(of, subject=subject_of(of, seed=9))[0])
    with pytest.raises(ValueError, match="uni_pc cannot do"):
        run(blended(of, mode=PAPER)[0], sampler="uni_pc")
    dit = of.clone()
    dit.model = torch.nn.Module()
    dit.model.diffusion_model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="'model' cannot be used here: its network Linear"):
        blend_reference(dit, Blend(REFERENCE, subject_of(of), ()))
